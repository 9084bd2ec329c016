"""The cache of pixels on disk: the same pixels, filled once, and again where a file is not what was written."""

import errno
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxr_ray.data import pixel_cache
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.pixel_cache import PixelCache, gathered
from cxr_ray.errors import DataError
from tests.builders.images import MemorySource, picture

SIZE = 16


class Counted(MemorySource):
    """A source that counts what is read."""

    def __init__(self, files):
        super().__init__(files)
        self.read_paths: list[str] = []

    def read(self, path):
        self.read_paths.append(path)
        return super().read(path)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> PixelCache:
    """Ten images, the fourth of them cut off, in parts of three."""
    monkeypatch.setattr(pixel_cache, "PART", 3)
    files = {f"test/NORMAL/{n}.jpeg": picture(n, size=24)[: 200 if n == 3 else None] for n in range(10)}
    rows = pd.DataFrame({"path": list(files), "image_id": [f"{n:016x}" for n in range(10)]})
    return PixelCache(Counted(files), rows, SIZE, folder=str(tmp_path / "cache"))


def assert_right(cache: PixelCache) -> None:
    source: Any = cache.source
    got, expected = cache.open(), load_pixels(MemorySource(source.files), cache.rows, SIZE)
    np.testing.assert_array_equal(got.images_NCHW, expected.images_NCHW)
    np.testing.assert_array_equal(got.keep, expected.keep)
    assert got.errors == expected.errors
    assert len(got.errors) == 1


def test_the_file_holds_what_load_pixels_gives_and_is_filled_once(cache):
    assert_right(cache)
    assert isinstance(cache.open().images_NCHW, np.memmap)
    assert_right(pickle.loads(pickle.dumps(cache)))
    assert len(cache.source.read_paths) == 10


def test_the_file_is_another_one_for_other_bits_and_other_decoders(cache, monkeypatch):
    names = {cache.path}
    cache.source.bits = 12
    names.add(cache.path)
    monkeypatch.setattr(pixel_cache, "decoders", lambda: "another version")
    names.add(cache.path)
    assert len(names) == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def forget(path: Path) -> None:
    path.unlink()


def half_written_marker(path: Path) -> None:
    path.with_suffix(".json").write_text(path.with_suffix(".json").read_text()[:-9])


def other_marker(path: Path) -> None:
    path.with_suffix(".json").write_text(json.dumps([1]))


@pytest.mark.parametrize("damage", [cut, flip, forget, half_written_marker, other_marker])
def test_a_file_that_is_not_what_was_written_is_filled_again(cache, damage):
    cache.open()
    damage(cache.path)
    assert_right(cache)
    assert len(cache.source.read_paths) == 20


def test_a_process_that_died_while_it_filled_leaves_nothing_that_is_taken(cache, monkeypatch):
    class Died(BaseException):
        pass

    def dies(source, rows, *how):
        if rows["path"].iloc[0].endswith("6.jpeg"):
            raise Died
        return load_pixels(source, rows, *how)

    monkeypatch.setattr(pixel_cache, "load_pixels", dies)
    with pytest.raises(Died):
        cache.open()
    assert not cache.path.exists()
    monkeypatch.undo()
    assert_right(cache)


def test_several_that_open_at_once_fill_it_once(cache):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: np.array(cache.open().images_NCHW), range(4)))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert len(cache.source.read_paths) == 10


def test_other_images_sizes_and_preprocessing_have_files_of_their_own(cache):
    fewer = cache.rows.iloc[1:]
    others = [
        PixelCache(cache.source, fewer, SIZE, folder=cache.folder),
        PixelCache(cache.source, cache.rows, SIZE + 1, folder=cache.folder),
        PixelCache(cache.source, cache.rows, SIZE, "pad", folder=cache.folder),
        PixelCache(cache.source, cache.rows, SIZE, preprocess="mask_border", folder=cache.folder),
    ]
    assert len({cache.path, *(other.path for other in others)}) == 5


def test_images_are_gathered_in_the_order_asked_for(cache):
    pixels = cache.open().images_NCHW
    chosen = [7, 0, 7, 3]
    np.testing.assert_array_equal(gathered(pixels, chosen), np.array(pixels)[chosen])


def test_a_folder_that_cannot_be_used_is_a_sentence_and_a_full_disk_stays_what_it_is(cache, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="name another with TMPDIR"):
        cache.open()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PixelCache, "_opened", full)
    with pytest.raises(OSError, match="No space left"):
        cache.open()
