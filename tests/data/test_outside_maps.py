"""Which map is whose, where it lies, and what is told of images without one."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_ray.data import images, outside_maps
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.outside_maps import load_maps, load_outside_maps, matched
from cxr_ray.errors import DataError
from tests.builders.images import MemorySource, write


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def picture(seed: int, width: int, height: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def manifest(width: int = 8, height: int = 8, n: int = 2):
    """n test images of each class: test/NORMAL/n0.png and so on."""
    sizes = {
        f"test/{c}/{c[0].lower()}{i}.png": (i + 9 * len(c), width, height)
        for c in ("NORMAL", "PNEUMONIA")
        for i in range(n)
    }
    return load_manifest(MemorySource({path: picture(*of) for path, of in sizes.items()}), training=False)


def ids(of) -> dict[str, str]:
    """The last part of a path to image_id."""
    return {
        path.rsplit("/", 1)[1].split(".")[0]: i
        for path, i in zip(of.images["path"], of.images["image_id"], strict=True)
    }


def table(*paths: str) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"id{n}" for n in range(len(paths))], "path": paths})


@pytest.mark.parametrize(
    "member",
    ["x.npy", "x.png.npy", "any/folder/x.png", "NORMAL/x.npy", "test/NORMAL/x.npy", "id0.npy", "deep/id0.png"],
)
def test_a_map_is_of_the_image_whose_name_path_or_id_it_has(member):
    found, why_not = matched([member], table("test/NORMAL/x.png", "test/NORMAL/y.png"))
    assert (found, why_not) == ({"id0": member}, {})


def test_names_in_an_archive_have_no_ending_of_their_own():
    found, _ = matched(
        ["x", "y.png", "id2", "test/NORMAL/v1.2"], table("x.png", "y.png", "z.png", "test/NORMAL/v1.2.png"), True
    )
    assert found == {"id0": "x", "id1": "y.png", "id2": "id2", "id3": "test/NORMAL/v1.2"}


def test_of_two_images_of_one_name_the_one_whose_folders_agree_has_the_map():
    maps = ["NORMAL/x.npy", "PNEUMONIA/x.npy"]
    found, why_not = matched(maps, table("test/NORMAL/x.png", "test/PNEUMONIA/x.png"))
    assert (found, why_not) == ({"id0": maps[0], "id1": maps[1]}, {})


def test_a_map_named_as_two_images_is_of_neither():
    found, why_not = matched(["x.npy"], table("train/NORMAL/x.png", "test/NORMAL/x.png"))
    assert found == {}
    assert why_not == dict.fromkeys(
        ("id0", "id1"), "x.npy is named as 2 images; name it by its image_id, or by the image's path."
    )


def test_a_map_of_another_split_is_not_taken_for_a_test_image():
    found, _ = matched(["train/NORMAL/x.npy"], table("train/NORMAL/x.png", "test/NORMAL/x.png"))
    assert found == {"id0": "train/NORMAL/x.npy"}


def test_of_two_maps_for_an_image_the_more_specific_is_taken_and_of_equal_ones_none():
    images_ = table("test/NORMAL/x.png")
    assert matched(["a/x.npy", "NORMAL/x.npy"], images_)[0] == {"id0": "NORMAL/x.npy"}
    assert matched(["NORMAL/x.npy", "b/id0.npy"], images_)[0] == {"id0": "b/id0.npy"}
    found, why_not = matched(["a/x.npy", "b/x.png", "c/x.npy"], images_)
    assert found == {}
    assert why_not == {"id0": "a/x.npy and b/x.png are both named as the image; leave one out, or name it by its path."}


def test_a_test_image_without_a_usable_map_is_told_once_and_is_a_row_of_errors(tmp_path):
    of, values = manifest(), np.random.default_rng(0).random((4, 4))
    write(tmp_path, {"n0.npy": npy(values), "n1.npy": npy(values * np.nan), "other.npy": npy(values)})
    found = load_outside_maps({"mine": f"{tmp_path}/*.npy"}, of)
    assert {image: dict(members) for image, members in found.members.items()} == {ids(of)["n0"]: {"mine": "n0.npy"}}
    reasons = {row["path"]: row["reason"] for row in found.errors}
    assert reasons == {
        "test/NORMAL/n1.png": "16 of the map's 16 values are not finite; save finite numbers.",
        "test/PNEUMONIA/p0.png": "No map is named as the image.",
        "test/PNEUMONIA/p1.png": "No map is named as the image.",
    }
    assert {row["stage"] for row in found.errors} == {"maps:mine"}
    (note,) = found.notes
    assert note.startswith(
        f"Maps mine: 1 of 4 test images have one in {tmp_path}/*.npy, 4 x 4, over the model's input."
    )
    assert "3 have none (2: none is named as the image; 1: 16 of the map's 16 values are not finite" in note
    assert note.endswith("1 maps are of no test image and are left out.")
    rows = [{"image_id": i, "path": "", "maps": found.members.get(i)} for i in of.rows("test")["image_id"]]
    maps, errors = load_maps(found.sets, rows, 8)
    np.testing.assert_array_equal(maps["mine"][0], values.astype(np.float32))
    assert np.isnan(maps["mine"][1:]).all()
    assert errors == []


def test_a_map_that_cannot_be_read_later_is_a_row_of_errors(tmp_path):
    of = manifest()
    write(tmp_path, {"n0.npy": npy(np.eye(4)), "n1.npy": npy(np.eye(4))})
    found = load_outside_maps({"mine": str(tmp_path)}, of)
    (tmp_path / "n1.npy").unlink()
    rows = [{"image_id": ids(of)[n], "path": n, "maps": found.members[ids(of)[n]]} for n in ("n0", "n1")]
    maps, (error,) = load_maps(found.sets, rows, 8)
    assert np.isnan(maps["mine"][1]).all()
    assert (error["stage"], error["path"]) == ("maps:mine", "n1")
    assert error["reason"].startswith("The file cannot be read: FileNotFoundError: ")


def loaded(tmp_path, of, arrays: dict[str, np.ndarray], **at):
    """The maps of n0 and n1 as a worker gets them, and the note."""
    write(tmp_path, {f"{name}.npy": npy(array) for name, array in arrays.items()})
    found = load_outside_maps({"mine": str(tmp_path)}, of)
    rows = [{"image_id": ids(of)[n], "path": n, "maps": found.members.get(ids(of)[n])} for n in arrays]
    maps, errors = load_maps(found.sets, rows, **at)
    assert errors == []
    return maps["mine"], found.notes[0]


def test_maps_over_the_models_input_keep_their_side_unless_they_are_larger(tmp_path):
    values = np.random.default_rng(0).random((16, 16), np.float32)
    same, note = loaded(tmp_path, manifest(), {"n0": values, "n1": values.T}, size=32)
    np.testing.assert_array_equal(same, [values, values.T])
    assert "16 x 16, over the model's input" in note
    smaller, _ = loaded(tmp_path, manifest(), {"n0": values, "n1": values.T}, size=8)
    assert smaller.shape == (2, 8, 8)
    expected = Image.fromarray(values).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(smaller[0], expected)


def test_maps_of_several_sides_come_at_the_models_size(tmp_path):
    ramp = np.arange(4, dtype=np.float32)[None].repeat(4, 0)
    maps, note = loaded(tmp_path, manifest(), {"n0": ramp, "n1": np.full((5, 5), 0.1)}, size=12)
    assert maps.shape == (2, 12, 12)
    assert (np.diff(maps[0], axis=1) >= 0).all()
    np.testing.assert_array_equal(maps[1], np.float32(0.1))  # a constant map stays constant
    assert "of 2 shapes, mostly 4 x 4, over the model's input" in note


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("preprocess", ["none", "crop_border"])
def test_maps_over_the_images_move_as_the_images_do(tmp_path, fit, preprocess):
    """A map that is the image's own brightness is the brightness of the image that the model gets."""
    width, height, size = 40, 24, 20
    of = manifest(width, height)
    brightness = {f"n{i}": np.asarray(Image.open(io.BytesIO(picture(i + 54, width, height)))) for i in range(2)}
    maps, note = loaded(tmp_path, of, brightness, size=size, fit=fit, preprocess=preprocess)
    decoded = images.preprocess(images.decode(picture(54, width, height), size, fit), preprocess)[0].astype(float)
    if fit == "pad":  # black around the image, the map's least value around the map
        decoded = np.maximum(decoded, brightness["n0"].min())
        inner = slice(5, 15) if preprocess == "none" else slice(6, 14)
        decoded, maps = decoded[inner], maps[:, inner]
    np.testing.assert_allclose(maps[0], decoded, atol=2.01)  # the image is rounded to bytes at each resampling
    assert "24 x 40, over the images as in their files" in note


def test_half_the_images_size_is_over_the_image_and_another_shape_is_told(tmp_path):
    of = manifest(41, 24)
    arrays = {"n0": np.random.default_rng(0).random((12, 20)), "n1": np.random.default_rng(1).random((24, 41))}
    write(tmp_path, {"p0.npy": npy(np.ones((24, 30)))})
    maps, note = loaded(tmp_path, of, arrays, size=16)
    assert maps.shape == (2, 16, 16)
    assert "over the images as in their files" in note
    assert "1: The map has 24 x 30 values, neither square nor of its image's shape (24 x 41); save it so" in note


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"n0": np.ones((24, 41)), "n1": np.ones((8, 8))},
            "explain.maps.mine: got 1 maps of their images' own shape and 1 square ones of images that are not square; "
            "expected maps over the images, or over the model's input, all alike; save them so, or name them apart.",
        ),
        (
            {"n0": np.full((8, 8), np.nan), "n1": np.full((8, 8), np.nan)},
            "explain.maps.mine: got {path}, none of whose 2 maps of test images can be used (2: 64 of the map's 64 "
            "values are not finite; save finite numbers); expected a finite value for each place; save them so.",
        ),
        (
            {"q0": np.ones((8, 8))},
            "explain.maps.mine: got {path}, where none of 1 maps (such as q0.npy) is named as one test image alone; "
            "expected names such as {id} (image_id), n0 or test/NORMAL/n0; name the maps as their images.",
        ),
    ],
)
def test_maps_that_cannot_stand_for_the_images_are_refused(tmp_path, arrays, message):
    of = manifest(41, 24)
    write(tmp_path, {f"{name}.npy": npy(array) for name, array in arrays.items()})
    with pytest.raises(DataError) as e:
        load_outside_maps({"mine": str(tmp_path)}, of)
    assert str(e.value) == message.format(path=tmp_path, id=ids(of)["n0"])


def test_digests_follow_values_and_not_files(tmp_path):
    of, values = manifest(), np.random.default_rng(0).random((4, 4), np.float32)

    def digest(folder: str, **arrays) -> str:
        write(tmp_path / folder, {f"{name}.npy": npy(array) for name, array in arrays.items()})
        return load_outside_maps({"mine": str(tmp_path / folder)}, of).digests["mine"]

    first = digest("a", n0=values, n1=values + 1)
    assert digest("b", n0=values.astype(np.float64), n1=values + 1, nobody=values) == first
    arrays: Any = {ids(of)["n0"]: values, "test/NORMAL/n1": values + 1}
    np.savez(tmp_path / "c.npz", **arrays)
    assert load_outside_maps({"mine": str(tmp_path / "c.npz")}, of).digests["mine"] == first
    changed = [digest("d", n0=values, n1=values + 2), digest("e", n0=values), digest("f", n0=values + 1, n1=values)]
    changed.append(digest("g", n0=values.reshape(2, 8).repeat(2, 0)[:, :4], n1=values + 1))
    assert len({first, *changed}) == 5


def test_padding_is_least_and_values_stay_within_the_maps(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 30)).astype(np.float32)
    padded = images.fit_map(values, 15, "pad")
    assert (padded[:5] == values.min()).all()
    assert (padded[10:] == values.min()).all()
    assert padded.min() >= values.min()
    assert padded.max() <= values.max() + 1e-6
    assert outside_maps.IDENTITY > 1000  # parts of a path
