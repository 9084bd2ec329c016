import numpy as np
import pytest

from cxr_ray.config import Classes, Data
from cxr_ray.data.doubts import settle
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.npz_source import NpzSource, _arrays
from cxr_ray.data.sources import changes_of, source_of, validates_own
from cxr_ray.errors import DataError


def arrays(side=28, colours=()):
    rng = np.random.default_rng(0)
    found = {}
    for split, n in (("train", 12), ("val", 4), ("test", 8)):
        found[f"{split}_images"] = rng.integers(0, 256, (n, side, side, *colours), dtype=np.uint8)
        found[f"{split}_labels"] = (np.arange(n, dtype=np.uint8) % 2)[:, None]
    return found


@pytest.fixture
def saved(tmp_path):
    _arrays.cache_clear()

    def save(**changed):
        path = tmp_path / "pneumoniamnist.npz"
        np.savez(path, **{k: v for k, v in {**arrays(), **changed}.items() if v is not None})
        return str(path)

    return save


@pytest.mark.parametrize("colours", [(), (3,)])
def test_arrays_of_one_file_are_read_with_their_own_splits(saved, colours):
    stored = arrays(28, colours)
    path = saved(**stored)
    settings = Data.model_validate({key.removeprefix("data."): v for key, v in changes_of(path).items()})
    source = source_of(settings, 0)
    manifest = load_manifest(source, own_val=validates_own(settings))
    assert settle(manifest.doubts, []) == []
    assert manifest.images["split"].value_counts().to_dict() == {"train": 12, "test": 8, "val": 4}
    rows = manifest.rows("test")
    assert list(rows["label"]) == [0, 1] * 4
    assert rows["patient_id"].is_unique
    pixels = load_pixels(source, rows, 28).images_NCHW
    expected = stored["test_images"]
    np.testing.assert_array_equal(
        pixels, np.stack([expected] * 3, 1) if not colours else expected.transpose(0, 3, 1, 2)
    )


def test_other_labels_are_mapped(saved):
    source = NpzSource(saved(), Classes(negative=["*"], positive=["0"]))
    assert load_manifest(source).rows("test")["label"].tolist() == [1, 0] * 4


def test_labels_of_truth_values_are_1_and_0(saved):
    labels = arrays()["test_labels"] > 0
    manifest = load_manifest(NpzSource(saved(test_labels=labels)))
    assert manifest.rows("test")["label"].tolist() == [0, 1] * 4
    assert settle(manifest.doubts, []) == ["Labels True and False, taken as 1 and 0: 1 (test_labels)."]


def test_a_file_of_test_alone_is_read_where_nothing_is_trained(saved):
    only = dict.fromkeys(("train_images", "train_labels", "val_images", "val_labels"))
    source = NpzSource(saved(**only))
    assert len(load_manifest(source, training=False).images) == 8
    with pytest.raises(DataError, match="with no NORMAL image for the train split"):
        load_manifest(source)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"test_images": None}, "without test_images; expected arrays test_images, .*; add it"),
        ({"train_labels": None}, "without train_labels; expected arrays"),
        (
            {"train_images": np.zeros((12, 28, 28))},
            "train_images of float64, 12 x 28 x 28; expected uint8, .*; save it so",
        ),
        (
            {"train_labels": np.zeros((12, 14))},
            "with 12 train_images and labels of 168; expected one label for each image",
        ),
        ({"test_labels": np.array([None] * 8)}, r"which cannot be read \(ValueError: .*\); expected an .npz file"),
    ],
)
def test_mistakes_say_what_was_got_and_what_to_do(saved, changed, says):
    with pytest.raises(DataError, match=says) as e:
        NpzSource(saved(**changed)).list()
    assert "\n" not in str(e.value)


def test_no_file_and_no_archive_are_data_errors(tmp_path):
    (tmp_path / "text.npz").write_text("text")
    for name in ("gone.npz", "text.npz"):
        with pytest.raises(DataError, match=f"got .*{name}, which cannot be read .*; expected an .npz file with"):
            NpzSource(str(tmp_path / name)).list()


def test_an_image_that_is_not_there_is_an_os_error(saved):
    source = NpzSource(saved())
    for path in ("test/test-000099.pgm", "test/train-000000.pgm", "nothing"):
        with pytest.raises(FileNotFoundError):
            source.read(path)


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    labels = np.array([0, 1])
    for value in (1, 2):
        images = np.full((2, 8, 8), value, np.uint8)
        parts = {"train_images": images, "test_images": images, "train_labels": labels, "test_labels": labels}
        np.savez(tmp_path / "a.npz", **parts, note=np.zeros(value))  # type: ignore[arg-type]
        assert set(NpzSource(str(tmp_path / "a.npz")).read("test/test-000000.pgm")[-64:]) == {value}
