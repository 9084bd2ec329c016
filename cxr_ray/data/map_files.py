"""Maps from outside in files: an .npy or grey PNG file for each image, or one .npz archive of all.

Shapes: H, W sides of a map.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray
from pyarrow import fs as pafs

from cxr_ray.data import images
from cxr_ray.data.folder import is_junk, opened
from cxr_ray.data.loading import absolute, one_line, unreadable
from cxr_ray.errors import DataError, ImageError
from cxr_ray.reading import TooLargeError, read_file
from cxr_ray.results import split_options

Map = NDArray[np.float32]

ARCHIVE, ENDINGS = ".npz", (".npy", ".png")
WILDCARD = re.compile(r"[*?\[]")
MAX_BYTES = 2**31  # of a map: the most values in float64, and a header
EXPECTED = "a folder of .npy or grey PNG files, a pattern of them (folder/*.npy), or an .npz file"


@dataclass(frozen=True)
class MapFiles:
    """The files of one set of maps. Cheap to construct and picklable: it travels to the workers.

    Attributes:
        name: the key under ``explain.maps``.
        path: a folder (read with all folders in it), a pattern whose ``**`` is any number of folders, or an .npz file.
    """

    name: str
    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute(self.path))

    @property
    def is_archive(self) -> bool:
        """Whether it is one file of many maps."""
        place, _ = split_options(self.path)
        return place.lower().endswith(ARCHIVE) and not WILDCARD.search(place)

    @property
    def _parts(self) -> tuple[str, str]:
        """The folder of the files, what comes before the first part with a wildcard; and the pattern in it."""
        place, options = split_options(self.path)
        found = WILDCARD.search(place)
        folder = place[: found.start()].rpartition("/")[0] if found else place
        return (folder or "/") + options, place[len(folder) :].lstrip("/")

    def list(self) -> list[str]:
        """The maps: paths inside the folder, or names in the archive; sorted.

        Raises:
            DataError: there is no such folder or archive, or no map in it.
        """
        found = sorted(self._in_archive() if self.is_archive else self._in_folder())
        if not found:
            raise DataError(
                f"explain.maps.{self.name}: got {self.path}, where no map is; expected {EXPECTED}; give it."
            )
        return found

    def _in_folder(self) -> Iterator[str]:
        folder, pattern = self._parts
        fs, base = opened(folder)
        kind = fs.get_file_info(base or "/").type
        if kind != pafs.FileType.Directory:
            gone = kind == pafs.FileType.NotFound
            what = "which is not there" if gone else "a file, which does not say whose its maps are"
            raise DataError(f"explain.maps.{self.name}: got {self.path}, {what}; expected {EXPECTED}; give it.")
        wanted = _pattern(pattern)
        for info in fs.get_file_info(pafs.FileSelector(base or "/", recursive=True)):
            inside = info.path[len(base) + 1 :]
            if info.type != pafs.FileType.File or not inside.lower().endswith(ENDINGS):
                continue
            if wanted.fullmatch(inside) and not any(is_junk(part) for part in inside.split("/")):
                yield inside

    def _in_archive(self) -> Sequence[str]:
        try:
            with self._archive() as archive:
                return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except Exception as e:  # zipfile raises its own errors, struct's and the system's
            raise DataError(
                f"explain.maps.{self.name}: got {self.path}, which cannot be read ({one_line(e)}); expected "
                f"{EXPECTED}; give it."
            ) from e

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        fs, inside = opened(self.path)
        with fs.open_input_file(inside) as file, zipfile.ZipFile(file) as archive:
            yield archive

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], Map | str]]:
        """A function that reads a map by its name in ``list``: float32 [H, W], as it is; or why it cannot be used.

        Threads may share it where the maps are files of their own.
        """
        if self.is_archive:
            with self._archive() as archive:
                yield lambda name: _usable(lambda: _array(archive.open(f"{name}.npy")))
        else:
            fs, base = opened(self._parts[0])
            yield lambda name: _usable(lambda: _decoded(name, read_file(fs, f"{base}/{name}", MAX_BYTES)))


def _pattern(glob: str) -> re.Pattern[str]:
    """A regular expression of paths inside the folder; of all where there is no pattern."""
    if not glob:
        return re.compile(r".*", re.DOTALL)
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    known = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    texts = [
        known.get(p) or (p.replace("[!", "[^", 1) if WILDCARD.match(p) and len(p) > 1 else re.escape(p)) for p in parts
    ]
    try:
        return re.compile("".join(texts), re.DOTALL)
    except re.error as e:
        raise DataError(f"explain.maps: got {glob}, which is no pattern ({e}); expected {EXPECTED}; give it.") from None


def _usable(read: Callable[[], NDArray[np.generic]]) -> Map | str:
    """A map that can be ranked, or why there is none."""
    try:
        array = np.squeeze(read())  # [1, H, W] and [H, W, 1] are maps as well
    except ImageError as e:
        return str(e)
    except TooLargeError as e:
        return f"The map is too large: {e}."
    except (OSError, pa.ArrowException) as e:
        return unreadable(e)
    if array.ndim != 2 or 0 in array.shape:
        shape = " x ".join(map(str, array.shape)) or "no sides"
        return f"The map is an array of {shape}, not one value a place; save its height x width."
    with np.errstate(over="ignore"):
        values = np.asarray(array, np.float32)
    if lost := values.size - int(np.isfinite(values).sum()):
        return f"{lost} of the map's {values.size} values are not finite; save finite numbers."
    return values


def _decoded(name: str, data: bytes) -> NDArray[np.generic]:
    if PurePosixPath(name).suffix.lower() == ".npy":
        return _array(io.BytesIO(data))
    return images.grey_values(data)


def _array(stream: IO[bytes]) -> NDArray[np.generic]:
    """An array of numbers in numpy's format. The header is judged before memory is taken for what it promises.

    Raises:
        ImageError: damaged, of other than real numbers, or enormous.
    """
    try:
        with stream:
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
            shape, _, dtype = read_header(stream)
            if dtype.kind not in "biuf":
                raise ImageError(f"The map holds values of type {dtype}, which have no order; save real numbers.")
            if np.prod(shape, dtype=float) > images.MAX_PIXELS:
                raise ImageError(f"The map has more than {images.MAX_PIXELS // 10**6} million values.")
            stream.seek(0)
            return npy.read_array(stream, allow_pickle=False)
    except ImageError:
        raise
    except Exception as e:  # hostile bytes raise almost anything
        raise ImageError(f"The map is no .npy array, truncated or damaged: {one_line(e)}.") from e
