"""Maps from outside, put beside the images: which map is whose, where it lies, and what is told of it.

A set of maps lies over the images as they are in their files, where every map has its image's own shape, or over the
model's input, where every map is square; which, is told. Maps over the images become what the images become: ``fit``
and ``preprocess`` move them as well. Maps over the model's input that all have one side stay as they are, as an
explainer's do, unless they are larger than the input.

Shapes: B images, H, W sides of a map as it is in its file, V side of a map as the worker gets it, S side of an image.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.data import images
from cxr_ray.data.loading import Row, in_threads
from cxr_ray.data.manifest import Manifest
from cxr_ray.data.map_files import ENDINGS, Map, MapFiles
from cxr_ray.data.pairing import agreeing
from cxr_ray.errors import DataError

IDENTITY = 2**16  # parts of a path that an image_id stands for: it says more than any path


@dataclass(frozen=True)
class MapSet:
    """The maps of one name, checked.

    Attributes:
        files: where they are.
        over_images: they lie over the images as these are in their files; else over the model's input.
        side: that all have, of maps over the model's input; None: they differ.
    """

    files: MapFiles
    over_images: bool
    side: int | None

    def side_at(self, size: int) -> int:
        """V of the maps for a model of this input."""
        return size if self.side is None else min(self.side, size)

    def placed(self, map_HW: Map, size: int, fit: images.Fit, preprocess: str) -> Map:
        """A map as the worker gets it, [V, V]."""
        if not self.over_images:
            return images.fit_map(map_HW, self.side_at(size))
        moved: Map = images.PREPROCESS[preprocess].mask(images.fit_map(map_HW, size, fit)[None])[0]
        return moved


@dataclass(frozen=True)
class OutsideMaps:
    """All maps from outside of a run.

    Attributes:
        sets: by name, as the sweep lists them.
        members: image_id to the name of a set to that of the image's map in it, of those that can be used.
        errors: rows of ``schemas.ERRORS`` for images without a usable map.
        notes: lines for the user.
        digests: by name, sha256 over the image_ids and the values of their maps.
    """

    sets: Mapping[str, MapSet] = field(default_factory=dict)
    members: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    errors: Sequence[Row] = ()
    notes: Sequence[str] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Checked:
    """What reading a map once told of it."""

    shape: tuple[int, ...] = ()
    digest: str = ""
    problem: str | None = None


def load_outside_maps(paths: Mapping[str, str], manifest: Manifest) -> OutsideMaps:
    """Find the map of every test image and read each once.

    Args:
        paths: as ``explain.maps``.
        manifest: the images; those of other splits, and those left out, have a claim to a name as well.

    Raises:
        DataError: no maps are there, none is named as a test image, none can be used, or they are of two kinds.
    """
    test, others = manifest.rows("test"), set(manifest.others)
    left_out = pd.DataFrame({"image_id": manifest.others, "path": manifest.others}, dtype=str)
    every = pd.concat([manifest.images[["image_id", "path"]], left_out], ignore_index=True)
    sets, digests = {}, {}
    members: dict[str, dict[str, str]] = {}
    errors: list[Row] = []
    notes = []
    for name, path in paths.items():
        files = MapFiles(name, path)
        listed = files.list()
        found, why_not = matched(listed, every, files.is_archive)
        found = {i: member for i, member in found.items() if i not in others}
        checked = _read_all(files, {i: found[i] for i in test["image_id"] if i in found})
        _require_some(files, listed, checked, test)
        over_images = _judge(files, checked, test)
        problems = {i: c.problem for i, c in checked.items() if c.problem}
        usable = {i: c for i, c in checked.items() if not c.problem}
        _require_usable(files, usable, problems)
        sides = {c.shape for c in usable.values()}
        side = next(iter(sides))[0] if len(sides) == 1 and not over_images else None
        sets[name] = MapSet(files, over_images, side)
        lost = {i: problems.get(i) or why_not.get(i, NO_MAP) for i in test["image_id"] if i not in usable}
        errors += [
            {"path": path, "image_id": i, "stage": stage_of(name), "reason": lost[i]}
            for i, path in zip(test["image_id"], test["path"], strict=True)
            if i in lost
        ]
        for i in usable:
            members.setdefault(i, {})[name] = found[i]
        whole = sorted(f"{i} {c.digest}" for i, c in usable.items())
        digests[name] = hashlib.sha256("\n".join(whole).encode()).hexdigest()
        notes.append(_note(sets[name], usable, lost, len(set(listed) - set(found.values()))))
    return OutsideMaps(sets, members, errors, notes, digests)


NO_MAP = "No map is named as the image."


def stage_of(name: str) -> str:
    """Of rows of errors about maps of this name."""
    return f"maps:{name}"


def matched(members: Sequence[str], table: pd.DataFrame, bare: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """The map of each image that has one, by image_id, and why each of the others whose name was found has none.

    A map's name is an image's where the last part of its path is the image's: with or without the ending, or its
    image_id. Of several the one counts whose path agrees with the image's in more parts; where that leaves two maps
    for an image, or two images for a map, neither is taken.

    Args:
        members: names of maps.
        table: image_id and path of all images.
        bare: names are without an ending of their own, as in an archive.
    """
    images_of: dict[str, list[int]] = {}
    parts = [PurePosixPath(path).with_suffix("").parts for path in table["path"]]
    ids = list(table["image_id"])
    for n, path in enumerate(table["path"]):
        for last in {parts[n][-1], PurePosixPath(path).name, ids[n]}:
            images_of.setdefault(last, []).append(n)
    best: dict[int, tuple[int, list[str]]] = {}  # image to the parts that agree, and the maps that agree so far
    shared: dict[int, str] = {}
    for member in members:
        own = PurePosixPath(member if bare else member[: -len(ENDINGS[0])]).parts
        claims = {
            n: IDENTITY if ids[n] == own[-1] else agreeing(own[:-1], parts[n][:-1]) for n in images_of.get(own[-1], ())
        }
        most = max(claims.values(), default=0)
        chosen = [n for n, agree in claims.items() if agree == most]
        for n in chosen:
            if len(chosen) > 1:
                shared[n] = (
                    f"{member} is named as {len(chosen)} images; name it by its image_id, or by the image's path."
                )
            elif n not in best or most > best[n][0]:
                best[n] = most, [member]
            elif most == best[n][0]:
                best[n][1].append(member)
    found = {ids[n]: maps[0] for n, (_, maps) in best.items() if len(maps) == 1}
    why_not = {ids[n]: reason for n, reason in shared.items()}
    why_not |= {
        ids[n]: f"{' and '.join(sorted(maps)[:2])} are both named as the image; leave one out, or name it by its path."
        for n, (_, maps) in best.items()
        if len(maps) > 1
    }
    return found, why_not


def _read_all(files: MapFiles, member_of: Mapping[str, str]) -> dict[str, _Checked]:
    def check(member: str) -> _Checked:
        array = read(member)
        if isinstance(array, str):
            return _Checked(problem=array)
        return _Checked(array.shape, hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest())

    with files.reader() as read:
        wanted = list(member_of.values())
        checked = list(map(check, wanted)) if files.is_archive else in_threads(check, wanted)
    return dict(zip(member_of, checked, strict=True))


def _require_some(files: MapFiles, listed: Sequence[str], checked: Mapping[str, Any], test: pd.DataFrame) -> None:
    if not checked:
        path = PurePosixPath(test["path"].iloc[0]).with_suffix("")
        raise DataError(
            f"explain.maps.{files.name}: got {files.path}, where none of {len(listed)} maps (such as {listed[0]}) is "
            f"named as one test image alone; expected names such as {test['image_id'].iloc[0]} (image_id), {path.name} "
            f"or {path}; name the maps as their images."
        )


def _judge(files: MapFiles, checked: Mapping[str, _Checked], test: pd.DataFrame) -> bool:
    """Whether the maps lie over the images as these are in their files. Maps that lie over nothing become problems.

    Raises:
        DataError: some lie over the images, others over the model's input.
    """
    sizes = zip(test["height"], test["width"], strict=True)
    own_size = dict(zip(test["image_id"], sizes, strict=True))
    shapes = {i: c.shape for i, c in checked.items() if not c.problem}
    stretched = any(height != width for height, width in shapes.values())
    over = {i: _over(shape, own_size[i], exactly=not stretched) for i, shape in shapes.items()}
    square = {i: shape[0] == shape[1] for i, shape in shapes.items()}
    for i, (height, width) in shapes.items():
        if not over[i] and not square[i]:
            own = " x ".join(map(str, own_size[i]))
            problem = f"The map has {height} x {width} values, neither square nor of its image's shape ({own})"
            checked[i].problem = f"{problem}; save it so."
    fitting = [i for i in shapes if not checked[i].problem]
    if all(over[i] for i in fitting):
        return bool(fitting)
    if all(square[i] for i in fitting):
        return False
    counted = sum(over[i] for i in fitting)
    raise DataError(
        f"explain.maps.{files.name}: got {counted} maps of their images' own shape and {len(fitting) - counted} square "
        "ones of images that are not square; expected maps over the images, or over the model's input, all alike; "
        "save them so, or name them apart."
    )


def _over(shape: tuple[int, ...], size: tuple[int, int], exactly: bool) -> bool:
    """Whether a map has the shape of its image: its size, or (not exactly) its proportions within a pixel."""
    return shape == tuple(size) if exactly else images.same_proportions(shape, size)


def _require_usable(files: MapFiles, usable: Mapping[str, Any], problems: Mapping[str, str]) -> None:
    if not usable:
        reason, n = Counter(problems.values()).most_common(1)[0]
        raise DataError(
            f"explain.maps.{files.name}: got {files.path}, none of whose {len(problems)} maps of test images can be "
            f"used ({n}: {reason.rstrip('.')}); expected a finite value for each place; save them so."
        )


def _note(of: MapSet, usable: Mapping[str, _Checked], lost: Mapping[str, str], unused: int) -> str:
    """One line: how many, where they lie, how they are resized, and what is missing."""
    shapes = Counter(c.shape for c in usable.values())
    (height, width), _ = shapes.most_common(1)[0]
    alike = f"{height} x {width}" if len(shapes) == 1 else f"of {len(shapes)} shapes, mostly {height} x {width}"
    if of.over_images:
        lies = "over the images as in their files; fit and preprocess move them as the images"
    else:
        lies = "over the model's input"
    line = (
        f"Maps {of.files.name}: {len(usable)} of {len(usable) + len(lost)} test images have one in {of.files.path}, "
        f"{alike}, {lies}. Those of another size are resized bilinearly, antialiased where that makes them smaller."
    )
    if lost:
        reasons = Counter("none is named as the image" if r == NO_MAP else r.rstrip(".") for r in lost.values())
        told = "; ".join(f"{n}: {reason}" for reason, n in reasons.most_common(2))
        line += f" {len(lost)} have none ({told}): the table errors lists them, and their values are null."
    if unused:
        line += f" {unused} maps are of no test image and are left out."
    return line


def load_maps(
    sets: Mapping[str, MapSet],
    rows: Sequence[Mapping[str, Any]],
    size: int,
    fit: images.Fit = "squash",
    preprocess: str = "none",
) -> tuple[dict[str, Map], list[Row]]:
    """The maps of images at a model's size, float32 [B, V, V] by name, NaN where there is none; and rows of errors.

    Args:
        sets: of ``OutsideMaps``.
        rows: of the images: path, image_id, and under ``maps`` their entry of ``OutsideMaps.members``.
        size, fit, preprocess: what the model's images become.
    """
    loaded: dict[str, Map] = {}
    errors: list[Row] = []
    for name, of in sets.items():
        side = of.side_at(size)
        stack: NDArray[np.float32] = np.full((len(rows), side, side), np.nan, np.float32)
        with of.files.reader() as read:
            for n, row in enumerate(rows):
                member = (row.get("maps") or {}).get(name)
                if member is None:  # told before
                    continue
                array = read(member)
                if isinstance(array, str):
                    about = {"path": row["path"], "image_id": row["image_id"]}
                    errors.append({**about, "stage": stage_of(name), "reason": array})
                else:
                    stack[n] = of.placed(array, size, fit, preprocess)
        loaded[name] = stack
    return loaded, errors
