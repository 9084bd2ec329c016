"""Names of masks, annotations and maps belong to one image each."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cxr_ray.data import masks
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.masks import MaskFolder
from cxr_ray.data.pairing import shared_names
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


def marked(source, path):
    """Which images have a truth, and the notes, as a sweep finds them."""
    manifest = load_manifest(source, training=False)
    named = truth_of(resolve({"truth": {"path": str(path)}}))
    assert named is not None
    truth = dataclasses.replace(named, shared=shared_names(manifest.images))
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


def test_a_name_that_two_images_have_tells_neither(tmp_path, source):
    mask(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match=r"no test image has an expert truth.* For 2 of these .* such as test/NORMAL/1"):
        marked(source, tmp_path / "flat")
    manifest = load_manifest(source, training=False)
    lungs = MaskFolder(str(tmp_path / "flat"), shared=shared_names(manifest.images))
    with pytest.raises(DataError, match=r"regions.lungs: .* For 2 of these"):
        masks.mask_note(lungs, manifest)


@pytest.mark.parametrize("value", [1, 100, 255, 256, 65535])
def test_the_inside_of_a_mask_of_two_values_is_the_one_above_zero(tmp_path, source, value):
    mask(tmp_path / "truth" / "only.png", value)
    assert marked(source, tmp_path / "truth")[0] == [NAMES[2]]


def test_shares_of_a_side_are_no_pixels(tmp_path, source):
    (tmp_path / "yolo.csv").write_text("image,x,y,width,height\nonly.png,0.5,0.5,0.3,0.2\n")
    with pytest.raises(DataError, match=r"no shape reaches beyond 0.8, as shares of a side would; expected pixels"):
        marked(source, tmp_path / "yolo.csv")
