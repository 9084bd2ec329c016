"""Files of maps as people have them, and those that are none: each a sentence."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxr_ray.data.map_files import MapFiles
from cxr_ray.errors import DataError
from tests.builders.images import write

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 0.5


def npy(array, **more) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def png(array, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def read(root, files: dict[str, bytes]) -> dict:
    found = MapFiles("mine", str(write(root, files)))
    with found.reader() as reader:
        return {name: reader(name) for name in found.list()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.npy", "b.PNG", "deep/d.npy", "deep/er/c.npy"]),
        ("/*.npy", ["a.npy"]),
        ("/**/*.npy", ["a.npy", "deep/d.npy", "deep/er/c.npy"]),
        ("/deep/*", ["d.npy"]),
        ("/**/[cd].np?", ["deep/d.npy", "deep/er/c.npy"]),
    ],
)
def test_a_folder_or_a_pattern_names_the_files(tmp_path, pattern, expected):
    names = ("a.npy", "b.PNG", "deep/d.npy", "deep/er/c.npy", "notes.txt", "._a.npy", ".hidden/e.npy")
    write(tmp_path, dict.fromkeys(names, b""))
    assert MapFiles("mine", f"{tmp_path}{pattern}").list() == expected


@pytest.mark.parametrize("pattern", ["", "/**"])
def test_a_name_with_a_newline_is_found(tmp_path, pattern):
    write(tmp_path, {"a\nb.npy": b""})
    assert MapFiles("mine", f"{tmp_path}{pattern}").list() == ["a\nb.npy"]


def test_values_come_as_they_are(tmp_path):
    deep = np.array([[0, 1000], [40000, 65535]], np.uint16)
    found = read(
        tmp_path,
        {
            "a.npy": npy(VALUES.astype(np.float64)),
            "b.npy": npy(VALUES[None, :, :, None]),
            "c.png": png(deep),
            "d.png": png((deep // 257).astype(np.uint8)),
            "e.png": png((deep // 257).astype(np.uint8), "RGBA"),  # grey in all but its mode
            "f.npy": npy(VALUES > 0),
            "g.npy": npy(np.asfortranarray(VALUES)),
        },
    )
    for name in "abg":
        np.testing.assert_array_equal(found[f"{name}.npy"], VALUES)
    np.testing.assert_array_equal(found["c.png"], deep)
    for name in "de":
        np.testing.assert_array_equal(found[f"{name}.png"], deep // 257)
    np.testing.assert_array_equal(found["f.npy"], VALUES > 0)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_an_archive_holds_maps_by_name(tmp_path):
    arrays: Any = {"test/NORMAL/a": VALUES, "b": VALUES[:2]}
    np.savez_compressed(tmp_path / "all.npz", **arrays)
    found = MapFiles("mine", str(tmp_path / "all.npz"))
    assert found.list() == ["b", "test/NORMAL/a"]
    with found.reader() as reader:
        np.testing.assert_array_equal(reader("test/NORMAL/a"), VALUES)
        np.testing.assert_array_equal(reader("b"), VALUES[:2])


def promising(shape: tuple[int, ...]) -> bytes:
    """A header that promises more than there is."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def coloured(mode: str, *pixel: int) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (4, 4), pixel).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.npy",
            npy(np.where(VALUES > 0.8, np.nan, VALUES)),
            "1 of the map's 12 values are not finite; save finite n",
        ),
        (
            "a.npy",
            npy(VALUES.astype(np.float64) + 1e300),
            "12 of the map's 12 values are not finite; save finite numbers.",
        ),
        (
            "a.npy",
            npy(np.zeros((3, 4, 5))),
            "The map is an array of 3 x 4 x 5, not one value a place; save its height x",
        ),
        ("a.npy", npy(np.zeros(())), "The map is an array of no sides, not one value a place; "),
        ("a.npy", npy(np.zeros((0, 4))), "The map is an array of 0 x 4, not one value a place; "),
        ("a.npy", npy(VALUES + 1j), "The map holds values of type complex64, which have no order; save real numbers."),
        (
            "a.npy",
            npy(np.array([None]), allow_pickle=True),
            "The map holds values of type object, which have no order; ",
        ),
        ("a.npy", promising((10**6, 10**6)), "The map has more than 100 million values."),
        ("a.npy", promising((8, 8)), "The map is no .npy array, truncated or damaged: ValueError: "),
        ("a.npy", b"", "The map is no .npy array, truncated or damaged: ValueError: "),
        ("a.npy", b"PK\x03\x04", "The map is no .npy array, truncated or damaged: ValueError: "),
        ("a.png", coloured("RGB", 0, 9, 0), "The heat map is in colour or transparent, which has no order of values; "),
        (
            "a.png",
            coloured("RGBA", 9, 9, 9, 8),
            "The heat map is in colour or transparent, which has no order of value",
        ),
        ("a.png", coloured("LA", 9, 8), "The heat map is in colour or transparent, which has no order of values; "),
        (
            "a.png",
            png(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))[:200],
            "The heat map is truncated or damaged: ",
        ),
        ("a.png", npy(VALUES), "Not an image: "),
        ("a.png", b"BM" + bytes(60), "Not an image, or one with a damaged header: "),
        ("a.png", b"", "The file is empty."),
    ],
)
def test_what_is_no_map_is_told_why(tmp_path, name, content, reason):
    (found,) = read(tmp_path, {name: content}).values()
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert found.endswith(".")
    assert "\n" not in found


def test_a_jpeg_is_no_heat_map(tmp_path):
    stream = io.BytesIO()
    Image.fromarray((VALUES * 100).astype(np.uint8)).save(stream, "JPEG")
    assert read(tmp_path, {"a.png": stream.getvalue()}) == {
        "a.png": "The heat map is no PNG, which keeps values as they are; save it as PNG or .npy."
    }


def test_a_file_that_is_gone_is_told(tmp_path):
    with MapFiles("mine", str(tmp_path)).reader() as reader:
        assert reader("a.npy").startswith("The file cannot be read: FileNotFoundError: ")


@pytest.mark.parametrize(
    ("path", "files", "problem"),
    [
        ("nowhere", {}, "which is not there"),
        ("nowhere/*.npy", {}, "which is not there"),
        ("here", {"here/a.txt": b"x"}, "where no map is"),
        ("here/*.npy", {"here/a.png": b"x"}, "where no map is"),
        ("a.npz", {"a.npz": b"no archive"}, "which cannot be read ("),
        ("b.npz", {}, "which cannot be read (FileNotFoundError: "),
        ("a.npy", {"a.npy": npy(VALUES)}, "a file, which does not say whose its maps are"),
    ],
)
def test_what_holds_no_maps_is_one_sentence(tmp_path, path, files, problem):
    write(tmp_path, files)
    with pytest.raises(DataError) as e:
        MapFiles("mine", str(tmp_path / path)).list()
    message = str(e.value)
    assert message.startswith(f"explain.maps.mine: got {tmp_path / path}, {problem}")
    assert message.endswith(
        "expected a folder of .npy or grey PNG files, a pattern of them (folder/*.npy), or an .npz file; give it."
    )
    assert re.fullmatch(r".*", message)
