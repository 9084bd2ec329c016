"""Where experts see the finding: an expert truth for images, as masks where their pixels are.

Two masks an image: ``truth``, the shapes themselves, and ``truth_boxes``, the bounding box of each of them.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import fs as pafs

from cxr_ray.config import Sweep
from cxr_ray.data import images, shapes
from cxr_ray.data.annotations import Annotation, read
from cxr_ray.data.doubts import settle
from cxr_ray.data.entries import Source
from cxr_ray.data.folder import opened
from cxr_ray.data.loading import Row, absolute, in_threads, unreadable
from cxr_ray.data.manifest import Manifest
from cxr_ray.data.mask_checks import OVER_IMAGES, Frame, check_masks, stretch, stretched
from cxr_ray.data.masks import MaskFolder, not_told_apart
from cxr_ray.data.pairing import claims, without_ending
from cxr_ray.data.shapes import Mask, Shape
from cxr_ray.data.sources import SOURCES
from cxr_ray.errors import DataError, ImageError

TRUTH, BOXES = "truth", "truth_boxes"  # names of the masks
MOST_BYTES = 2**30  # of a file of annotations
ByName = dict[str, list[tuple[str, str, Annotation]]]  # name to path without ending, name as it stands, annotation


@dataclass(frozen=True)
class Marked:
    """What is drawn for an image.

    Attributes:
        shapes: to be joined.
        size: width and height of the image that they were drawn on; None: the image's own.
    """

    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class TruthFile:
    """A file of annotations (``annotations.FORMATS``).

    Attributes:
        path: of the file.
        format: of the file; auto: by its name and content.
        labels: those that count; none: all.
        size: width and height of the images that shapes were drawn on, where the file does not say.
        stamp: its size and time when the sweep named it; a file that changed is read anew.
        shared: names that several images have, which are told by their folders.
    """

    path: str
    format: str = "auto"
    labels: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    stamp: tuple[int, int] = (0, 0)
    shared: frozenset[str] = frozenset()

    def find(self, path: str) -> Annotation | None:
        """What the file says of the image at ``path`` (of its manifest row), whatever the label; None: nothing."""
        found = named(self._listed.by_name, path, self.shared)
        return found[0][1] if len(found) == 1 else None

    def candidates(self, path: str) -> Sequence[str]:
        """The names in the file that are as near to the image at ``path``: of several, none counts."""
        return [name for name, _ in named(self._listed.by_name, path, self.shared)]

    @property
    def _listed(self) -> _Listed:
        return _listed(self.path, self.format, self.stamp)

    @property
    def left_out(self) -> Sequence[str]:
        """What the file holds and is of no image, in words."""
        return self._listed.left_out

    def marked(self, path: str) -> Marked | None:
        """The shapes of an image, of the labels that count; None: there are none."""
        found = self.find(path)
        if found is None:
            return None
        wanted = {label.casefold() for label in self.labels}
        counted = tuple(shape for label, shape in found.shapes if not wanted or label.casefold() in wanted)
        return Marked(counted, found.size or self.size) if counted else None

    def masks(self, path: str, own: tuple[int, int], size: int, fit: images.Fit) -> tuple[Mask, Mask]:
        """truth and truth_boxes of an image, bool [size, size]; nowhere where there is none.

        Args:
            path: of its manifest row.
            own: width and height of the image's file.
            size, fit: how its pixels become a square.
        """
        marked = self.marked(path)
        if marked is None:
            return np.zeros((size, size), dtype=bool), np.zeros((size, size), dtype=bool)
        both = shapes.drawn(marked.shapes, *(marked.size or own))
        if fit != "squash" and marked.size not in (None, own):  # first as the image's file was made from the larger one
            both = images.resized_mask(both[0], own), images.resized_mask(both[1], own)
        return images.fit_mask(both[0], size, fit), images.fit_mask(both[1], size, fit)

    def named_labels(self) -> list[str]:
        """The labels of the file, in the order of their names; of those without a name, none."""
        every = [one for of_name in self._listed.by_name.values() for *_, one in of_name]
        return sorted({label for one in every for label, _ in one.shapes if label})


class _Listed(NamedTuple):
    """What a file says of images: by name, and what it holds that is of none."""

    by_name: ByName
    left_out: Sequence[str]


@functools.lru_cache(maxsize=2)
def _listed(path: str, kind: str, stamp: tuple[int, int]) -> _Listed:
    """What the file says of each image, by the image's name without its ending."""
    fs, base = opened(path)
    info = fs.get_file_info(base)
    if info.type != pafs.FileType.File or info.size > MOST_BYTES:
        what = "no file" if info.type != pafs.FileType.File else f"a file of {info.size:,} bytes"
        raise DataError(
            f"truth.path: got {path}, which is {what}; expected a .csv, .tsv, .parquet or .json file of at most "
            f"{MOST_BYTES:,} bytes, or a folder of masks; give its path."
        )
    with fs.open_input_stream(base) as stream:
        annotations = read(stream.read(), path, kind)
    found: ByName = {}
    for name, annotation in annotations.items():
        whole = without_ending(name.replace("\\", "/").strip("/"))
        found.setdefault(PurePosixPath(whole).name, []).append((whole, name, annotation))
    return _Listed(found, annotations.left_out)


def named(found: ByName, path: str, shared: Collection[str] = ()) -> list[tuple[str, Annotation]]:
    """What stands under an image's path, or the end of it: folders may be missing, or joined by _ to the name.

    Several where they are as near to it.

    >>> here = Annotation(None, ())
    >>> joined = "patient1_study1_view1"
    >>> named({joined: [(joined, joined, here)]}, "valid/patient1/study1/view1.jpg") == [(joined, here)]
    True
    """
    parts = PurePosixPath(without_ending(path)).parts
    for first in range(len(parts)):
        of_name = found.get("_".join(parts[first:]), [])
        own = "/".join((*parts[:first], "_".join(parts[first:])))
        if near := claims([whole for whole, *_ in of_name], own, shared, "/".join(parts[first:])):
            return [of_name[place][1:] for place in near]
    return []


Truth = TruthFile | MaskFolder


def truth_of(sweep: Sweep) -> Truth | None:
    """The expert truth that a sweep names, if it does; a source may bring its own.

    Raises:
        DataError: there is no such file or folder.
    """
    asked = sweep.truth
    if asked is None or asked.path is None:
        return None
    fs, base = opened(asked.path)
    info = fs.get_file_info(base or "/")
    if info.type == pafs.FileType.Directory:
        if asked.labels or asked.size or asked.format not in ("auto", "masks"):
            raise DataError(
                f"truth.path: got {asked.path}, a folder of masks, beside labels, a size or another format; expected "
                "none of them; leave them out, or name a file of annotations."
            )
        return MaskFolder(asked.path, TRUTH)
    if asked.format == "masks":
        raise DataError(
            f"truth.path: got {asked.path}, which is no folder; expected the folder of the masks; give it, or leave "
            "out truth.format."
        )
    if asked.size is not None and math.prod(asked.size) > images.MAX_PIXELS:
        got = " x ".join(map(str, asked.size))
        raise DataError(f"truth.size: got {got}; expected at most {images.MAX_PIXELS:,} pixels; correct it.")
    stamp = info.size or 0, info.mtime_ns or 0
    truth = TruthFile(absolute(asked.path), asked.format, tuple(asked.labels), asked.size, stamp)
    _listed(truth.path, truth.format, truth.stamp)  # what is wrong with it is told now
    return truth


def truth_notes(truth: Truth, manifest: Manifest, frame: Frame = OVER_IMAGES) -> list[str]:
    """How many of the test images have an expert truth, which labels it joins, and what is doubtful about it.

    Raises:
        DataError: no image has one, a label is not in the file, shapes reach beyond their images, or masks or shapes
            were drawn on images of other proportions.
    """
    test = manifest.rows("test")
    paths = list(test["path"])
    if isinstance(truth, MaskFolder):
        listed = sum(truth.find(path) is not None for path in paths)
        found, notes = check_masks(truth, test, frame)
    else:
        _check_labels(truth)
        found = sum(truth.marked(path) is not None for path in paths)
        listed = sum(truth.find(path) is not None for path in paths)
        notes = [*_check_sizes(truth, test, frame), *_joined(truth)]
    untold = not_told_apart(truth, paths)
    if isinstance(truth, TruthFile) and truth.left_out:
        untold += f" The file holds {' and '.join(truth.left_out)}, which are left out."
    if not found:
        raise DataError(
            f"truth.path: got {truth.path}, where no test image has an expert truth ({listed} of {len(paths)} are "
            f"listed); expected names such as {PurePosixPath(paths[0]).with_suffix('')}, and shapes or masks that are "
            f"not empty; give the images' names.{untold}"
        )
    without = len(paths) - found
    first = (
        f"Expert truth: {found} of {len(paths)} test images have one in {truth.path}. The other {without} "
        f"({listed - found} listed without, {len(paths) - listed} not listed) have no row in localisation.{untold}"
    )
    return [first, *notes]


def _joined(truth: TruthFile) -> list[str]:
    if len(labels := truth.named_labels()) > 1 and len(truth.labels) != 1:
        joined = ", ".join(truth.labels or labels)
        return [f"Expert truth: regions of the labels {joined} are joined into one (truth.labels chooses)."]
    return []


def _check_labels(truth: TruthFile) -> None:
    known = {label.casefold() for label in truth.named_labels()}
    if unknown := [label for label in truth.labels if label.casefold() not in known]:
        raise DataError(
            f"truth.labels: got {', '.join(unknown)}, which {truth.path} does not hold; expected one of: "
            f"{', '.join(truth.named_labels()) or 'none, since the file names no labels'}; correct it."
        )


def _check_sizes(truth: TruthFile, test: pd.DataFrame, frame: Frame) -> list[str]:
    """Shapes beyond the image were drawn on another size: by the file's size, the sweep's, or the image's own."""
    beyond: Counter[tuple[tuple[int, int], tuple[float, float]]] = Counter()
    askew: Counter[str] = Counter()
    shares, before = 0, 0
    for path, *own in test[["path", "width", "height"]].itertuples(index=False, name=None):
        if (marked := truth.marked(path)) is None:
            continue
        width, height = size = marked.size or (int(own[0]), int(own[1]))
        right, down = (max(reach) for reach in zip(*(shape.reach for shape in marked.shapes), strict=True))
        shares += 0 < max(right, down) <= 1
        before += min(min(shape.start) for shape in marked.shapes) < -1
        if right > width + 1 or down > height + 1:  # edges are rounded
            beyond[size, (right, down)] += 1
        askew.update(_askew(marked, size, own))
    if shares:
        raise DataError(
            f"truth.path: got {truth.path}, where the shapes of {shares} images reach 1 pixel at most, as shares of a "
            "side would; expected pixels; multiply x by the image's width and y by its height."
        )
    if beyond:
        (size, reach), _ = max(beyond.items(), key=lambda item: item[0][1])
        raise DataError(
            f"truth.path: got {truth.path}, where shapes of {sum(beyond.values())} images reach beyond them (to "
            f"{reach[0]:.0f} x {reach[1]:.0f} of {size[0]} x {size[1]} pixels); expected pixels of the images as they "
            "are here; set truth.size to the width and height of the images that they were drawn on."
        )
    told = settle(stretched(f"truth.path: {truth.path}", askew), frame.accept)
    if before:
        told.append(f"Expert truth: shapes of {before} images begin left of them or above; what is outside is cut off.")
    return told


def _askew(marked: Marked, size: tuple[int, int], own: Sequence[int]) -> list[str]:
    """The first size of other proportions than the file's, or of a mask's than the size that it was drawn on."""
    drawn = [(shape.width, shape.height) for shape in marked.shapes if isinstance(shape, shapes.Runs)]
    pairs = [(size, own), *((of_mask, size) for of_mask in drawn)]
    return [stretch(one, other) for one, other in pairs if not images.same_proportions(one, other)][:1]


def load_truth(
    source: Source,
    truth: Truth,
    rows: Sequence[Mapping[Any, Any]],
    size: int,
    fit: images.Fit = "squash",
    preprocess: str = "none",
) -> tuple[dict[str, Mask], list[Row]]:
    """truth and truth_boxes of the images of ``rows``, bool [N, size, size], where ``load_pixels`` puts the images.

    Nowhere where there is none. Rows of ``errors`` for masks that cannot be read, and for truths that lie outside of
    what is left of the image.
    """

    def load(path: str) -> tuple[Mask, Mask] | str:
        try:
            return _masks(source, truth, path, size, fit)
        except ImageError as e:
            return str(e)
        except (OSError, pa.ArrowException) as e:
            return unreadable(e)

    nowhere = np.zeros((size, size), dtype=bool)
    masks: dict[str, list[Mask]] = {TRUTH: [], BOXES: []}
    errors: list[Row] = []
    for row, loaded in zip(rows, in_threads(load, [row["path"] for row in rows]), strict=True):
        reason = loaded if isinstance(loaded, str) else ""
        both = (nowhere, nowhere) if isinstance(loaded, str) else loaded
        kept = [images.preprocess_mask(mask, preprocess) for mask in both]
        if not reason and not kept[0].any() and (both[0].any() or _is_marked(truth, row["path"])):
            reason = f"The expert truth lies outside of what is left of the image ({fit}, {preprocess})."
        if reason:
            errors.append({"path": row["path"], "image_id": row["image_id"], "stage": TRUTH, "reason": reason})
        for name, mask in zip(masks, kept, strict=True):
            masks[name].append(mask)
    return {name: np.stack(found) for name, found in masks.items() if found}, errors


def _is_marked(truth: Truth, path: str) -> bool:
    """Whether a file of annotations holds shapes of an image; a mask may be empty."""
    return isinstance(truth, TruthFile) and truth.marked(path) is not None


def _masks(source: Source, truth: Truth, path: str, size: int, fit: images.Fit) -> tuple[Mask, Mask]:
    if isinstance(truth, TruthFile):
        marked = truth.marked(path)
        known = marked is None or (marked.size is not None and fit == "squash")
        own = (1, 1) if known else images.header(source.read(path))[:2]
        return truth.masks(path, own, size, fit)
    mask = truth.mask(source, path, size, fit)
    return mask, boxes_of(mask)


def boxes_of(mask: Mask) -> Mask:
    """The bounding boxes of a mask's connected components, joined."""
    boxes = np.zeros_like(mask)
    for _, box in shapes.with_boxes(mask):
        boxes |= box
    return boxes


def own_truth(sweep: Sweep, masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """truth and truth_boxes of images whose source knows them, from the masks of their parts, bool [N, S, S]."""
    part = SOURCES[sweep.data.source].truth
    if sweep.truth is None or sweep.truth.path is not None or part is None or part not in masks:
        return {}
    return {TRUTH: masks[part], BOXES: np.stack([boxes_of(mask) for mask in masks[part]])}
