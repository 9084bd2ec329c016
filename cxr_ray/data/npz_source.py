"""Images in one .npz file with its own splits, as MedMNIST publishes PneumoniaMNIST (28 to 224 pixels)."""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs as pafs

from cxr_ray import results
from cxr_ray.config import Classes
from cxr_ray.data.entries import Doubt, Entries, Entry, Stamp
from cxr_ray.data.labels import LEFT_OUT, TRUE_FALSE, ClassMap
from cxr_ray.data.loading import absolute, one_line
from cxr_ray.errors import DataError
from cxr_ray.reading import TooLargeError

LARGEST = 2**34  # bytes of all arrays
SPLITS = ("train", "val", "test")
EXPECTED = "arrays test_images, test_labels and the same of train (and val), as in PneumoniaMNIST"


@dataclass(frozen=True)
class NpzSource:
    """Arrays ``<split>_images``, uint8 [N, H, W] or [N, H, W, 3], and ``<split>_labels``, [N] or [N, 1].

    Attributes:
        path: the file, or a URI.
        classes: which labels are the two classes.
    """

    path: str
    classes: Classes = field(default_factory=Classes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute(self.path))

    @property
    def where(self) -> str:
        """The file."""
        return self.path

    def list(self) -> Entries:
        """train/train-000000.pgm and so on: an entry for each image.

        Raises:
            DataError: no such file, or not the arrays that are expected.
        """
        return list(self._entries())

    def _entries(self) -> Iterator[Entry]:
        arrays, class_map = _arrays(self.path, _stamp(self.path)), ClassMap(self.classes)
        named = any(map(class_map.named, TRUE_FALSE))
        for split in SPLITS:
            if f"{split}_images" not in arrays:
                continue
            labels = arrays[f"{split}_labels"]
            if labels.dtype == bool and not named:
                about = f"{split}_labels"
                yield Entry("", LEFT_OUT, about, about, doubts=(Doubt("true_false", about),))
                labels = labels.astype(np.uint8)
            for i, label in enumerate(labels):
                class_name, doubts = class_map.of([str(label)])
                name = f"{split}-{i:06d}.pgm"
                group = class_map.group([str(label)])
                yield Entry(split, class_name, name, f"{split}/{name}", doubts=doubts, group=group)

    def read(self, path: str) -> bytes:
        """The image as a binary PGM or PPM file."""
        found = re.fullmatch(r"(train|val|test)/\1-(\d{6,})\.pgm", path)
        images = _arrays(self.path, _stamp(self.path)).get(f"{found[1]}_images") if found else None
        if found is None or images is None or int(found[2]) >= len(images):
            raise FileNotFoundError(f"there is no image {path!r}")
        image = images[int(found[2])]
        kind = b"P5" if image.ndim == 2 else b"P6"
        return kind + b"\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def _check(file: Any) -> None:
    """Refuse what is no archive, which numpy would read whole, or one that holds more than it should."""
    if file.read(2) != b"PK":
        raise ValueError("no archive of arrays")
    with zipfile.ZipFile(file) as archive:
        if (size := sum(entry.file_size for entry in archive.infolist())) > LARGEST:
            raise TooLargeError(size, LARGEST)
    file.seek(0)


def _stamp(path: str) -> Stamp | None:
    """Size and time of the file, which may be written anew; None on other machines, or where there is none."""
    try:
        fs, inside = results.filesystem(path)
        if not isinstance(fs, pafs.LocalFileSystem):
            return None
        status = Path(inside).stat()
    except (OSError, ValueError, pa.ArrowException):  # told where it is read
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # a gigabyte at most, and one source a run
def _arrays(path: str, stamp: Stamp | None) -> dict[str, NDArray[Any]]:
    """The arrays of the file of this stamp, checked; labels one-dimensional.

    Raises:
        DataError: as ``NpzSource.list``.
    """
    try:
        fs, inside = results.filesystem(path)
        with fs.open_input_file(inside) as file:
            _check(file)
            stored = np.load(file, allow_pickle=False)
            arrays = {
                name: stored[name] for name in stored.files if re.fullmatch(r"(train|val|test)_(images|labels)", name)
            }
    except Exception as e:  # numpy raises zipfile's errors, its own and the system's
        raise DataError(
            f"got {path}, which cannot be read ({one_line(e)}); expected an .npz file with {EXPECTED}; give its path."
        ) from e
    for split in SPLITS:
        images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
        if split != "test" and images is None and labels is None:  # without train, nothing can be trained
            continue
        if images is None or labels is None:
            raise DataError(
                f"got {path} without {split}_{'images' if images is None else 'labels'}; expected {EXPECTED}; add it."
            )
        is_picture = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if images.dtype != np.uint8 or not is_picture:
            shape = " x ".join(map(str, images.shape))
            raise DataError(
                f"got {path} with {split}_images of {images.dtype}, {shape}; expected uint8, N x H x W or N x H x W x "
                "3; save it so."
            )
        if labels.size != len(images):
            raise DataError(
                f"got {path} with {len(images)} {split}_images and labels of {labels.size}; expected one label for "
                "each image; for several findings, write a table."
            )
        arrays[f"{split}_labels"] = labels.reshape(-1)
    return arrays
