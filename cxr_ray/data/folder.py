"""Images in folders, in Kaggle's layout, on any file system that pyarrow opens."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from cxr_ray import results
from cxr_ray.config import Classes, Splits
from cxr_ray.data import images
from cxr_ray.data.doubts import examples
from cxr_ray.data.entries import Doubt, Entries, Entry, Stamp
from cxr_ray.data.labels import LEFT_OUT, ClassMap, require_splits, split_names
from cxr_ray.data.loading import absolute, one_line
from cxr_ray.data.patients import patient_by
from cxr_ray.errors import DataError, NoFolderError

ENDINGS = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".pgm", ".ppm", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")
EXPECTED = "test/ and train/ with one folder per class, NORMAL/ and PNEUMONIA/, or the class folders alone"

_JUNK = ("__macosx", "thumbs.db", "desktop.ini")
_DEPTH = 3  # how far below data.path the split folders are looked for
_WIDTH = 1000  # and in how many folders of one depth
_MASKS = re.compile(r"(?:^|[/_\- ])(?:masks?|segs?|segmentations?)(?:[/_\-. ]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class FolderSource:
    """A folder in Kaggle's layout, on any file system that pyarrow opens.

    The shallowest folder at or below ``path`` that has test/ or train/ is taken, else the shallowest one with class
    folders alone; case does not matter. Nested copies, hidden files and what macOS and Windows leave behind are
    skipped.

    Attributes:
        path: the folder, or a URI.
        classes: which folders are the two classes.
        splits: other names of train, val and test.
        patient: as ``data.patient``.
        bits: that 16-bit images use; None: 16, which is checked.
        label: as ``data.label``.
    """

    path: str
    classes: Classes = field(default_factory=Classes)
    splits: Splits = field(default_factory=Splits)
    patient: str | None = None
    bits: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute(self.path))

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
        names = split_names(self.splits)
        tree = _Tree(fs, base, self.path, ClassMap(self.classes), names, self.patient, self.label)
        root, unsplit = tree.layout()
        require_splits(self.splits, _children(fs, root), f"the folder {root}")
        entries = list(tree.entries(root, "all") if unsplit else tree.split_entries(root))
        if self.label is not None and tree.labelled <= {None}:
            raise DataError(
                f"got data.label: {self.label}, which is found in no path of {self.path}; expected a pattern "
                "that tells the label of images; correct it, or leave it out."
            )
        return entries

    def read(self, path: str) -> bytes:
        """The bytes of one file. Raises OSError where it cannot be read, ImageError where it is too large for one."""
        fs, base = opened(self.path)
        return images.read(fs, f"{base}/{path}")

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


@dataclass(frozen=True)
class _Tree:
    """The folders below one folder, and what they are called."""

    fs: pafs.FileSystem
    base: str
    path: str
    class_map: ClassMap
    split_names: Mapping[str, str]
    patient: str | None
    label: str | None
    labelled: set[str | None] = field(default_factory=set)  # what paths told

    def layout(self) -> tuple[str, bool]:
        """The folder that holds the splits, or the classes alone (True)."""
        fs, base, path = self.fs, self.base, self.path
        kind = fs.get_file_info(base or "/").type
        if kind == pafs.FileType.File:
            raise DataError(
                f"got {path}, a file; expected a folder with {EXPECTED}; unpack it and give --data the folder."
            )
        if kind != pafs.FileType.Directory:
            raise NoFolderError(
                f"got {path}, which is no folder; expected a folder with {EXPECTED}; give --data the folder of the "
                "images."
            )
        level = [base]
        for _ in range(_DEPTH + 1):
            split, unsplit, below = [], [], []
            for folder in level:
                children = _children(fs, folder)
                if self._has_splits(children):
                    split.append(folder)
                elif any(map(self.class_map.named, children)):
                    unsplit.append(folder)
                else:
                    below += [f for found in children.values() for f in found]
            found = split or unsplit
            found += self._split_below(below) if found else []  # beside it; copies inside it are left alone
            if len(found) > 1:
                several = ", ".join(sorted(found)[:5])
                raise DataError(f"got {path} with several data sets; expected one; give --data one of {several}.")
            if found:
                return found[0], not split
            level = sorted(below)[:_WIDTH]
        raise DataError(self._no_classes())

    def _split_below(self, folders: Sequence[str]) -> list[str]:
        """The folders among these and below that hold splits."""
        found, level = [], sorted(folders)[:_WIDTH]
        for _ in range(_DEPTH):
            below: list[str] = []
            for folder in level:
                children = _children(self.fs, folder)
                if self._has_splits(children):
                    found.append(folder)
                else:
                    below += [f for inside in children.values() for f in inside]
            level = sorted(below)[:_WIDTH]
        return found

    def _has_splits(self, children: Mapping[str, Sequence[str]]) -> bool:
        """Whether one of the folders is test or train and holds a class."""
        return any(
            self.class_map.named(name)
            for child, folders in children.items()
            if self.split_names.get(child) in ("train", "test")
            for folder in folders
            for name in _children(self.fs, folder)
        )

    def _no_classes(self) -> str:
        """What to say where no folder is one of a class."""
        names = [info.base_name for info in self.fs.get_file_info(pafs.FileSelector(self.base or "/"))]
        if slashed := [name for name in names if "\\" in name]:
            return (
                f"got {self.path} with back slashes in the names of files ({slashed[0]}); expected folders; unpack the "
                "archive again: python -m zipfile -e ARCHIVE FOLDER."
            )
        have = sorted(name for found in _children(self.fs, self.base).values() for name in found)
        named = f" (it has {examples([name.rsplit('/', 1)[-1] for name in have])})" if have else ""
        return (
            f"got {self.path} without class folders, also in the folders below{named}; expected {EXPECTED}; give "
            "--data the folder that holds them, or name its folders in data.classes."
        )

    def split_entries(self, root: str) -> Iterator[Entry]:
        """The files of all splits below a folder."""
        found: dict[str, list[str]] = {}
        for name, folders in _children(self.fs, root).items():
            found.setdefault(self.split_names.get(name, ""), []).extend(folders)
        for folder in found.pop("", []):
            yield self._left_out("other_folders", folder)
        for split, folders in found.items():
            if len(folders) > 1:
                several = " and ".join(sorted(folder.rsplit("/", 1)[-1] for folder in folders))
                alike = ", which differ in case alone" if len({f.casefold() for f in folders}) == 1 else ""
                raise DataError(
                    f"got {root} with {several}{alike}, both {split}; expected one folder; merge them, or name one "
                    "differently in data.splits."
                )
            yield from self.entries(folders[0], split)

    def entries(self, folder: str, split: str) -> Iterator[Entry]:
        """The files of all classes below a folder, and what lies beside these and is left out."""
        for name, folders in _children(self.fs, folder).items():
            class_folder = _only(folders)
            yield from self._class_entries(class_folder, name, split)
        for info in self.fs.get_file_info(pafs.FileSelector(folder or "/")):
            loose = info.type == pafs.FileType.File and info.base_name.lower().endswith(ENDINGS)
            if loose and not is_junk(info.base_name):
                yield self._left_out("loose", info.path)

    def _class_entries(self, folder: str, name: str, split: str) -> Iterator[Entry]:
        called = folder.rsplit("/", 1)[-1]
        are_masks = is_mask(name) and not self.class_map.named(name)
        for path, problem in _files_below(self.fs, folder):
            inside = path[len(folder) + 1 :]
            told = patient_by(self.label, inside, inside)
            self.labelled.add(told)
            label = told or called
            class_name, doubts = self.class_map.of([label])
            if are_masks:
                class_name, doubts = LEFT_OUT, (Doubt("masks", folder[len(self.base) + 1 :]),)
            if any(is_junk(part) for part in inside.split("/")):
                continue
            if problem is None and not _may_be_image(inside):
                problem = "not an image file"
            if class_name == LEFT_OUT:
                if problem is None:
                    yield Entry(split, LEFT_OUT, inside, path[len(self.base) + 1 :], doubts=doubts)
                continue
            if is_mask(inside):
                yield self._left_out("masks", path.rsplit("/", 1)[0])
                continue
            group = self.class_map.group([label])
            yield self._entry(split, class_name, path, folder, problem)._replace(group=group)

    def _entry(self, split: str, class_name: str, path: str, folder: str, problem: str | None) -> Entry:
        """A file of a class; where its folder is not called as the class, the folder is part of its name."""
        inside, relative = path[len(folder) + 1 :], path[len(self.base) + 1 :]
        called = folder.rsplit("/", 1)[-1]
        is_called_so = called.upper() == class_name and not self.class_map.classes.several
        name = inside if is_called_so else f"{called}/{inside}"
        patient = patient_by(self.patient, relative, inside)
        untold = self.patient is not None and patient is None
        return Entry(
            split, class_name, name, relative, problem, patient, (Doubt("no_patient", relative),) if untold else ()
        )

    def _left_out(self, kind: str, path: str) -> Entry:
        relative = path[len(self.base) + 1 :]
        return Entry("", LEFT_OUT, relative, relative, doubts=(Doubt(kind, relative),))


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


def _may_be_image(name: str) -> bool:
    """Whether a file's ending is that of images; without an ending its content has to say.

    >>> [_may_be_image(name) for name in ("a.JPG", "patient7/scan", "notes.txt")]
    [True, True, False]
    """
    return name.lower().endswith(ENDINGS) or "." not in name.rsplit("/", 1)[-1]


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


def is_mask(path: str) -> bool:
    """Whether a path is named as a mask of an X-ray, and not as an X-ray.

    >>> is_mask("COVID/masks/COVID-1.png"), is_mask("COVID/images/COVID-1.png")
    (True, False)
    >>> is_mask("PNEUMONIA/1_seg.png"), is_mask("segmented/1.png")
    (True, False)
    """
    return _MASKS.search(path) is not None


def is_junk(name: str) -> bool:
    """Hidden files, and what macOS and Windows leave behind.

    >>> [is_junk(name) for name in (".DS_Store", "Thumbs.db", "__MACOSX", "IM-0115-0001.jpeg")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in _JUNK
