"""Pixels that do not fit into memory: a memory-mapped file on the disk of each machine, filled once.

A file is named after what it holds (image_ids, size, fit, preprocessing, bits, and what decodes), written under
another name and renamed when it is whole. A second file, written last, says how many images there are and the checksum
of each part. Whatever is cut off, changed or half written is filled again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.data import dicom, images
from cxr_ray.data.entries import Source
from cxr_ray.data.images import Fit
from cxr_ray.data.loading import Pixels, Row, load_pixels, used_bits
from cxr_ray.errors import DataError
from cxr_ray.storage import temporary

_DECODERS = ("pillow", "numpy", "pydicom", "pylibjpeg", "scikit-image")
PART = 256  # images that are decoded, written and checked at a time
_VERSION = 2  # of the files


@functools.cache
def decoders() -> str:
    """What turns bytes into pixels: a digest of its code here, and of the versions of the packages that it uses."""
    what = hashlib.sha256("".join(map(inspect.getsource, (images, dicom))).encode())
    for name in _DECODERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            what.update(f"\0{name} {metadata.version(name)}".encode())
    return what.hexdigest()[:16]


@dataclass(frozen=True)
class PixelCache:
    """Images of one split as a model sees them, kept on disk. Picklable: each machine fills its own file.

    Attributes:
        source: where the images are read.
        rows: columns path and image_id.
        size, fit, preprocess: as ``load_pixels`` takes them.
        folder: where the files lie; None: ``cxr_ray-UID/pixels`` in the folder for temporary files (TMPDIR).
    """

    source: Source
    rows: pd.DataFrame
    size: int
    fit: Fit = "squash"
    preprocess: str = "none"
    folder: str | None = None

    @property
    def path(self) -> Path:
        """The file of the pixels; the one that says what it holds ends in ``.json``."""
        how = (_VERSION, self.size, self.fit, self.preprocess, used_bits(self.source), decoders())
        what = hashlib.sha256(":".join(map(str, how)).encode())
        for image_id in self.rows["image_id"]:
            what.update(f"\0{image_id}".encode())
        mine = f"cxr_ray-{os.getuid()}" if hasattr(os, "getuid") else "cxr_ray"  # users share the folder above
        folder = Path(self.folder or Path(tempfile.gettempdir(), mine, "pixels"))
        return folder / f"{what.hexdigest()[:32]}.uint8"

    def open(self) -> Pixels:
        """The pixels, read-only and memory-mapped; the file is filled where this machine has no whole one.

        Raises:
            OSError: the disk is full.
            DataError: the folder cannot be written.
        """
        try:
            return self._opened()
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(
                f"got the folder {self.path.parent} for training images, which cannot be used ({e}); expected one that "
                "can be written; name another with TMPDIR."
            ) from None

    def _opened(self) -> Pixels:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(self.path.with_suffix(".lock")):
            known = self._known()
            if known is None:
                self._fill()
                known = self._known()
            if known is None:
                raise OSError(f"got {self.path}, which changed while it was written; expected a disk that keeps files.")
        return self._pixels(known)

    def _known(self) -> dict[str, Any] | None:
        """What the second file says; None where either is not there, not whole or not what was written."""
        try:
            known: dict[str, Any] = json.loads(self.path.with_suffix(".json").read_text())
            if self.path.stat().st_size != known["images"] * self._bytes:
                return None
            return known if self._is_whole(known["parts"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def _bytes(self) -> int:
        return 3 * self.size**2

    def _is_whole(self, parts: list[list[int]]) -> bool:
        with self.path.open("rb") as file:
            return all(zlib.crc32(file.read(images * self._bytes)) == checksum for images, checksum in parts)

    def _fill(self) -> None:
        hidden = self.path.with_name(temporary(self.path.name))
        keep: list[bool] = []
        errors: list[Row] = []
        parts: list[list[int]] = []  # images and checksum of each
        try:
            with hidden.open("wb") as file:
                for start in range(0, len(self.rows), PART):
                    rows = self.rows.iloc[start : start + PART]
                    part = load_pixels(self.source, rows, self.size, self.fit, self.preprocess)
                    data = part.images_NCHW.tobytes()
                    file.write(data)
                    parts.append([len(part.images_NCHW), zlib.crc32(data)])
                    keep += part.keep.tolist()
                    errors += part.errors
                file.flush()
                os.fsync(file.fileno())
            hidden.replace(self.path)
        finally:
            hidden.unlink(missing_ok=True)
        lost = [n for n, kept in enumerate(keep) if not kept]
        known = {"images": sum(keep), "lost": lost, "errors": errors, "parts": parts}
        told = self.path.with_suffix(".json")
        hidden = told.with_name(temporary(told.name))
        hidden.write_text(json.dumps(known))
        hidden.replace(told)

    def _pixels(self, known: dict[str, Any]) -> Pixels:
        keep = np.ones(len(self.rows), bool)
        keep[known["lost"]] = False
        shape = (known["images"], 3, self.size, self.size)
        if not known["images"]:  # nothing to map
            return Pixels(np.empty(shape, np.uint8), keep, known["errors"])
        return Pixels(np.memmap(self.path, np.uint8, "r", shape=shape), keep, known["errors"])


def gathered(pixels_NCHW: NDArray[np.uint8], chosen_B: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
    """Some images in the order asked for, uint8 [B, C, H, W], read from disk in the order in which they lie there."""
    chosen = np.asarray(chosen_B)
    order = np.argsort(chosen, kind="stable")
    found = np.empty((len(chosen), *pixels_NCHW.shape[1:]), np.uint8)
    found[order] = pixels_NCHW[chosen[order]]
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, where the system can tell: the others would do the same work, and do no harm."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
