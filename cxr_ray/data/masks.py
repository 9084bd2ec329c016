"""Masks of parts of the images, and their counterfactual renderings."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs as pafs

from cxr_ray.config import SEGMENTER, Sweep
from cxr_ray.data import images
from cxr_ray.data.entries import AnnotatedSource, Source
from cxr_ray.data.folder import ENDINGS, FolderSource, is_junk, is_mask, opened
from cxr_ray.data.loading import Row, in_threads, unreadable
from cxr_ray.data.pairing import claims, without_ending
from cxr_ray.data.sources import SOURCES
from cxr_ray.errors import DataError, ImageError


@dataclass(frozen=True)
class MaskFolder:
    """Masks of a part of the images: images of any ending under ``path``, each named as its image (``decode_mask``).

    ``part`` is lungs or marker, a key of ``regions``, or truth, a section. Where a name stands in several folders below
    ``path``, the one whose path there is nearest to the image's counts; ``shared``: names that several images have,
    whose masks are told by their folders. ``listing``: what it is listed under; a copy shares it.
    """

    path: str
    part: str = "lungs"
    shared: frozenset[str] = frozenset()
    listing: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    def __post_init__(self) -> None:
        if "://" not in self.path:  # as in FolderSource
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))  # noqa: PTH100, PTH111
        fs, base = opened(self.path)
        if fs.get_file_info(base or "/").type != pafs.FileType.Directory:
            segmenter = f", {SEGMENTER} (a segmenter)" if self.part == "lungs" else ""
            raise DataError(
                f"regions.{self.part}: got {self.path}, which is no folder; expected the folder of the "
                f"{self.part.removesuffix('s')} masks{segmenter}, or null; set it to one of them."
            )

    def find(self, path: str) -> str | None:
        """The mask of the image at ``path`` (of its manifest row), as a path inside the folder."""
        found = self.candidates(path)
        return found[0] if len(found) == 1 else None

    def candidates(self, path: str) -> Sequence[str]:
        """Files that are as near to the image at ``path``: one is its mask; of several, none is."""
        whole = without_ending(path)
        files = _mask_files(self.path, self.listing).get(PurePosixPath(whole).name, [])
        files = [file for file in files if is_mask(str(file))] or files  # not the X-rays that lie beside them
        near = claims([str(file.with_suffix("")) for file in files], whole, self.shared)
        return [str(files[place]) for place in near]

    def read(self, path: str) -> bytes:
        """The bytes of one mask. Raises OSError where it cannot be read."""
        return FolderSource(self.path).read(path)

    def mask(self, source: Source, path: str, size: int, fit: images.Fit) -> NDArray[np.bool_]:
        """The mask of the image at ``path`` of the source, bool [size, size], where the image's pixels are.

        Raises:
            OSError, ImageError: it cannot be read.
        """
        mask_path = self.find(path)
        if mask_path is None:
            return np.zeros((size, size), bool)
        mask = images.decode_mask(self.read(mask_path))
        own = (1, 1) if fit == "squash" else images.header(source.read(path))[:2]
        return images.place_mask(mask, own, size, fit)


@functools.lru_cache(maxsize=4)
def _mask_files(folder: str, listing: str) -> dict[str, list[PurePosixPath]]:
    """Name without its ending to the files of that name, as paths inside the folder; for each ``listing`` anew."""
    fs, base = opened(folder)
    found: dict[str, list[PurePosixPath]] = {}
    for info in fs.get_file_info(pafs.FileSelector(base or "/", recursive=True)):
        inside = PurePosixPath(info.path[len(base) + 1 :])
        if info.type == pafs.FileType.File and inside.suffix.lower() in ENDINGS and not is_junk(inside.name):
            found.setdefault(inside.stem, []).append(inside)
    return found


def lungs_of(sweep: Sweep) -> MaskFolder | None:
    """The folder of lung masks that a sweep names, if it does.

    Raises:
        DataError: there is no such folder.
    """
    lungs = sweep.regions.lungs if sweep.regions else None
    if lungs is None or "lungs" in SOURCES[sweep.data.source].masks or lungs == SEGMENTER:
        return None
    return MaskFolder(lungs)


def marker_of(sweep: Sweep) -> MaskFolder | None:
    """The folder of marker masks that a sweep names, if it does and the source does not know better.

    Raises:
        DataError: there is no such folder.
    """
    marker = sweep.regions.marker if sweep.regions else None
    return None if marker is None or "marker" in SOURCES[sweep.data.source].masks else MaskFolder(marker, "marker")


class Named(Protocol):
    """What is found by the names of images: masks, or shapes in a file."""

    @property
    def shared(self) -> frozenset[str]:
        """Names that several images have."""
        ...

    def find(self, path: str) -> object | None:
        """What stands under the image at ``path``."""
        ...

    def candidates(self, path: str) -> Sequence[str]:
        """The names of all that may stand under it."""
        ...


def not_told_apart(of: Named, paths: Sequence[str]) -> str:
    """Sentences on things that have the name of several images, and on images for which there are several things.

    Nothing where there are none.
    """
    return _name_of_several(of, paths) + _several_of_name(of, paths)


def _several_of_name(of: Named, paths: Sequence[str]) -> str:
    found = [names for path in paths if len(names := of.candidates(path)) > 1]
    if not found:
        return ""
    return (
        f" For {len(found)} images there are several, such as {' and '.join(sorted(found[0])[:3])}, of which none is "
        "taken: leave one, or name the others apart."
    )


def _name_of_several(of: Named, paths: Sequence[str]) -> str:
    by_name = replace(of, shared=frozenset())  # type: ignore[type-var]
    told = {_identity(of.find(path)) for path in paths}
    shared = [path for path in paths if PurePosixPath(without_ending(path)).name in of.shared]
    lost = [path for path in shared if of.find(path) is None and _identity(by_name.find(path)) not in told]
    if not lost:
        return ""
    return (
        f" For {len(lost)} of these a file's or row's name alone agrees, which several images have, and is not taken: "
        f"name what is theirs by folder and name, such as {without_ending(lost[0])}."
    )


def _identity(found: object | None) -> object:
    """Of what was found: a path, or a thing that is kept."""
    return found if isinstance(found, str | None) else id(found)


class Parts(NamedTuple):
    """Masks and counterfactual renderings of some images: an array per name, its rows in the order asked for.

    masks: lungs, opacity, marker: bool [N, size, size]; nowhere: not known, or not there.
    counterfactuals: renderings of the images with one thing changed, by what was changed: uint8 [N, 3, size, size].
    errors: rows of ``schemas.ERRORS`` for masks that cannot be read.
    """

    masks: dict[str, NDArray[np.bool_]]
    counterfactuals: dict[str, NDArray[np.uint8]]
    errors: list[Row]


def load_parts(
    source: Source,
    folders: Sequence[MaskFolder],
    rows: Sequence[Mapping[Any, Any]],
    size: int,
    fit: images.Fit = "squash",
    preprocess: str = "none",
    changes: Sequence[str] = (),
) -> Parts:
    """Masks of the images of ``rows`` (path, image_id), and their counterfactual renderings named by ``changes``.

    All lie where ``load_pixels`` puts the images. An annotated source brings both; masks of other images come from
    folders, one a part.
    """
    paths = [row["path"] for row in rows]
    if rows and isinstance(source, AnnotatedSource):
        return _annotated_parts(source, paths, size, fit, preprocess, changes)
    if not rows:
        return Parts({}, {}, [])
    masks: dict[str, NDArray[np.bool_]] = {}
    errors: list[Row] = []
    nowhere = np.zeros((size, size), bool)
    for folder in folders:
        loaded = in_threads(functools.partial(_mask_in, source, folder, size, fit, preprocess), paths)
        errors += [
            {"path": row["path"], "image_id": row["image_id"], "stage": folder.part, "reason": mask}
            for row, mask in zip(rows, loaded, strict=True)
            if isinstance(mask, str)
        ]
        masks[folder.part] = np.stack([nowhere if isinstance(mask, str) else mask for mask in loaded])
    return Parts(masks, {}, errors)


def _annotated_parts(
    source: AnnotatedSource,
    paths: Sequence[str],
    size: int,
    fit: images.Fit,
    preprocess: str,
    changes: Sequence[str],
) -> Parts:
    def masks(path: str) -> dict[str, NDArray[np.bool_]]:
        return {
            name: images.preprocess_mask(images.fit_mask(mask, size, fit), preprocess)
            for name, mask in source.masks(path).items()
        }

    def rendering(path: str, change: str) -> NDArray[np.uint8]:
        return images.preprocess(images.decode(source.version(path, change), size, fit), preprocess)

    known = in_threads(masks, paths)
    return Parts(
        {name: np.stack([masks_of_image[name] for masks_of_image in known]) for name in known[0]},
        {change: np.stack(in_threads(functools.partial(rendering, change=change), paths)) for change in changes},
        [],
    )


def _mask_in(
    source: Source, folder: MaskFolder, size: int, fit: images.Fit, preprocess: str, path: str
) -> NDArray[np.bool_] | str:
    """The mask of the image at ``path``, nowhere where there is none; or why it cannot be read."""
    try:
        return images.preprocess_mask(folder.mask(source, path, size, fit), preprocess)
    except ImageError as e:
        return str(e)
    except (OSError, pa.ArrowException) as e:
        return unreadable(e)
