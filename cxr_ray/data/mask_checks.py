"""What is wrong or doubtful about the masks of the test images, seen by reading each once before the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from cxr_ray.data import images
from cxr_ray.data.doubts import Remark, examples, settle
from cxr_ray.data.loading import in_threads, unreadable
from cxr_ray.data.manifest import Manifest
from cxr_ray.data.masks import MaskFolder, not_told_apart
from cxr_ray.errors import DataError, ImageError

LARGE = 0.5  # share of an image that no lungs, marker or finding fill: the outside may be meant


class Frame(NamedTuple):
    """Where masks and annotations have to lie, and what is accepted of them.

    sizes: sides of the models' inputs.
    accept: as ``data.accept``.
    """

    sizes: frozenset[int] = frozenset()
    accept: Collection[str] = ()


OVER_IMAGES = Frame()


class _Checked(NamedTuple):
    """What reading a mask told of it: its sides and share inside, or why it cannot be used."""

    height: int = 0
    width: int = 0
    share: float = 0.0
    problem: str = ""


def mask_notes(folder: MaskFolder, manifest: Manifest, frame: Frame) -> list[str]:
    """How many of the test images have a mask, and what is doubtful about these.

    Raises:
        DataError: none has one; or as ``check_masks``.
    """
    test = manifest.rows("test")
    paths = list(test["path"])
    found, untold = sum(folder.find(path) is not None for path in paths), not_told_apart(folder, paths)
    if not found:
        raise DataError(
            f"regions.{folder.part}: got {folder.path}, where no file is named as a test image; expected names such as "
            f"{PurePosixPath(paths[0]).with_suffix('')}; give the masks their images' names.{untold}"
        )
    kind = folder.part.removesuffix("s").capitalize()
    have = f"{found} of {len(paths)} test images have one in {folder.path}"
    return [f"{kind} masks: {have}; the others' columns are null.{untold}", *check_masks(folder, test, frame)[1]]


def check_masks(folder: MaskFolder, test: pd.DataFrame, frame: Frame) -> tuple[int, list[str]]:
    """How many masks have an inside, and what is to be told of the others.

    Args:
        folder: of masks.
        test: rows of the manifest.
        frame: where they have to lie.

    Raises:
        DataError: none can be used, or some have neither their image's proportions nor the models' size.
    """
    found = [folder.find(path) for path in test["path"]]
    has = [path is not None for path in found]
    rows = list(test.loc[has, ["path", "width", "height"]].itertuples(index=False, name=None))
    checked = in_threads(lambda path: _check(folder, path), [path for path in found if path is not None])
    usable = [(row, mask) for row, mask in zip(rows, checked, strict=True) if not mask.problem]
    problems = Counter(mask.problem for mask in checked if mask.problem)
    key = "truth.path" if folder.part == "truth" else f"regions.{folder.part}"
    if checked and not usable:
        reason, n = problems.most_common(1)[0]
        raise DataError(
            f"{key}: got {folder.path}, none of whose {len(checked)} masks of test images can be used ({n}: "
            f"{reason.rstrip('.')}); expected images with 0 outside and one other value inside; save them so."
        )
    askew = [
        (tuple(own), mask) for (_, *own), mask in usable if not images.same_proportions((mask.width, mask.height), own)
    ]
    over_input = [mask for _, mask in askew if {mask.height, mask.width} == frame.sizes]
    kinds = Counter(stretch((m.width, m.height), own) for own, m in askew if {m.height, m.width} != frame.sizes)
    told = settle(stretched(f"{key}: {folder.path}", kinds), frame.accept)
    counts = {
        "empty": sum(mask.share == 0 for _, mask in usable),
        "inside in more than half of their image, where the outside may be meant": sum(
            mask.share > LARGE for _, mask in usable
        ),
        "over the model's input, as their size says": len(over_input),
        **{f"not usable ({reason.rstrip('.')})": n for reason, n in problems.most_common(2)},
    }
    if lines := [f"{n} {what}" for what, n in counts.items() if n]:
        told.insert(0, f"Masks in {folder.path}: {'; '.join(lines)}.")
    return sum(mask.share > 0 for _, mask in usable), told


def stretch(drawn: Sequence[int], own: Sequence[int]) -> str:
    """A size that a mask or an annotation says beside that of the image's file."""
    return f"{drawn[0]} x {drawn[1]} for {own[0]} x {own[1]}"


def stretched(where: str, kinds: Counter[str]) -> list[Remark]:
    """The suspicion about masks or annotations of other proportions, counted by ``stretch``; none where all fit."""
    if not kinds:
        return []
    return [Remark("stretched", sum(kinds.values()), f"{where}: {examples([kind for kind, _ in kinds.most_common()])}")]


def _check(folder: MaskFolder, path: str) -> _Checked:
    try:
        mask = images.decode_mask(folder.read(path))
    except ImageError as e:
        return _Checked(problem=str(e))
    except (OSError, pa.ArrowException) as e:
        return _Checked(problem=unreadable(e))
    height, width = mask.shape
    return _Checked(height, width, float(mask.mean()))
