"""Synthetic phantoms as a source: files that exist only when they are read, with the truth about each."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.entries import Entries, Entry
from cxr_ray.data.phantoms import MIN_SIZE, Phantom, render
from cxr_ray.errors import DataError
from cxr_ray.schemas import CLASSES


@dataclass(frozen=True)
class PhantomSource:
    """Procedural images whose cause is known, as binary PGM files that exist only when read.

    Attributes:
        train: images in the train split.
        test: images in the test split.
        prevalence: share of PNEUMONIA in each split, 0 to 1; counts are round(share * images).
        marker_correlation: probability that the marker's glyph is that of the label.
        size: side, in pixels.
        seed: another seed gives other images.
    """

    train: int
    test: int
    prevalence: float
    marker_correlation: float
    size: int
    seed: int

    @property
    def where(self) -> str:
        """phantom."""
        return "phantom"

    def list(self) -> Entries:
        """train/NORMAL/phantom-000000.pgm and so on; no number stands twice, so each image is its own patient.

        Raises:
            DataError: the size is below the smallest that can be drawn, or a class would be empty.
        """
        if self.size < MIN_SIZE:
            raise DataError(
                f"got phantoms of {self.size} pixels; expected {MIN_SIZE} or more; set data.size to {MIN_SIZE} or more."
            )
        entries = []
        for split, first, count in (("train", 0, self.train), ("test", self.train, self.test)):
            positive = round(count * self.prevalence)
            if count and not 0 < positive < count:
                raise DataError(
                    f"got {positive} PNEUMONIA of {count} {split} phantoms; expected images of both classes; set "
                    f"data.phantom.{split} or data.phantom.prevalence."
                )
            for i in range(count):
                class_name, name = CLASSES[i < positive], f"phantom-{first + i:06d}.pgm"
                entries.append(Entry(split, class_name, name, f"{split}/{class_name}/{name}"))
        return entries

    def read(self, path: str) -> bytes:
        """The phantom as a binary PGM file; the same bytes each time."""
        return _phantom_file(*self._arguments(path))

    def masks(self, path: str) -> dict[str, NDArray[np.bool_]]:
        """The places of ``lungs``, ``opacity`` and ``marker``, bool [size, size]."""
        phantom = _phantom(*self._arguments(path))
        return {"lungs": phantom.lungs, "opacity": phantom.opacity, "marker": phantom.marker}

    def version(self, path: str, change: str) -> bytes:
        """The phantom drawn again without its ``opacity``, without its ``marker``, or with the other ``glyph``."""
        return _pgm(_phantom(*self._arguments(path), **_VERSIONS[change]).image)

    def _arguments(self, path: str) -> tuple[int, int, int, float]:
        match = re.fullmatch(rf"(?:train|test)/({'|'.join(CLASSES)})/phantom-(\d+)\.pgm", path)
        if match is None or int(match[2]) >= self.train + self.test:
            raise FileNotFoundError(f"there is no phantom {path!r}")
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{int(match[2])}".encode()).digest()[:7])
        return seed, CLASSES.index(match[1]), self.size, self.marker_correlation


_VERSIONS: dict[str, dict[str, Any]] = {
    "opacity": {"opacity": False},
    "marker": {"marker": "none"},
    "glyph": {"marker": "other"},
}


def _phantom(seed: int, label: int, size: int, marker_correlation: float, **changes: Any) -> Phantom:
    return render(seed, label, size, marker_correlation=marker_correlation, **changes)


def _pgm(image: NDArray[np.uint8]) -> bytes:
    return b"P5\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


@functools.lru_cache(maxsize=768)  # one costs about 50 ms, and the manifest and the pixels both ask; 38 MB at size 224
def _phantom_file(seed: int, label: int, size: int, marker_correlation: float) -> bytes:
    return _pgm(_phantom(seed, label, size, marker_correlation).image)
