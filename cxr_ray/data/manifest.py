"""Sources of images to a manifest: which images there are, whose they are, and which split each belongs to."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs as pafs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cxr_ray import results
from cxr_ray.config import SEGMENTER, Data, Sweep
from cxr_ray.data import images
from cxr_ray.errors import DataError, ImageError
from cxr_ray.schemas import CLASSES, IMAGES

ENDINGS = (".jpeg", ".jpg", ".jpe", ".png", ".pgm", ".ppm", ".bmp", ".tif", ".tiff", ".webp")
UNSPLIT_TEST_SHARE = 0.2
HUBS = ("kaggle", "huggingface")
EXPECTED = (
    "Expected are test/ and train/ with one folder per class, NORMAL/ and PNEUMONIA/, or the class folders alone."
)

_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_JUNK = ("__macosx", "thumbs.db", "desktop.ini")
_DEPTH = 3  # how far below data.path the split folders are looked for
_WIDTH = 1000  # and in how many folders of one depth

Row = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


# ---------------------------------------------------------------------------------------------------------- sources


class Entry(NamedTuple):
    """One file of a source.

    split: train, test, val (the folder's own, which is not used) or all (a folder without splits).
    class_name: NORMAL or PNEUMONIA.
    name: the file's path inside its class folder; image_id is made of split, class_name, name and the bytes.
    path: what ``read`` takes; relative to data.path.
    problem: why the file cannot be an image; None: nothing known yet.
    """

    split: str
    class_name: str
    name: str
    path: str
    problem: str | None = None


Entries = list[Entry]


class Source(Protocol):
    """Where images come from. Cheap to construct and picklable: it travels to the workers."""

    @property
    def where(self) -> str:
        """For messages: what the user named."""
        ...

    def list(self) -> Entries:
        """Every file, in any order. Raises DataError where there is no data."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of the file at ``Entry.path``. Raises OSError."""
        ...


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
            raise DataError(f"{self.path} holds a name that is not UTF-8 ({e.object!r}): rename it.") from e
        except OSError as e:
            raise DataError(f"{self.path} cannot be listed ({_one_line(e)}): check your access to it.") from e

    def _list(self) -> Entries:
        fs, base = _filesystem(self.path)
        root, unsplit = _layout(fs, base, self.path)
        if unsplit:
            return list(_class_entries(fs, base, root, "all"))
        splits = _children(fs, root)
        return [
            entry
            for name, split in _SPLITS.items()
            if name in splits
            for entry in _class_entries(fs, base, _only(splits[name]), split)
        ]

    def read(self, path: str) -> bytes:
        """The bytes of one file. Raises OSError where it cannot be read."""
        fs, base = _filesystem(self.path)
        with fs.open_input_stream(f"{base}/{path}", compression=None) as stream:
            return stream.read()


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
        from cxr_ray.data.phantoms import MIN_SIZE

        if self.size < MIN_SIZE:
            raise DataError(f"Phantoms of {self.size} pixels cannot be drawn: set data.size to {MIN_SIZE} or more.")
        entries = []
        for split, first, count in (("train", 0, self.train), ("test", self.train, self.test)):
            positive = round(count * self.prevalence)
            if count and not 0 < positive < count:
                raise DataError(
                    f"{positive} of {count} {split} phantoms would be PNEUMONIA: set data.phantom.{split} or "
                    "data.phantom.prevalence so that both classes have images."
                )
            for i in range(count):
                class_name, name = CLASSES[i < positive], f"phantom-{first + i:06d}.pgm"
                entries.append(Entry(split, class_name, name, f"{split}/{class_name}/{name}"))
        return entries

    def read(self, path: str) -> bytes:
        """The phantom as a binary PGM file; the same bytes each time."""
        return _phantom_file(*self._arguments(path))

    def masks(self, path: str) -> dict[str, NDArray[np.bool_]]:
        """What is where: ``lungs``, ``opacity`` and ``marker``, bool [size, size]."""
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
    "opacity": {"opacity": False}, "marker": {"marker": "none"}, "glyph": {"marker": "other"}
}  # fmt: skip


def _phantom(seed: int, label: int, size: int, marker_correlation: float, **changes: Any) -> Any:
    from cxr_ray.data.phantoms import render

    return render(seed, label, size, marker_correlation=marker_correlation, **changes)


def _pgm(image: NDArray[np.uint8]) -> bytes:
    return b"P5\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


@functools.lru_cache(maxsize=768)  # one costs about 50 ms, and the manifest and the pixels both ask; 38 MB at size 224
def _phantom_file(seed: int, label: int, size: int, marker_correlation: float) -> bytes:
    return _pgm(_phantom(seed, label, size, marker_correlation).image)


def hub_folder(name: str) -> str:
    """Downloads the data set once and returns the local folder, for FolderSource.

    Args:
        name: ``kaggle`` (paultimothymooney/chest-xray-pneumonia) or ``huggingface`` (hf-vision/chest-xray-pneumonia,
            unpacked to the user's cache folder).

    Raises:
        DataError: another name, the extra ``hub`` is not installed, or the download failed.
    """
    if name not in HUBS:
        raise DataError(f"hub:{name} is not known: use {' or '.join(f'hub:{h}' for h in HUBS)}.")
    try:
        return _from_kaggle() if name == "kaggle" else _from_huggingface()
    except ImportError as e:
        raise DataError(f"hub:{name} needs a package that is not installed: pip install 'cxr-ray[hub]'.") from e
    except Exception as e:  # the clients raise their own, requests' and the system's errors
        raise DataError(
            f"hub:{name} could not be downloaded ({_one_line(e)}): download Chest X-Ray Images (Pneumonia) by hand, "
            "unpack it, and give --data its path."
        ) from e


def source_of(settings: Data, seed: int) -> Source:
    """The source that a sweep's data section names; ``seed`` is the sweep's.

    Raises:
        DataError: a hub that is unknown or cannot be reached.
    """
    if settings.source == "phantom":
        return PhantomSource(**settings.phantom.model_dump(), size=settings.size, seed=seed)
    return FolderSource(hub_folder(settings.path) if settings.source == "hub" else settings.path)


# --------------------------------------------------------------------------------------------------------- patients


def patient_of(filename: str) -> tuple[str, str]:
    """(patient_id, kind) that a file name tells, in Kaggle's naming; kind is bacteria, virus, normal or unknown.

    person123_bacteria_456.jpeg is bacteria-123, IM-0115-0001.jpeg is IM-0115, NORMAL2-IM-1430-0001.jpeg is
    NORMAL2-IM-1430; any other name is a patient of its own, its stem.
    """
    name = filename.rsplit("/", 1)[-1]
    if match := re.match(r"person(\d+)_(bacteria|virus)(?![a-z])", name, re.IGNORECASE):
        kind = match[2].lower()
        return f"{kind}-{match[1]}", kind
    if match := re.match(r"((?:NORMAL\d*-)?IM-\d+)-\d", name, re.IGNORECASE):
        return match[1].upper(), "normal"
    return PurePosixPath(name).stem, "unknown"


# --------------------------------------------------------------------------------------------------------- manifest


@dataclass(frozen=True)
class Manifest:
    """The images of a run.

    Attributes:
        images: one row an image, the columns of ``schemas.IMAGES``, ordered by split and path.
        errors: rows of ``schemas.ERRORS``, for files that are no images.
        notes: lines for the user: counts, duplicates, patients, what was left out.
        fingerprint: sha256, hex, over the sorted image_ids.
    """

    images: pd.DataFrame
    errors: list[Row]
    notes: list[str]
    fingerprint: str

    def rows(self, split: str) -> pd.DataFrame:
        """The images of a split as they are used: all of test, the first of each content of train and val."""
        chosen = self.images["split"] == split
        if split != "test":
            chosen &= self.images["duplicate_of"].isna()
        return self.images[chosen].reset_index(drop=True)

    def training_rows(self) -> pd.DataFrame:
        """``rows("train")``: none of them in val or test, not even under another name."""
        return self.rows("train")


def load_manifest(
    source: Source, *, seed: int = 0, val_share: float = 0.1, limit: int | None = None, training: bool = True
) -> Manifest:
    """Reads every file once and says what it is, whose it is, and which split it belongs to.

    image_id is the first 16 hex digits of ``sha256(f"{split}/{class}/{name}".encode() + b"\\0" + data)``: split is the
    folder's (``train`` or ``test``; ``all`` in a folder without splits), class NORMAL or PNEUMONIA in capitals, name
    the file's path inside its class folder, as it stands. Whatever is chosen is chosen by a hash of the seed and the
    image_id or patient_id, so that the order of files, their number and the machine do not matter.

    Args:
        source: where the images are.
        seed: of the choice of val, of ``limit``, and of test in a folder without splits.
        val_share: share of each label's train images that validates, whole patients, at least one and never all.
        limit: at most so many images of each split (train before val is taken from it), balanced by label.
        training: the sweep trains. If not, train and val may be empty, and a folder without splits is all test.

    Raises:
        DataError: a class has no image in test or (training) in train, or train has fewer than 2 patients of a label.
    """
    entries = source.list()
    outcomes = _in_threads(functools.partial(_describe, source), [e for e in entries if e.split != "val"])
    errors = [o for o in outcomes if "stage" in o]
    table = pd.DataFrame([o for o in outcomes if "stage" not in o], columns=[*IMAGES.columns, "person"])
    table = table.sort_values("path", ignore_index=True)
    table["patient_id"] = _merged_patients(table["patient_id"], table["content_hash"])

    unsplit = any(e.split == "all" for e in entries)
    if unsplit:
        table["split"] = _split_unsplit(table, seed) if training else "test"
    for split in ("test", "train") if training else ("test",):
        _require_classes(table, split, unsplit, source.where, errors)
    if limit is not None:
        chosen = {i for _, part in table.groupby("split") for i in choose(part["image_id"], part["label"], limit, seed)}
        table = table[table["image_id"].isin(chosen)]
    table = table.sort_values(["split", "path"], ignore_index=True)  # test sorts before train
    first = table.groupby("content_hash")["image_id"].transform("first")
    table["duplicate_of"] = first.where(first != table["image_id"], None).astype(object)

    facts = _facts(table)
    table["split"] = _with_val(table, val_share, seed, source.where, training=training, limit=limit)
    notes = [f"Images of {source.where}: {_counts(table)}."]
    if limit is not None:
        notes.append(f"limit {limit}: at most so many images of test, and of train and val together.")
    if unsplit and training:
        notes.append(f"No test and train folders: {UNSPLIT_TEST_SHARE:.0%} of the patients of each label are test.")
    elif unsplit:
        notes.append("No test and train folders: all images are test, since nothing is trained.")
    if own_val := sum(e.split == "val" and e.problem is None for e in entries):
        notes.append(f"The folder's own val split ({own_val} images) is not used: val is taken from train, by patient.")
    if errors:
        notes.append(f"Files that are no readable images: {len(errors)}; they stand in the table errors.")
    return Manifest(
        table[list(IMAGES.columns)].sort_values(["split", "path"], ignore_index=True),
        errors,
        notes + facts,
        hashlib.sha256("\n".join(sorted(table["image_id"])).encode()).hexdigest(),
    )


def choose(image_ids: Iterable[str], labels: Iterable[int], limit: int, seed: int) -> set[str]:
    """At most ``limit`` image_ids: limit // 2 of each label as far as there are, then others; by hash, not by order."""
    ranked = sorted(zip(image_ids, labels, strict=True), key=lambda pair: _rank(seed, pair[0]))
    chosen: set[str] = set()
    for label in range(len(CLASSES)):
        chosen.update([i for i, of in ranked if of == label][: limit // len(CLASSES)])
    others = [i for i, _ in ranked if i not in chosen]
    return chosen.union(others[: max(0, limit - len(chosen))])


def hold_out(patients: Iterable[str], labels: Iterable[int], share: float, seed: int, purpose: str) -> set[str]:
    """The patients to set aside, so that of each label at least ``share`` of the rows are theirs.

    Of each label at least one patient is set aside and at least one stays; a label with a single patient stays whole.

    Args:
        patients: one a row.
        labels: one a row; a patient may have both.
        share: of each label's rows.
        seed: of the order in which patients are taken.
        purpose: keeps choices of different purpose independent.
    """
    counts = Counter(zip(patients, labels, strict=True))
    labels_of: dict[str, set[int]] = {}
    for patient, label in counts:
        labels_of.setdefault(patient, set()).add(label)
    staying = Counter(label for _, label in counts)
    held: set[str] = set()
    for label in sorted(staying):
        mine = sorted((p for p, of in counts if of == label), key=lambda p: _rank(f"{seed}:{purpose}", p))
        wanted = share * sum(counts[p, label] for p in mine) - 1e-9  # 0.1 * 30 is more than 3
        got = sum(counts[p, label] for p in mine if p in held)
        for patient in mine:
            if got >= wanted and got > 0:
                break
            if patient in held or any(staying[of] == 1 for of in labels_of[patient]):
                continue
            held.add(patient)
            staying.subtract(labels_of[patient])
            got += counts[patient, label]
    return held


class Pixels(NamedTuple):
    """What ``load_pixels`` gives.

    images_NCHW: uint8 RGB [N, 3, size, size], N the rows kept, in their order.
    keep: bool, one for each row asked for.
    errors: rows of ``schemas.ERRORS`` for the others.
    """

    images_NCHW: NDArray[np.uint8]
    keep: NDArray[np.bool_]
    errors: list[Row]


def load_pixels(
    source: Source, rows: pd.DataFrame, size: int, fit: images.Fit = "squash", preprocess: str = "none"
) -> Pixels:
    """Reads, decodes and preprocesses the images of ``rows`` (columns path and image_id) in threads.

    An image that cannot be decoded is left out and becomes an error of stage ``decode``.
    """

    def load(path: str) -> NDArray[np.uint8] | str:
        try:
            return images.preprocess(images.decode(source.read(path), size, fit), preprocess)
        except ImageError as e:
            return str(e)
        except (OSError, pa.ArrowException) as e:
            return _unreadable(e)

    pixels = np.empty((len(rows), 3, size, size), np.uint8)
    keep = np.zeros(len(rows), bool)
    errors: list[Row] = []
    kept = 0
    with ThreadPoolExecutor(_threads()) as pool:
        for i, loaded in enumerate(pool.map(load, rows["path"])):
            if isinstance(loaded, str):
                row = rows.iloc[i]
                errors.append({"path": row["path"], "image_id": row["image_id"], "stage": "decode", "reason": loaded})
            else:
                pixels[kept] = loaded
                keep[i] = True
                kept += 1
    return Pixels(pixels[:kept], keep, errors)


# ---------------------------------------------------------------------------------------------------- parts of images


@dataclass(frozen=True)
class MaskFolder:
    """Lung masks: images of any ending under ``path``, above 127 in the lungs, each named as its image.

    Where a name stands in several folders below it, the one whose path there is the image's counts.
    """

    path: str

    def __post_init__(self) -> None:
        if "://" not in self.path:  # as in FolderSource
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))  # noqa: PTH100, PTH111
        fs, base = _filesystem(self.path)
        if fs.get_file_info(base or "/").type != pafs.FileType.Directory:
            raise DataError(
                f"regions.lungs: there is no folder {self.path}; give the folder of the lung masks, torchxrayvision "
                "(a segmenter), or null."
            )

    def find(self, path: str) -> str | None:
        """The mask of the image at ``path`` (of its manifest row), as a path inside the folder."""
        found = _mask_files(self.path)
        whole = PurePosixPath(path).with_suffix("")
        return found.get(str(whole)) or found.get(whole.name)

    def read(self, path: str) -> bytes:
        """The bytes of one mask. Raises OSError where it cannot be read."""
        return FolderSource(self.path).read(path)


@functools.lru_cache(maxsize=4)
def _mask_files(folder: str) -> dict[str, str | None]:
    """Path or name without its ending to the file; None for a name that several files have."""
    fs, base = _filesystem(folder)
    found: dict[str, str | None] = {}
    for info in fs.get_file_info(pafs.FileSelector(base or "/", recursive=True)):
        inside = PurePosixPath(info.path[len(base) + 1 :])
        if info.type == pafs.FileType.File and inside.suffix.lower() in ENDINGS and not _is_junk(inside.name):
            for name in {str(inside.with_suffix("")), inside.stem}:
                found[name] = None if name in found else str(inside)
    return found


def lungs_of(sweep: Sweep) -> MaskFolder | None:
    """The folder of lung masks that a sweep names, if it does.

    Raises:
        DataError: there is no such folder.
    """
    lungs = sweep.regions.lungs if sweep.regions else None
    if lungs is None or sweep.data.source == "phantom" or lungs == SEGMENTER:
        return None
    return MaskFolder(lungs)


def lung_note(lungs: MaskFolder, manifest: Manifest) -> str:
    """How many of the test images have a mask. Raises DataError where none has."""
    paths = list(manifest.rows("test")["path"])
    found = sum(lungs.find(path) is not None for path in paths)
    if not found:
        raise DataError(
            f"regions.lungs: no file in {lungs.path} is named as a test image (such as "
            f"{PurePosixPath(paths[0]).with_suffix('')}); give the masks their images' names."
        )
    return f"Lung masks: {found} of {len(paths)} test images have one in {lungs.path}; the others' columns are null."


class Parts(NamedTuple):
    """What is known of images beside their pixels; an array per name, its rows in the order asked for.

    masks: lungs, opacity, marker: bool [N, size, size]; nowhere: not known, or not there.
    rerendered: phantoms drawn again, by what was changed: uint8 [N, 3, size, size].
    errors: rows of ``schemas.ERRORS`` for masks that cannot be read.
    """

    masks: dict[str, NDArray[np.bool_]]
    rerendered: dict[str, NDArray[np.uint8]]
    errors: list[Row]


def load_parts(
    source: Source,
    lungs: MaskFolder | None,
    rows: Sequence[Row],
    size: int,
    fit: images.Fit = "squash",
    preprocess: str = "none",
    rerender: Sequence[str] = (),
) -> Parts:
    """Masks of the images of ``rows`` (path, image_id), and the versions named by ``rerender`` of phantoms.

    All lie where ``load_pixels`` puts the images.
    """

    def placed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return images.preprocess_mask(mask, preprocess)

    def of_phantom(row: Row) -> tuple[dict[str, NDArray[np.bool_]], dict[str, NDArray[np.uint8]]]:
        assert isinstance(source, PhantomSource)
        path = row["path"]
        return (
            {name: placed(images.fit_mask(mask, size, fit)) for name, mask in source.masks(path).items()},
            {
                change: images.preprocess(images.decode(source.version(path, change), size, fit), preprocess)
                for change in rerender
            },
        )

    def of_folder(row: Row) -> NDArray[np.bool_] | Row:
        assert lungs is not None
        nowhere = np.zeros((size, size), bool)
        if (path := lungs.find(row["path"])) is None:
            return nowhere
        try:
            return placed(images.decode_mask(lungs.read(path), size, fit))
        except (ImageError, OSError, pa.ArrowException) as e:
            reason = str(e) if isinstance(e, ImageError) else _unreadable(e)
            return {"path": row["path"], "image_id": row["image_id"], "stage": "lungs", "reason": reason}

    if not rows:
        return Parts({}, {}, [])
    if isinstance(source, PhantomSource):
        masks, versions = zip(*_in_threads(of_phantom, rows), strict=True)
        return Parts(
            {name: np.stack([m[name] for m in masks]) for name in masks[0]},
            {change: np.stack([v[change] for v in versions]) for change in rerender},
            [],
        )
    if lungs is None:
        return Parts({}, {}, [])
    loaded = _in_threads(of_folder, rows)
    errors = [r for r in loaded if isinstance(r, dict)]
    read = [np.zeros((size, size), bool) if isinstance(r, dict) else r for r in loaded]
    return Parts({"lungs": np.stack(read)}, {}, errors)


# --------------------------------------------------------------------------------------------------- inside a folder


@functools.lru_cache(maxsize=8)
def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    try:
        fs, base = results.filesystem(path)
    except (OSError, ValueError, pa.ArrowException) as e:
        raise DataError(
            f"{path} cannot be opened ({_one_line(e)}): give --data a folder, or a URI pyarrow knows."
        ) from e
    return fs, base.rstrip("/")


def _layout(fs: pafs.FileSystem, base: str, path: str) -> tuple[str, bool]:
    """The folder that holds the splits, or the classes alone (True)."""
    kind = fs.get_file_info(base or "/").type
    if kind == pafs.FileType.File:
        raise DataError(f"{path} is a file, not a folder: unpack it and give --data the folder. {EXPECTED}")
    if kind != pafs.FileType.Directory:
        raise DataError(f"There is no folder {path}: give --data the folder of the images. {EXPECTED}")
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
            raise DataError(f"{path} holds several data sets: give --data one of {', '.join(sorted(found)[:5])}.")
        if found:
            return found[0], not split
        level = sorted(below)[:_WIDTH]
    raise DataError(f"{path} has no class folders, also not in the folders below. {EXPECTED}")


def _children(fs: pafs.FileSystem, folder: str) -> dict[str, list[str]]:
    """Subfolders by case-folded name; none where the folder cannot be listed."""
    try:
        infos = fs.get_file_info(pafs.FileSelector(folder or "/"))
    except OSError:
        return {}
    children: dict[str, list[str]] = {}
    for info in infos:
        if info.type == pafs.FileType.Directory and not _is_junk(info.base_name):
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
            if any(_is_junk(part) for part in name.split("/")):
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
    for at, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := Path(at).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:  # pyarrow would leave out links to nothing
            path = Path(os.fsencode(Path(at, name)).decode())  # refuses a name that is not UTF-8
            wrong = "a link to nothing" if path.is_symlink() else "not an image file"
            yield str(path), None if path.is_file() else wrong


def _only(folders: list[str]) -> str:
    if len(folders) > 1:
        raise DataError(f"{' and '.join(sorted(folders))} differ in case alone: merge them into one folder.")
    return folders[0]


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


# ------------------------------------------------------------------------------------------------------------- hubs


def _from_kaggle() -> str:
    import kagglehub

    return str(kagglehub.dataset_download("paultimothymooney/chest-xray-pneumonia"))


def _from_huggingface() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr_ray"
    target = cache / "chest-xray-pneumonia"
    if target.is_dir():
        return str(target)
    import huggingface_hub

    downloaded = huggingface_hub.snapshot_download(
        "hf-vision/chest-xray-pneumonia", repo_type="dataset", allow_patterns=["*.parquet"]
    )
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=cache))
    try:
        _unpack_parquet(Path(downloaded), partial)
        try:
            partial.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(target)


def _unpack_parquet(downloaded: Path, target: Path) -> None:
    """Parquet files named by their split, columns image {bytes, path} and label, to Kaggle's layout under target."""
    import pyarrow.parquet as pq

    files = sorted(downloaded.rglob("*.parquet"))
    if not files:
        raise ValueError("the download holds no Parquet file")
    for file in files:
        split = next((w for w in re.split(r"\W", str(file.relative_to(downloaded))) if w in _SPLITS), None)
        if split is None:
            raise ValueError(f"{file.name} names no split")
        row = 0
        for batch in pq.ParquetFile(file).iter_batches(32, columns=["image", "label"]):
            for record in batch.to_pylist():
                image, label = record["image"], record["label"]
                folder = target / _SPLITS[split] / (label if label in CLASSES else CLASSES[label])
                name = PurePosixPath((image["path"] or "").replace("\\", "/")).name
                if not name or name.startswith(".") or (folder / name).exists():
                    name = f"{file.stem}-{row:06d}-{name.lstrip('.') or 'image.jpeg'}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(image["bytes"])
                row += 1


# ------------------------------------------------------------------------------------------------ inside a manifest


def _describe(source: Source, entry: Entry) -> Row:
    """A row of images (and the bare number of person123), or a row of errors."""

    def error(reason: str) -> Row:
        return {"path": entry.path, "image_id": None, "stage": "read", "reason": reason}

    if entry.problem:
        return error(entry.problem)
    try:
        data = source.read(entry.path)
        width, height, mode = images.header(data)
    except ImageError as e:
        return error(str(e))
    except (OSError, pa.ArrowException) as e:
        return error(_unreadable(e))
    identity = hashlib.sha256(f"{entry.split}/{entry.class_name}/{entry.name}\0".encode())
    identity.update(data)
    patient, kind = patient_of(entry.name)
    return {
        "image_id": identity.hexdigest()[:16],
        "content_hash": hashlib.sha256(data).hexdigest(),
        "duplicate_of": None,
        "path": entry.path,
        "split": entry.split,
        "label": CLASSES.index(entry.class_name),
        "patient_id": patient,
        "kind": kind,
        "width": width,
        "height": height,
        "mode": mode,
        "person": patient.split("-")[1] if kind in ("bacteria", "virus") else None,
    }


def _merged_patients(patients: pd.Series, contents: pd.Series) -> pd.Series:
    """Patients that share an image become one, under the smallest of their ids."""
    patient, _ = pd.factorize(patients)
    content, _ = pd.factorize(contents)
    n = len(patients)
    edges = coo_array((np.ones(n, np.int8), (patient, content + n)), shape=(2 * n, 2 * n))
    component = connected_components(edges, directed=False)[1][patient] if n else patient
    return patients.groupby(component).transform("min")


def _split_unsplit(table: pd.DataFrame, seed: int) -> NDArray[Any]:
    people = table[["patient_id", "label"]].drop_duplicates()
    test = hold_out(people["patient_id"], people["label"], UNSPLIT_TEST_SHARE, seed, "test")
    return np.where(table["patient_id"].isin(test), "test", "train").astype(object)


def _require_classes(table: pd.DataFrame, split: str, unsplit: bool, where: str, errors: list[Row]) -> None:
    for label, class_name in enumerate(CLASSES):
        if ((table["split"] == split) & (table["label"] == label)).any():
            continue
        if unsplit and (table["label"] == label).any():
            raise DataError(
                f"{where} has neither test/ nor train/, and images of too few {class_name} patients to make both: "
                "add images of other patients, or split the folder yourself."
            )
        unread = [e for e in errors if f"/{class_name}/".casefold() in f"/{e['path']}".casefold()]
        because = f" ({len(unread)} unusable files, {unread[0]['path']}: {unread[0]['reason']})" if unread else ""
        raise DataError(f"{where} has no {class_name} image for the {split} split{because}. {EXPECTED}")


def _with_val(
    table: pd.DataFrame, share: float, seed: int, where: str, *, training: bool, limit: int | None
) -> NDArray[Any]:
    """The split column with val taken from train; duplicates follow their patient and do not count."""
    used = table[(table["split"] == "train") & table["duplicate_of"].isna()]
    patients = used.groupby("label")["patient_id"].nunique().reindex(range(len(CLASSES)), fill_value=0)
    for label, class_name in enumerate(CLASSES):
        if training and patients[label] < 2:
            more = f"raise data.limit ({limit})" if limit is not None else "add images of other patients"
            raise DataError(
                f"{where} has {patients[label]} patient of {class_name} to train on, and 2 or more are needed, one of "
                f"them to validate: {more}."
            )
    if (patients < 2).any():
        return table["split"].to_numpy(object)
    val = hold_out(used["patient_id"], used["label"], share, seed, "val")
    moves = (table["split"] == "train") & table["patient_id"].isin(val)
    return np.where(moves, "val", table["split"]).astype(object)


def _counts(table: pd.DataFrame) -> str:
    parts = []
    for split in ("train", "val", "test"):
        labels = table.loc[table["split"] == split, "label"]
        if len(labels):
            by_class = ", ".join(f"{(labels == i).sum()} {name}" for i, name in enumerate(CLASSES))
            parts.append(f"{split} {len(labels)} ({by_class})")
    return "; ".join(parts)


def _facts(table: pd.DataFrame) -> list[str]:
    """What the data are like, before val is taken from train: duplicates and patients."""
    facts = []
    groups = table.groupby("content_hash").agg(
        n=("split", "size"), splits=("split", "nunique"), split=("split", "first"), labels=("label", "nunique")
    )
    groups = groups[groups["n"] > 1]
    if len(groups):
        inside = groups.loc[groups["splits"] == 1, "split"]
        facts.append(
            f"Identical files: {len(groups)} groups, {(inside == 'train').sum()} inside train, "
            f"{(inside == 'test').sum()} inside test, {(groups['splits'] > 1).sum()} in both. "
            "Test keeps its duplicates; train and val use the first of each content that test does not have."
        )
        if both := (groups["labels"] > 1).sum():
            facts.append(f"Identical files with both labels: {both} groups.")
    in_test, in_train = (table[table["split"] == s] for s in ("test", "train"))
    if len(in_train):
        shared = len(set(in_test["patient_id"]) & set(in_train["patient_id"]))
        numbers = len(set(in_test["person"].dropna()) & set(in_train["person"].dropna()))
        facts.append(f"Patients in both test and train: {shared} by kind and number; {numbers} by the number alone.")
    if unknown := (table["kind"] == "unknown").sum():
        facts.append(f"File names that tell no patient: {unknown}; each name counts as a patient.")
    return facts


def _rank(seed: int | str, value: str) -> bytes:
    return hashlib.sha256(f"{seed}:{value}".encode()).digest()


def _threads() -> int:
    return min(32, 4 * (os.cpu_count() or 1))  # reading waits, decoding releases the interpreter's lock


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with ThreadPoolExecutor(_threads()) as pool:
        return list(pool.map(function, items))


def _unreadable(error: Exception) -> str:
    return f"The file cannot be read: {_one_line(error)}."


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
