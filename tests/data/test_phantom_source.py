import pickle

import numpy as np
import pytest

from cxr_ray.data import images
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import DataError
from tests.builders.images import phantoms


def test_phantoms_have_exact_counts_and_each_its_patient():
    manifest = load_manifest(phantoms())
    table = manifest.images
    folder = table["split"].replace("val", "train")
    assert table.groupby([folder, "label"]).size().to_dict() == {
        ("test", 0): 6,
        ("test", 1): 2,
        ("train", 0): 9,
        ("train", 1): 3,
    }
    assert table["patient_id"].is_unique
    assert table["content_hash"].is_unique
    assert set(table["kind"]) == {"unknown"}
    assert set(table["mode"]) == {"L"}
    assert "train/PNEUMONIA/phantom-000000.pgm" in set(table["path"])


def test_phantom_bytes_are_the_same_in_a_copy_and_decode_to_the_image():
    from cxr_ray.data import images

    source = phantoms()
    copy = pickle.loads(pickle.dumps(source))
    path = source.list()[0].path
    content = source.read(path)
    assert copy.read(path) == content
    assert content.startswith(b"P5\n64 64\n255\n")
    np.testing.assert_array_equal(images.decode(content, 64)[0].ravel(), np.frombuffer(content[-64 * 64 :], np.uint8))
    assert phantoms(seed=4).read(path) != content
    assert phantoms(train=10).read(path) == content  # other counts leave an image as it is
    with pytest.raises(FileNotFoundError):
        source.read("train/NORMAL/phantom-999999.pgm")


def test_masks_of_a_phantom_say_what_is_where():
    source = phantoms()
    for path, pneumonia in (("test/PNEUMONIA/phantom-000012.pgm", True), ("test/NORMAL/phantom-000019.pgm", False)):
        masks = source.masks(path)
        assert set(masks) == {"lungs", "opacity", "marker"}
        assert all(m.shape == (64, 64) and m.dtype == bool for m in masks.values())
        assert masks["lungs"].any()
        assert masks["opacity"].any() == pneumonia


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 32}, "got phantoms of 32 pixels; expected 64 or more; set data.size to 64"),
        ({"prevalence": 0.01}, "; expected images of both classes; set data.phantom.train or data.phantom.prevalence"),
    ],
)
def test_phantoms_that_cannot_be_made_say_which_key_to_set(changes, says):
    with pytest.raises(DataError, match=says):
        phantoms(**changes).list()


def test_versions_of_a_phantom_differ_where_they_should():
    source = phantoms(size=64)
    path = "test/PNEUMONIA/phantom-000012.pgm"
    masks, own = source.masks(path), images.decode(source.read(path), 64)[0].astype(int)
    for change, mask in (("opacity", "opacity"), ("marker", "marker"), ("glyph", "marker")):
        other = images.decode(source.version(path, change), 64)[0]
        assert (other != own).any()
        assert not (other != own)[~masks[mask]].any()
