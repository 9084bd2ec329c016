"""Readers of expert annotations: files as the data sets publish them, and shapes with known areas."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxr_ray.data import annotations
from cxr_ray.data.shapes import Box, Polygon, Runs, drawn, run_lengths
from cxr_ray.errors import DataError

RSNA = """patientId,x,y,width,height,Target
one,264.0,152.0,213.0,379.0,1
one,562.0,152.0,256.0,453.0,1
none,,,,,0
"""
VINDR = """image_id,class_name,rad_id,x_min,y_min,x_max,y_max
one,Consolidation,R8,10,20,30,60
one,Cardiomegaly,R8,1,2,3,4
none,No finding,R9,,,,
"""
NIH = """Image Index,Finding Label,Bbox [x,y,w,h],,,
00013118_008.png,Atelectasis,225.08,547.02,86.78,79.19,,,
"""
MS = """category_name,path,x,y,w,h,dicom_id,image_width,image_height
Pneumonia,files/p10/one.dcm,100,200,50,60,one,2544,3056
"""


def boxes(annotation):
    return [(label, shape.edges) for label, shape in annotation.shapes]


def test_tables_of_boxes_are_read_as_published():
    rsna = annotations.read(RSNA.encode(), "stage_2_train_labels.csv")
    assert boxes(rsna["one"]) == [("", (264, 152, 477, 531)), ("", (562, 152, 818, 605))]
    assert rsna["none"] == annotations.Annotation(None, ())
    vindr = annotations.read(VINDR.encode(), "annotations.csv")
    assert boxes(vindr["one"]) == [("Consolidation", (10, 20, 30, 60)), ("Cardiomegaly", (1, 2, 3, 4))]
    assert vindr["none"].shapes == ()
    ((label, edges),) = boxes(annotations.read(NIH.encode(), "BBox_List_2017.csv")["00013118_008.png"])
    assert label == "Atelectasis"
    assert edges == pytest.approx((225.08, 547.02, 311.86, 626.21))
    ms = annotations.read(MS.encode(), "MS_CXR.csv")["one"]
    assert (ms.size, boxes(ms)) == ((2544, 3056), [("Pneumonia", (100, 200, 150, 260))])


def test_a_parquet_table_is_read_as_a_csv(tmp_path):
    frame = pd.DataFrame({"image_id": ["a", "b"], "x_min": [1.0, np.nan], "y_min": [2.0, np.nan]})
    frame.assign(x_max=[3.0, np.nan], y_max=[5.0, np.nan], width=64, height=32).to_parquet(tmp_path / "t.parquet")
    found = annotations.read((tmp_path / "t.parquet").read_bytes(), "t.parquet")
    assert boxes(found["a"]) == [("", (1, 2, 3, 5))]
    assert [one.size for one in found.values()] == [(64, 32), (64, 32)]  # beside corners they are the image's


@pytest.mark.parametrize("separator", [";", "\t"])
def test_boxes_may_be_separated_otherwise(separator):
    for text in (RSNA, VINDR, MS):
        found = annotations.read(("\ufeff" + text.replace(",", separator)).encode(), "boxes.csv")
        assert found == annotations.read(text.encode(), "boxes.csv")


def test_nullable_numbers_that_are_missing_are_empty_cells(tmp_path):
    frame = pd.DataFrame({"image": ["a", "b"], **{key: [4, pd.NA] for key in ("x", "y", "width", "height")}})
    frame.convert_dtypes().to_parquet(tmp_path / "t.parquet")
    found = annotations.read((tmp_path / "t.parquet").read_bytes(), "t.parquet")
    assert boxes(found["a"]) == [("", (4, 4, 8, 8))]
    assert found["b"].shapes == ()


def test_chexlocalize_is_read_in_both_its_forms():
    outline = [[10.5, 20.0], [40.0, 20.0], [40.0, 50.0]]
    polygons = {"patient1_study1_view1_frontal": {"img_size": [2320, 2828], "Edema": [outline, outline[::-1]]}}
    one = annotations.read(json.dumps(polygons).encode(), "gt_annotations_val.json")["patient1_study1_view1_frontal"]
    assert one.size == (2828, 2320)  # height comes first in the file
    assert [(label, len(shape.points)) for label, shape in one.shapes] == [("Edema", 3)] * 2
    # The empty masks that CheXlocalize publishes, and one of 2 x 3 pixels with a run of two.
    runs = {
        "one": {"Edema": {"size": [2022, 2021], "counts": "nefl3"}},
        "two": {"Edema": {"size": [3, 2], "counts": [1, 2, 3]}, "Other": {"size": [3, 2], "counts": "6"}},
    }
    found = annotations.read(json.dumps(runs).encode(), "gt_segmentations_val.json")
    assert found["one"] == annotations.Annotation((2021, 2022), ())
    assert found["two"] == annotations.Annotation((2, 3), (("Edema", Runs(2, 3, (1, 2, 3))),))


def test_coco_is_read_with_polygons_runs_and_boxes():
    plain = {
        "images": [{"id": 7, "file_name": "a.png", "width": 9, "height": 8}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "Pneumonia"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "bbox": [9, 9, 9, 9]},
            {"image_id": 7, "category_id": 1, "segmentation": {"size": [8, 9], "counts": [0, 72]}},
        ],
    }
    found = annotations.read(json.dumps(plain).encode(), "coco.json")
    kinds = [(label, type(shape)) for label, shape in found["a.png"].shapes]
    assert kinds == [("Pneumonia", Box), ("Pneumonia", Polygon), ("Pneumonia", Runs)]
    assert boxes(annotations.Annotation(None, found["a.png"].shapes[:1])) == [("Pneumonia", (1, 2, 4, 6))]
    assert (found["a.png"].size, found["b.png"]) == ((9, 8), annotations.Annotation(None, ()))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "image,x,y,width\na,1,2,3\n", "expected also height as h or height"),
        ("a.csv", "image,x,y,width,height\na,1,2,3,\n", "got 3 of a box's four numbers in row 1"),
        ("a.csv", "image,x,y,width,height\na,1,2,3,tall\n", "got 'tall' in row 1; expected a number"),
        ("a.csv", "image,x,y,width,height\na,1,2,-3,4\n", "width -3, height 4; expected a size above 0"),
        ("a.csv", "image,x,y,width,height\na,1,2,inf,4\n", "expected a size above 0"),
        ("a.csv", "", "No columns to parse"),
        ("a.parquet", "PAR1", "which is not in the format boxes"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", "{", "expected JSON. Correct the file"),
        ("a.json", "[]", "got a list; expected an object of names"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a": {"img_size": [9, 0]}}', "got the size 9 x 0"),
        ("a.json", '{"a": {"img_size": [99999, 99999]}}', "at most 100,000,000 pixels"),
        ("a.json", '{"a": {"img_size": [9, 9], "Edema": [[[1, 2], [3, 4]]]}}', "got a polygon of 2 points"),
        (
            "a.json",
            '{"a": {"Edema": {"size": [9, 9], "counts": [80]}}}',
            "got run lengths of 80 pixels; expected 9 x 9",
        ),
        ("a.json", '{"a": {"Edema": {"size": [9, 9], "counts": "P"}}}', "end within a number"),
        ("a.json", '{"a": {"Edema": {"size": [9, 9], "counts": "p"}}}', "got the character 'p'"),
        ("a.json", '{"images": [], "annotations": [{"bbox": []}]}', "no 'image_id'"),
    ],
)
def test_a_file_in_no_known_format_is_one_line_with_the_reason(name, text, reason):
    with pytest.raises(DataError) as e:
        annotations.read(text.encode(), name)
    assert reason in str(e.value)
    assert str(e.value).startswith(f"truth.path: got {name}, which is not in the format")
    assert "\n" not in str(e.value)


def test_a_box_covers_the_pixels_whose_centres_it_holds():
    mask, boxes_of = drawn([Box((1.4, 0.6, 3.6, 2.0))], 5, 3)
    assert mask.astype(int).tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert np.array_equal(mask, boxes_of)
    assert drawn([Box((2.1, 1.1, 2.3, 1.2))], 5, 3)[0].sum() == 1  # smaller than a pixel
    assert drawn([Box((-4, -4, 90, 90))], 5, 3)[0].all()
    assert not drawn([Box((90, 90, 95, 95))], 5, 3)[0].any()


def test_polygons_and_masks_have_the_box_around_each_part():
    square = Polygon(((2, 2), (6, 2), (6, 6), (2, 6)))
    mask, boxes_of = drawn([square], 10, 10)
    assert mask[2:6, 2:6].all()
    triangle, around = drawn([Polygon(((0, 0), (10, 0), (0, 10)))], 10, 10)
    assert 40 < triangle.sum() < 70
    assert around.all()
    corners = np.zeros((6, 6), bool)
    corners[0, 0] = corners[4, 5] = corners[5, 4] = True  # the last two touch
    _, boxes_of = drawn([_runs(corners)], 6, 6)
    assert boxes_of.sum() == 1 + 4


def _runs(mask: np.ndarray) -> Runs:
    """Run lengths by numpy's own means, column by column."""
    flat = np.concatenate([[False], mask.T.ravel(), [mask.T.ravel()[-1] ^ True]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends]))
    return Runs(mask.shape[1], mask.shape[0], tuple(int(n) for n in counts))


def _compressed(counts) -> str:
    """COCO's text of run lengths, as its definition says: five bits and a sign, lowest first."""
    text = ""
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | (32 if more else 0)))
    return text


masks = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks)
def test_run_lengths_give_back_the_mask(mask):
    shape = _runs(mask)
    assert run_lengths(_compressed(shape.counts)) == shape.counts
    assert np.array_equal(drawn([shape], mask.shape[1], mask.shape[0])[0], mask)


@given(masks)
def test_boxes_hold_their_mask(mask):
    inside, boxes_of = drawn([_runs(mask)], mask.shape[1], mask.shape[0])
    assert not (inside & ~boxes_of).any()
    for axis in (0, 1):  # and reach no further
        assert np.array_equal(boxes_of.any(axis), inside.any(axis))


@given(st.binary(max_size=60), st.sampled_from(["a.csv", "a.tsv", "a.json", "a.parquet"]))
def test_any_bytes_are_annotations_or_a_sentence(data, name):
    said = ""
    found = annotations.Annotations()
    try:
        found = annotations.read(data, name)
    except DataError as e:
        said = str(e)
    assert "\n" not in said
    assert all(isinstance(one, annotations.Annotation) for one in found.values())


IMAGES = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate("ab")]
ONE = [{"image_id": 0, "bbox": [0, 0, 1, 1]}]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([*IMAGES, {"id": 2, "file_name": "a.png"}], "two images of the file_name a.png, which differ"),
        ([*IMAGES, {"id": 0, "file_name": "c.png"}], "the image id 0 for a.png and c.png"),
    ],
)
def test_coco_files_that_name_images_twice_are_refused(images, says):
    with pytest.raises(DataError, match=says):
        annotations.read(json.dumps({"images": images, "annotations": ONE}).encode(), "a.json")


def test_an_image_that_is_listed_twice_alike_is_one():
    found = annotations.read(json.dumps({"images": IMAGES * 2, "annotations": ONE}).encode(), "a.json")
    assert [len(one.shapes) for one in found.values()] == [1, 0]


def test_one_image_of_two_sizes_is_refused():
    text = "image,x,y,width,height,image_width,image_height\na,1,1,5,5,40,20\na,10,10,50,50,400,200\n"
    with pytest.raises(DataError, match=r"the sizes \(40, 20\) and \(400, 200\) for a \(row 2\)"):
        annotations.read(text.encode(), "a.csv")
