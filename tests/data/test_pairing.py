"""Names of masks, annotations and maps belong to one image each."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from cxr_ray.config import Classes
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.mask_checks import OVER_IMAGES, mask_notes
from cxr_ray.data.masks import MaskFolder
from cxr_ray.data.outside_maps import load_outside_maps
from cxr_ray.data.truth import load_truth, truth_notes, truth_of
from cxr_ray.errors import DataError
from cxr_ray.sweepfile import resolve

NAMES = ("test/NORMAL/1.png", "test/PNEUMONIA/1.png", "test/PNEUMONIA/only.png")


@pytest.fixture
def source(tmp_path):
    for n, name in enumerate(NAMES):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 40), 10 * n, np.uint8)).save(file)
    return FolderSource(str(tmp_path / "data"))


def mask(file, value=255):
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((20, 40), np.uint8 if value < 256 else np.uint16)
    array[:10, :20] = value
    Image.fromarray(array).save(file)


def marked(source, path, **asked):
    """Which images have a truth, and the notes, as a sweep finds them."""
    manifest = load_manifest(source, training=False, **asked)
    named = truth_of(resolve({"truth": {"path": str(path)}}))
    assert named is not None
    truth = dataclasses.replace(named, shared=manifest.shared)
    notes = truth_notes(truth, manifest)
    found, errors = load_truth(source, truth, manifest.rows("test").to_dict("records"), 20)
    assert not errors
    return [name for name, of in zip(manifest.rows("test")["path"], found["truth"], strict=True) if of.any()], notes[0]


@pytest.mark.parametrize("kind", ["folder", "boxes"])
def test_a_truth_of_one_class_is_not_that_of_its_namesake_of_the_other(tmp_path, source, kind):
    if kind == "folder":
        for name in ("PNEUMONIA/1.png", "elsewhere/only.png"):
            mask(tmp_path / "truth" / name)
        path = tmp_path / "truth"
    else:
        path = tmp_path / "boxes.csv"
        path.write_text("image,x,y,width,height\nPNEUMONIA/1.png,2,2,9,9\nC:\\scans\\only.png,2,2,9,9\n")
    found, note = marked(source, path)
    assert found == [NAMES[1], NAMES[2]]
    assert "Expert truth: 2 of 3" in note
    assert "name alone agrees" not in note


@pytest.mark.parametrize("kind", ["folder", "boxes"])
@pytest.mark.parametrize("named", ["p7/1", "NORMAL/2", "2", "p7_1"])
def test_a_name_and_folder_that_two_images_have_tell_neither(tmp_path, kind, named):
    names = ("test/NORMAL/p7/1.png", "test/PNEUMONIA/p7/1.png", "train/NORMAL/2.png", "test/NORMAL/2.png")
    for n, name in enumerate((*names, "test/PNEUMONIA/only.png")):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 40), 10 * n, np.uint8)).save(file)
    path = tmp_path / ("truth" if kind == "folder" else "boxes.csv")
    every = (named, "PNEUMONIA/p7/1", "only")
    if kind == "folder":
        for one in every:
            mask(path / f"{one}.png")
    else:
        path.write_text("image,x,y,width,height\n" + "".join(f"{one},2,2,9,9\n" for one in every))
    found, _ = marked(FolderSource(str(tmp_path / "data")), path)
    assert found == ["test/PNEUMONIA/only.png", names[1]]


def test_masks_that_lie_beside_the_images_are_taken_and_not_the_images(tmp_path):
    for c, n in itertools.product(("NORMAL", "PNEUMONIA"), range(3)):
        mask(tmp_path / "data" / c / "masks" / f"{c}-{n}.png")
        image = tmp_path / "data" / c / "images" / f"{c}-{n}.png"
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 40), 200 + n, np.uint8)).save(image)
    folder = MaskFolder(str(tmp_path / "data"))
    assert folder.find("NORMAL/images/NORMAL-1.png") == "NORMAL/masks/NORMAL-1.png"
    found, _ = marked(FolderSource(str(tmp_path / "data")), tmp_path / "data")
    assert len(found) == 6


def test_a_name_that_two_images_have_tells_neither(tmp_path, source):
    mask(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match=r"no test image has an expert truth.* For 2 of these .* such as test/NORMAL/1"):
        marked(source, tmp_path / "flat")
    manifest = load_manifest(source, training=False)
    lungs = MaskFolder(str(tmp_path / "flat"), shared=manifest.shared)
    with pytest.raises(DataError, match=r"regions.lungs: .* For 2 of these"):
        mask_notes(lungs, manifest, OVER_IMAGES)


@pytest.mark.parametrize("left_out", ["limit", "class", "split"])
def test_a_truth_of_an_image_that_is_left_out_is_not_that_of_its_namesake(tmp_path, left_out):
    """By ``limit``, by its class or by its split: the image still has its name. One of a lone name keeps its own."""
    folder = {"limit": "test/PNEUMONIA", "class": "test/COVID", "split": "val/PNEUMONIA"}[left_out]
    names = [f"test/NORMAL/{n}.png" for n in range(4)] + [f"{folder}/{n}.png" for n in range(4)]
    for n, name in enumerate([*names, "test/PNEUMONIA/only.png"]):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 40), 10 * n, np.uint8)).save(file)
    for n in range(4):
        mask(tmp_path / "truth" / folder.rsplit("/")[-1] / f"{n}.png")
        np.save(tmp_path / "truth" / folder.rsplit("/")[-1] / f"{n}.npy", np.ones((20, 40)) * np.arange(40))
    mask(tmp_path / "truth" / "only.png")
    np.save(tmp_path / "truth" / "only.npy", np.ones((20, 40)) * np.arange(40))
    classes = Classes(negative=["NORMAL"], positive=["PNEUMONIA"], ignore=["COVID"])
    source = FolderSource(str(tmp_path / "data"), classes=classes)
    limit = 4 if left_out == "limit" else None
    found, _ = marked(source, tmp_path / "truth", limit=limit)
    manifest = load_manifest(source, training=False, limit=limit)
    ids = dict(zip(manifest.images["image_id"], manifest.images["path"], strict=True))
    of_maps = load_outside_maps({"mine": f"{tmp_path}/truth/**/*.npy"}, manifest)
    assert {"NORMAL"} < {path.split("/")[1] for path in ids.values()}
    assert not [path for path in found if "NORMAL" in path]
    assert not [i for i in of_maps.members if "NORMAL" in ids[i]]
    assert left_out == "limit" or found == ["test/PNEUMONIA/only.png"]


@pytest.mark.parametrize("value", [1, 100, 255, 256, 65535])
def test_the_inside_of_a_mask_of_two_values_is_the_one_above_zero(tmp_path, source, value):
    mask(tmp_path / "truth" / "only.png", value)
    assert marked(source, tmp_path / "truth")[0] == [NAMES[2]]


def test_shares_of_a_side_are_no_pixels(tmp_path, source):
    (tmp_path / "yolo.csv").write_text("image,x,y,width,height\nonly.png,0.5,0.5,0.3,0.2\n")
    with pytest.raises(DataError, match="shapes of 1 images reach 1 pixel at most, as shares of a side would"):
        marked(source, tmp_path / "yolo.csv")
