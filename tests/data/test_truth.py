"""Expert truths of images: found by name, and drawn where the images' pixels are."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.mask_checks import Frame
from cxr_ray.data.truth import load_truth, own_truth, truth_notes, truth_of
from cxr_ray.errors import DataError
from cxr_ray.sweepfile import resolve
from tests.builders.images import write


def image_bytes(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def source(tmp_path) -> FolderSource:
    return FolderSource(str(write(tmp_path / "images", {row["path"]: image_bytes(40, 20) for row in ROWS})))


PATHS = {"a": "test/PNEUMONIA/a.png", "b": "test/PNEUMONIA/b.png", "c": "test/NORMAL/c.png"}
ROWS = [{"path": path, "image_id": name} for name, path in PATHS.items()]


def truth(tmp_path, text: str, name: str = "boxes.csv", **settings):
    (tmp_path / name).write_text(text)
    return truth_of(resolve({"truth": {"path": str(tmp_path / name), **settings}}))


def test_boxes_are_resized_and_cut_as_the_images_are(tmp_path, source):
    boxes = truth(tmp_path, "image,x,y,width,height\na,0,0,20,10\nb,30,0,10,20\n")
    squashed, errors = load_truth(source, boxes, ROWS, 20)
    left, right = np.zeros((2, 20, 20), bool)
    left[:10, :10] = right[:, 15:] = True
    nowhere = np.zeros((20, 20), bool)
    assert np.array_equal(squashed["truth"], [left, right, nowhere])
    assert np.array_equal(squashed["truth"], squashed["truth_boxes"])
    assert errors == []
    padded, _ = load_truth(source, boxes, ROWS, 20, "pad")
    assert padded["truth"][0].sum() == 10 * 5
    assert padded["truth"][0, 5:10, :10].all()
    cropped, errors = load_truth(source, boxes, ROWS, 20, "crop")  # the middle 20 x 20
    assert cropped["truth"][0, :10, :10].all()
    assert cropped["truth"][0].sum() == 100
    assert not cropped["truth"][1].any()
    assert [(e["image_id"], e["stage"]) for e in errors] == [("b", "truth")]
    assert "outside of what is left of the image (crop, none)" in errors[0]["reason"]


def test_boxes_of_larger_originals_are_scaled_with_them(tmp_path, source):
    """Drawn on 400 x 200, of which the files are a tenth: as if drawn on the files, however they are made square."""
    small = truth(tmp_path, "image,x,y,width,height\na,4,2,20,10\n", "small.csv")
    large = truth(tmp_path, "image,x,y,width,height\na,40,20,200,100\n", "large.csv", size=[400, 200])
    told = truth(tmp_path, "image,x,y,width,height,image_width,image_height\na,40,20,200,100,400,200\n", "told.csv")
    for fit in ("squash", "pad", "crop"):
        wanted = load_truth(source, small, ROWS, 20, fit)[0]["truth"]
        assert wanted.any()
        for other in (large, told):
            assert np.array_equal(load_truth(source, other, ROWS, 20, fit)[0]["truth"], wanted)


def test_originals_may_be_square(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\na,1,2,3,4\n")
    asked = resolve({"truth": {"path": str(tmp_path / "boxes.csv"), "size": [1024, 1024]}})
    assert truth_of(asked).size == (1024, 1024)


def test_shapes_beyond_their_images_stop_the_run_with_the_remedy(tmp_path, source):
    manifest = load_manifest(source, training=False)
    boxes = truth(tmp_path, "image,x,y,width,height\na,40,20,200,100\n")
    with pytest.raises(DataError, match=r"reach beyond them \(to 240 x 120 of 40 x 20 pixels\).*set truth.size"):
        truth_notes(boxes, manifest)
    assert truth_notes(truth(tmp_path, "image,x,y,width,height\na,40,20,200,100\n", size=[400, 200]), manifest)


def test_images_without_a_truth_are_told(tmp_path, source):
    manifest = load_manifest(source, training=False)
    text = "image,x,y,width,height,label\na.png,1,1,5,5,Pneumonia\na.png,8,8,2,2,Mass\nb.png,,,,,none\nz,1,1,1,1,Mass\n"
    first, second = truth_notes(truth(tmp_path, text), manifest)
    assert first.startswith("Expert truth: 1 of 3 test images have one in ")
    assert "The other 2 (1 listed without, 1 not listed) have no row in localisation." in first
    assert "regions of the labels Mass, Pneumonia are joined into one" in second
    (alone,) = truth_notes(truth(tmp_path, text, labels=["mass"]), manifest)
    assert alone.startswith("Expert truth: 1 of 3")
    assert load_truth(source, truth(tmp_path, text, labels=["mass"]), ROWS, 20)[0]["truth"][0].sum() == 1 * 2
    with pytest.raises(DataError, match=r"truth.labels: got Nodule, .* expected one of: Mass, Pneumonia"):
        truth_notes(truth(tmp_path, text, labels=["Nodule"]), manifest)
    with pytest.raises(
        DataError, match=r"no test image has an expert truth \(0 of 3 are listed\); expected names such"
    ):
        truth_notes(truth(tmp_path, "image,x,y,width,height\nz,1,1,5,5\n"), manifest)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("one", "test/PNEUMONIA/one.jpeg"),
        ("one.dcm", "stage_2/one.png"),
        ("1.2.840.113", "files/1.2.840.113.dcm"),
        ("CheXpert\\valid\\one.jpg", "one.png"),
        ("patient1_study1_view1_frontal", "valid/patient1/study1/view1_frontal.jpg"),
        ("study1/view1", "patient1/study1/view1.png"),
    ],
)
def test_images_are_found_by_their_names(tmp_path, name, path):
    text = json.dumps(
        {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    )
    assert truth(tmp_path, text, "coco.json").marked(path) is not None
    assert truth(tmp_path, text, "coco.json").marked("another.png") is None


def test_a_name_that_two_images_have_finds_neither(tmp_path):
    two = truth(tmp_path, "image,x,y,width,height\na/x.png,1,1,5,5\nb/x.png,1,1,5,5\n")
    assert two.marked("x.png") is None
    assert two.marked("data/a/x.png") is not None


def test_masks_are_read_from_a_folder(tmp_path, source):
    mask = np.zeros((20, 40), np.uint8)
    mask[:5, :10] = mask[15:, 20:] = 255
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    folder = write(tmp_path / "masks", {"a.png": stream.getvalue(), "b.png": image_bytes(40, 20), "c.png": b"torn"})
    found = truth_of(resolve({"truth": {"path": str(folder)}}))
    assert found is not None
    masks, errors = load_truth(source, found, ROWS, 20)
    assert masks["truth"][0].sum() == masks["truth_boxes"][0].sum() == 5 * 5 + 5 * 10
    assert not masks["truth"][1:].any()
    assert [(e["image_id"], e["stage"]) for e in errors] == [("c", "truth")]
    with pytest.raises(DataError, match="beside labels, a size or another format"):
        truth_of(resolve({"truth": {"path": str(folder), "labels": ["Mass"]}}))


def test_phantoms_bring_their_own_truth_and_other_images_none():
    masks = {"opacity": np.zeros((2, 8, 8), bool), "lungs": np.ones((2, 8, 8), bool)}
    masks["opacity"][0, 2, 2] = masks["opacity"][0, 3, 3] = True
    phantoms = resolve({"data": {"source": "phantom"}})
    found = own_truth(phantoms, masks)
    assert np.array_equal(found["truth"], masks["opacity"])
    assert found["truth_boxes"].sum((1, 2)).tolist() == [4, 0]
    assert truth_of(phantoms) is None
    assert own_truth(resolve({"data": {"source": "phantom"}, "truth": None}), masks) == {}
    assert own_truth(resolve({}), masks) == {}


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"truth.path: got .*nowhere.csv, which is no file; expected a .csv"):
        truth_of(resolve({"truth": {"path": str(tmp_path / "nowhere.csv")}}))
    with pytest.raises(DataError, match=r"which is no folder; expected the folder of the masks"):
        truth_of(resolve({"truth": {"path": str(tmp_path / "nowhere"), "format": "masks"}}))


def test_an_image_that_fits_no_memory_is_a_sentence(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\na,1,2,3,4\n")
    with pytest.raises(DataError, match=r"truth.size: got 100000 x 100000; expected at most 100,000,000 pixels"):
        truth_of(resolve({"truth": {"path": str(tmp_path / "boxes.csv"), "size": [100_000, 100_000]}}))


COCO = {
    "images": [{"id": n, "file_name": f"{name}.png", "width": 40, "height": 20} for n, name in enumerate("ab")],
    "annotations": [{"image_id": n, "bbox": [4, 2, 20, 10]} for n in range(2)],
}
SWAPPED = [{**image, "width": 20, "height": 40} for image in COCO["images"]]
RUNS = [{"image_id": 0, "segmentation": {"size": [10, 10], "counts": [10, 30, 60]}}]
OUTLINE = [[1, 1], [9, 1], [9, 9]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image,x,y,width,height,image_width,image_height\na,4,2,10,10,20,40\n"),
        ("a.json", json.dumps({**COCO, "images": SWAPPED, "annotations": [{"image_id": 0, "bbox": [4, 2, 9, 10]}]})),
        ("a.json", json.dumps({**COCO, "annotations": RUNS})),
        ("a.json", json.dumps({"a": {"img_size": [40, 20], "Edema": [OUTLINE]}})),
    ],
)
def test_annotations_of_other_proportions_stop_the_run_unless_accepted(tmp_path, source, name, content):
    found, manifest = truth(tmp_path, content, name), load_manifest(source, training=False)
    says = r"got 1 images whose mask or annotations .*truth.path: .* for 40 x 20.*data.accept: \[stretched\]"
    with pytest.raises(DataError, match=says):
        truth_notes(found, manifest)
    assert "stretched over it" in truth_notes(found, manifest, Frame(accept=["stretched"]))[1]


def test_annotations_of_a_copy_that_was_resized_evenly_are_taken(tmp_path, source):
    text = "image,x,y,width,height,image_width,image_height\na,4,2,10,10,403,201\nb,4,2,5,4,13,7\n"  # rounded
    assert len(truth_notes(truth(tmp_path, text), load_manifest(source, training=False))) == 1


def test_shapes_that_begin_outside_of_their_image_are_told(tmp_path, source):
    text = "image,x,y,width,height\na,-6,2,16,10\n"
    notes = truth_notes(truth(tmp_path, text), load_manifest(source, training=False))
    assert "shapes of 1 images begin left of them or above; what is outside is cut off" in notes[1]


def test_one_box_in_pixels_makes_no_pixels_of_the_shares(tmp_path, source):
    text = "image,x,y,width,height\na,0.1,0.2,0.3,0.4\nb,4,2,10,10\n"
    with pytest.raises(DataError, match="shapes of 1 images reach 1 pixel at most, as shares of a side would"):
        truth_notes(truth(tmp_path, text), load_manifest(source, training=False))


def test_annotations_of_no_image_are_told(tmp_path, source):
    manifest = load_manifest(source, training=False)
    lost = [{"image_id": "0", "bbox": [4, 2, 20, 10]}]
    found = truth(tmp_path, json.dumps({**COCO, "annotations": COCO["annotations"] + lost}), "a.json")
    assert "holds 1 annotations whose image_id is no image's, which are left out." in truth_notes(found, manifest)[0]
    found = truth(tmp_path, json.dumps({**COCO, "annotations": lost}), "b.json")
    with pytest.raises(DataError, match=r"no test image has an expert truth .*holds 1 annotations whose image_id"):
        truth_notes(found, manifest)
    found = truth(tmp_path, "image,x,y,width,height\na,1,1,5,5\n,1,1,5,5\n")
    assert "holds 1 rows without an image" in truth_notes(found, manifest)[0]


def test_two_rows_for_one_image_are_told(tmp_path, source):
    with pytest.raises(DataError, match=r"For 1 images there are several, such as a.jpg and a.png, of which none is"):
        truth_notes(
            truth(tmp_path, "image,x,y,width,height\na.png,1,1,5,5\na.jpg,1,1,5,5\n"),
            load_manifest(source, training=False),
        )
