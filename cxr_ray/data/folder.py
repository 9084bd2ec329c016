"""Images in folders, in Kaggle's layout, on any file system that pyarrow opens."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from cxr_ray import results
from cxr_ray.data.entries import Entries, Entry, Stamp
from cxr_ray.data.loading import one_line
from cxr_ray.errors import DataError, NoFolderError
from cxr_ray.schemas import CLASSES

ENDINGS = (".jpeg", ".jpg", ".jpe", ".png", ".pgm", ".ppm", ".bmp", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
EXPECTED = "test/ and train/ with one folder per class, NORMAL/ and PNEUMONIA/, or the class folders alone"

_JUNK = ("__macosx", "thumbs.db", "desktop.ini")
_DEPTH = 3  # how far below data.path the split folders are looked for
_WIDTH = 1000  # and in how many folders of one depth


@dataclass(frozen=True)
class FolderSource:
    """A folder in Kaggle's layout, on any file system that pyarrow opens.

    The shallowest folder at or below ``path`` that has test/ or train/ is taken, else the shallowest one with class
    folders alone; case does not matter. Nested copies, hidden files and what macOS and Windows leave behind are
    skipped.
    """

    path: str

    def __post_init__(self) -> None:
        if "://" not in self.path:  # a worker may run in another folder
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))  # noqa: PTH100, PTH111

    @property
    def where(self) -> str:
        """The folder: an absolute path or a URI."""
        return self.path

    def list(self) -> Entries:
        """The files of all class folders; those whose ending is no image's carry a problem.

        Raises:
            DataError: no such folder, no access, no class folders, more than one folder that fits, or a name that is
                not UTF-8.
        """
        try:
            return self._list()
        except UnicodeDecodeError as e:
            raise DataError(
                f"got {self.path} with a name that is not UTF-8 ({e.object!r}); expected UTF-8; rename it."
            ) from e
        except OSError as e:
            raise DataError(
                f"got {self.path}, which cannot be listed ({one_line(e)}); expected a folder; check your access to it."
            ) from e

    def _list(self) -> Entries:
        fs, base = opened(self.path)
        root, unsplit = _layout(fs, base, self.path)
        if unsplit:
            return list(_class_entries(fs, base, root, "all"))
        splits = _children(fs, root)
        return [
            entry
            for name, split in SPLITS.items()
            if name in splits
            for entry in _class_entries(fs, base, _only(splits[name]), split)
        ]

    def read(self, path: str) -> bytes:
        """The bytes of one file. Raises OSError where it cannot be read."""
        fs, base = opened(self.path)
        with fs.open_input_stream(f"{base}/{path}", compression=None) as stream:
            return stream.read()

    def stamp(self, path: str) -> Stamp | None:
        """Size and time of one file; None on other machines, whose answer takes as long as the file."""
        fs, base = opened(self.path)
        if not isinstance(fs, pafs.LocalFileSystem):
            return None
        status = Path(base, path).stat()
        return Stamp(status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def opened(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a folder, and the folder's path there. Raises DataError where there is none."""
    try:
        fs, base = results.filesystem(path)
    except (OSError, ValueError, pa.ArrowException) as e:
        raise DataError(
            f"got {path}, which cannot be opened ({one_line(e)}); expected a folder; give its path, or a URI that "
            "pyarrow knows."
        ) from e
    return fs, base.rstrip("/")


def _layout(fs: pafs.FileSystem, base: str, path: str) -> tuple[str, bool]:
    """The folder that holds the splits, or the classes alone (True)."""
    kind = fs.get_file_info(base or "/").type
    if kind == pafs.FileType.File:
        raise DataError(f"got {path}, a file; expected a folder with {EXPECTED}; unpack it and give --data the folder.")
    if kind != pafs.FileType.Directory:
        raise NoFolderError(
            f"got {path}, which is no folder; expected a folder with {EXPECTED}; give --data the folder of the images."
        )
    level = [base]
    for _ in range(_DEPTH + 1):
        split, unsplit, below = [], [], []
        for folder in level:
            children = _children(fs, folder)
            if any(_class_folders(fs, f) for name in ("test", "train") for f in children.get(name, ())):
                split.append(folder)
            elif any(c.casefold() in children for c in CLASSES):
                unsplit.append(folder)
            else:
                below += [f for found in children.values() for f in found]
        found = split or unsplit
        if len(found) > 1:
            several = ", ".join(sorted(found)[:5])
            raise DataError(f"got {path} with several data sets; expected one; give --data one of {several}.")
        if found:
            return found[0], not split
        level = sorted(below)[:_WIDTH]
    raise DataError(
        f"got {path} without class folders, also in the folders below; expected {EXPECTED}; give --data the folder "
        "that holds them."
    )


def _children(fs: pafs.FileSystem, folder: str) -> dict[str, list[str]]:
    """Subfolders by case-folded name; none where the folder cannot be listed."""
    try:
        infos = fs.get_file_info(pafs.FileSelector(folder or "/"))
    except OSError:
        return {}
    children: dict[str, list[str]] = {}
    for info in infos:
        if info.type == pafs.FileType.Directory and not is_junk(info.base_name):
            children.setdefault(info.base_name.casefold(), []).append(info.path)
    return children


def _class_folders(fs: pafs.FileSystem, folder: str) -> dict[str, list[str]]:
    children = _children(fs, folder)
    return {c: children[c.casefold()] for c in CLASSES if c.casefold() in children}


def _class_entries(fs: pafs.FileSystem, base: str, folder: str, split: str) -> Iterator[Entry]:
    for class_name, found in _class_folders(fs, folder).items():
        class_folder = _only(found)
        for path, problem in _files_below(fs, class_folder):
            name = path[len(class_folder) + 1 :]
            if any(is_junk(part) for part in name.split("/")):
                continue
            if problem is None and not name.lower().endswith(ENDINGS):
                problem = "not an image file"
            yield Entry(split, class_name, name, path[len(base) + 1 :], problem)


def _files_below(fs: pafs.FileSystem, folder: str) -> Iterator[tuple[str, str | None]]:
    """Paths of files, and why one cannot be an image. On a local disk no folder twice, though links form a ring."""
    if not isinstance(fs, pafs.LocalFileSystem):
        for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True)):
            if info.type != pafs.FileType.Directory:
                yield info.path, None if info.type == pafs.FileType.File else "not an image file"
        return

    def fail(error: OSError) -> None:
        raise error

    seen = set(Path(folder).resolve().parents)
    for current, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := Path(current).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:  # pyarrow would leave out links to nothing
            path = Path(os.fsencode(Path(current, name)).decode())  # refuses a name that is not UTF-8
            wrong = "a link to nothing" if path.is_symlink() else "not an image file"
            yield str(path), None if path.is_file() else wrong


def _only(folders: list[str]) -> str:
    if len(folders) > 1:
        alike = " and ".join(sorted(folders))
        raise DataError(f"got {alike}, which differ in case alone; expected one folder; merge them.")
    return folders[0]


def is_junk(name: str) -> bool:
    """Hidden files, and what macOS and Windows leave behind.

    >>> [is_junk(name) for name in (".DS_Store", "Thumbs.db", "__MACOSX", "IM-0115-0001.jpeg")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in _JUNK
