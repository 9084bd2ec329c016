"""A source to a manifest: which images there are, whose they are, and which split each belongs to."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pandas as pd
import pyarrow as pa

from cxr_ray.counting import NOBODY, done, telling
from cxr_ray.data import dicom, images
from cxr_ray.data.doubts import Remark, examples, remarks
from cxr_ray.data.entries import Entries, Entry, Source, Stamp, StampedSource
from cxr_ray.data.folder import EXPECTED, FolderSource
from cxr_ray.data.loading import Row, at_once, in_threads, unreadable
from cxr_ray.data.pairing import shared_names, without_ending
from cxr_ray.data.patients import BY_FOLDERS, KAGGLE, merged_patients, patient_of
from cxr_ray.data.remembered import Known, Memory
from cxr_ray.data.splits import UNSPLIT_TEST_SHARE, choose, split_unsplit, with_val
from cxr_ray.errors import DataError, ImageError, MissingPackageError
from cxr_ray.schemas import CLASSES, IMAGES

NO_IMAGES = {
    "masks",
    "loose",
    "unlisted",
    "other_folders",
    "unread_columns",
    "true_false",
}  # doubts of entries that may be none
DEPTH_SAMPLE = 64  # 16-bit images that are read for the range of their values
MOST_DARK = 0.1  # share of them that may end below half of their range
PORTION = 8192  # files that are described before they become columns
_MORE = pa.schema({"person": pa.string(), "known_by": pa.string()})


@dataclass(frozen=True)
class Manifest:
    """The images of a run.

    Attributes:
        images: one row an image, the columns of ``schemas.IMAGES``, ordered by split and path.
        errors: rows of ``schemas.ERRORS``, for files that are no images.
        notes: lines for the user: counts, duplicates, patients, what was left out.
        doubts: what the user should know of, and confirm where it is a suspicion.
        fingerprint: sha256, hex, over the sorted image_ids.
        others: paths of the source's images that the run leaves out, by ``limit``, class or split: they have their
            names as well, and what is named so may be theirs.
        shared: names that several of all images have (``pairing.shared_names``).
    """

    images: pd.DataFrame
    errors: list[Row]
    notes: list[str]
    fingerprint: str
    doubts: list[Remark] = field(default_factory=list)
    others: Sequence[str] = ()
    shared: frozenset[str] = frozenset()

    @property
    def table(self) -> pa.Table:
        """``images`` as the table of the run."""
        return IMAGES.build({name: self.images[name] for name in IMAGES.columns})

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
    source: Source,
    entries: Entries | None = None,
    *,
    seed: int = 0,
    val_share: float = 0.1,
    limit: int | None = None,
    training: bool = True,
    own_val: bool = False,
) -> Manifest:
    """Reads every file once and says what it is, whose it is, and which split it belongs to.

    image_id is the first 16 hex digits of ``sha256(f"{split}/{class}/{name}".encode() + b"\\0" + data)``: split is the
    folder's (``train`` or ``test``; ``all`` in a folder without splits), class NORMAL or PNEUMONIA in capitals (of
    several, its own name, whichever is measured), name the file's path inside its class folder, as it stands. Whatever
    is chosen is chosen by a hash of the seed and the image_id or patient_id, so that the order of files, their number
    and the machine do not matter.

    Args:
        source: where the images are.
        entries: what the source lists, where that is known already.
        seed: of the choice of val, of ``limit``, and of test in a folder without splits.
        val_share: share of each label's train images that validates, whole patients, at least one and never all.
        limit: at most so many images of each split (train before val is taken from it), balanced by label.
        training: the sweep trains. If not, train and val may be empty, and a folder without splits is all test.
        own_val: the source's own val split validates, where it has one; else val is taken from train.

    Raises:
        DataError: a class has no image in test or (training) in train, or train has fewer than 2 patients of a label.
    """
    entries = source.list() if entries is None else entries
    doubts = remarks(entries)
    has_val = any(e.split == "val" and e.class_name for e in entries)
    own_val = own_val and has_val
    used = [e for e in entries if e.class_name and (own_val or e.split != "val")]
    memory = Memory(source.where) if isinstance(source, StampedSource) else None
    table, unread = _described(source, memory, used)
    if memory is not None:
        memory.keep()
    errors = [row for _, row in unread]
    table = table.sort_values("path", ignore_index=True)
    doubts += [*_patient_doubts(table), *_depth_doubts(source, table)]
    table["patient_id"] = merged_patients(table["patient_id"], table["content_hash"])

    images_too = {e.path: e.path for e in entries if e.problem is None and not NO_IMAGES & {d.name for d in e.doubts}}
    contents = images_too | dict(zip(table["path"], table["content_hash"], strict=True))
    unsplit = any(e.split == "all" for e in used)
    if unsplit:
        table["split"] = split_unsplit(table, seed) if training else "test"
    for split in ("test", "train") if training else ("test",):
        _require_classes(table, split, unsplit, source, unread, doubts, has_val)
    if limit is not None:
        chosen = {i for _, part in table.groupby("split") for i in choose(part["image_id"], part["label"], limit, seed)}
        table = table[table["image_id"].isin(chosen)]
    table = table.sort_values(["split", "path"], ignore_index=True)  # test sorts before train
    first = table.groupby("content_hash")["image_id"].transform("first")
    table["duplicate_of"] = first.where(first != table["image_id"], None).astype(object)

    facts = _facts(table)
    if not own_val:
        table["split"] = with_val(table, val_share, seed, source.where, training=training, limit=limit)
    notes = [f"Images of {source.where}: {_counts(table)}."]
    if limit is not None:
        notes.append(f"limit {limit}: at most so many images of test, and of train and val together.")
    notes += _split_notes(source, entries, unsplit, training, own_val)
    if errors:
        notes.append(f"Files that are no readable images: {len(errors)}; they stand in the table errors.")
    return Manifest(
        table[list(IMAGES.columns)].sort_values(["split", "path"], ignore_index=True),
        errors,
        notes + facts,
        hashlib.sha256("\n".join(sorted(table["image_id"])).encode()).hexdigest(),
        doubts,
        sorted(contents.keys() - set(table["path"])),
        shared_names(contents),
    )


def _split_notes(source: Source, entries: Entries, unsplit: bool, training: bool, own_val: bool) -> Iterator[str]:
    """Where the splits come from, if not from the source."""
    is_folder = isinstance(source, FolderSource)
    parts, whole = ("folders", "folder") if is_folder else ("splits", "data")
    if unsplit and training:
        yield f"No test and train {parts}: {UNSPLIT_TEST_SHARE:.0%} of the patients of each label are test."
    elif unsplit:
        yield f"No test and train {parts}: all images are test, since nothing is trained."
    if not own_val and (unused := sum(e.split == "val" and bool(e.class_name) and not e.problem for e in entries)):
        yield f"The {whole}'s own val split ({unused} images) is not used: val is taken from train, by patient."


def _patient_doubts(table: pd.DataFrame) -> list[Remark]:
    """Patients that the source itself puts into several splits, and names that may be those of several patients."""
    splits = table[table["known_by"] == "the source"].groupby("patient_id")["split"].nunique()
    by_name = table[~table["known_by"].isin(["the source", *BY_FOLDERS])]  # also IM-0001-0001, which viewers export
    stems = by_name["path"].map(lambda path: PurePosixPath(without_ending(path)).name)
    contents = by_name.groupby(stems)["content_hash"].nunique()
    # IM-0001 is whatever viewers export first: in several folders it may be as many patients
    exported = by_name[(by_name["known_by"] == KAGGLE) & by_name["patient_id"].str.match("IM-")]
    parents = exported["path"].map(lambda path: str(PurePosixPath(path).parent))
    folders = parents.groupby([exported[key] for key in ("patient_id", "split", "label")]).nunique()
    names = {*contents.index[contents > 1], *folders.index[folders > 1].get_level_values("patient_id")}
    found = {"shared_patients": sorted(splits.index[splits > 1]), "equal_stems": sorted(names)}
    return [Remark(kind, len(names), examples(names)) for kind, names in found.items() if names]


def _depth_doubts(source: Source, table: pd.DataFrame) -> list[Remark]:
    """Images that may use fewer bits than they are read with, as none is bright; or more than ``data.bits``."""
    modes = table["mode"]
    deep = table[modes.str.startswith(("I", "MONOCHROME")) | modes.str.endswith("16 bits")].sort_values("image_id")
    if deep.empty:
        return []
    bits = getattr(source, "bits", None)
    share = dicom.BULK if bits is None else 1.0
    read = in_threads(functools.partial(_depth, source, share), list(deep["path"].head(DEPTH_SAMPLE)))
    found = [depth for depth in read if depth is not None]
    if bits is not None:
        top = max((top for top, _ in found), default=0)
        beyond = sum(top >= 2**bits for top, stored in found if bits < stored)
        about = f"{beyond} of {len(found)} end beyond {2**bits - 1}, at {top} of {top.bit_length()} bits"
        return [Remark("bits_too_small", beyond, about)] if beyond else []
    dark = [top for top, stored in found if 0 < top < 2 ** (stored - 1)]
    if len(dark) <= MOST_DARK * len(found):
        return []
    n = f"{len(dark)}" if len(dark) == len(found) else f"{len(dark)} of {len(found)}"
    brightest = f"but for the brightest {1 - dicom.BULK:.0%}"
    about = f"end at {max(dark)} ({brightest}) in {n} that were read, as {max(9, max(dark).bit_length())} bits would"
    return [Remark("bit_depth", len(deep), about)]


def _depth(source: Source, share: float, path: str) -> tuple[int, int] | None:
    """As ``images.depth``; None also where the image cannot be read."""
    try:
        return images.depth(source.read(path), share)
    except (ImageError, MissingPackageError, OSError, pa.ArrowException):
        return None


def _described(source: Source, memory: Memory | None, entries: Entries) -> tuple[pd.DataFrame, list[tuple[Entry, Row]]]:
    """Rows of images with ``_MORE``, and the entries that are none, each with its row of errors.

    Rows become columns a portion at a time, since as objects they take several times the memory.
    """
    schema, unread = pa.schema([*IMAGES.schema, *_MORE]), []
    parts = [schema.empty_table()]
    for start in range(0, len(entries), PORTION):
        part = entries[start : start + PORTION]
        rows = list(map(_row, part, _contents(source, memory, part)))
        unread += [(entry, row) for entry, row in zip(part, rows, strict=True) if "stage" in row]
        parts.append(pa.Table.from_pylist([row for row in rows if "stage" not in row], schema))
    return pa.concat_tables(parts).to_pandas(), unread


def _contents(source: Source, memory: Memory | None, entries: Entries) -> list[Known | str]:
    """What the bytes of files say, or why they are no images; only what may have changed is read."""
    with telling(NOBODY.advance):
        found = in_threads(functools.partial(_remembered, source, memory), entries)
    new = [entry for entry, (known, _) in zip(entries, found, strict=True) if known is None]
    done(len(entries) - len(new))
    read = iter(at_once(functools.partial(_read, source), new))
    contents = [next(read) if known is None else known for known, _ in found]
    for entry, known, (_, stamp) in zip(entries, contents, found, strict=True):
        if memory is not None and stamp is not None and isinstance(known, Known):
            memory.note(entry.path, stamp, known)
    return contents


def _remembered(source: Source, memory: Memory | None, entry: Entry) -> tuple[Known | str | None, Stamp | None]:
    """What is known of a file that is not read, None where it must be; and its stamp, where it has one."""
    if entry.problem or memory is None or not isinstance(source, StampedSource):
        return entry.problem or None, None
    try:
        stamp = source.stamp(entry.path)
    except (OSError, pa.ArrowException) as e:
        return unreadable(e), None
    return None if stamp is None else memory.known(entry.path, stamp, _identity(entry)), stamp


def _identity(entry: Entry) -> str:
    return f"{entry.split}/{entry.group or entry.class_name}/{entry.name}"


def _read(source: Source, entry: Entry) -> Known | str:
    """What the bytes of a file say, or why it is no image. Raises MissingPackageError."""
    try:
        data = source.read(entry.path)
        header = images.header(data)
    except ImageError as e:
        return str(e)
    except (OSError, pa.ArrowException) as e:
        return unreadable(e)
    named = hashlib.sha256(f"{_identity(entry)}\0".encode())
    named.update(data)
    return Known(_identity(entry), named.hexdigest()[:16], hashlib.sha256(data).hexdigest(), *header)


def _row(entry: Entry, known: Known | str) -> Row:
    """A row of images (and the bare number of person123), or a row of errors."""
    if isinstance(known, str):
        return {"path": entry.path, "image_id": None, "stage": "read", "reason": known}
    patient, kind, convention = patient_of(entry.name)
    told = entry.patient is not None
    is_numbered = convention == KAGGLE and kind != "normal" and not told
    return {
        "image_id": known.image_id,
        "content_hash": known.content_hash,
        "duplicate_of": None,
        "path": entry.path,
        "split": entry.split,
        "label": CLASSES.index(entry.class_name),
        "class_name": entry.group,
        "patient_id": patient if entry.patient is None else entry.patient,
        "kind": kind,
        "width": known.width,
        "height": known.height,
        "mode": known.mode,
        "person": patient.split("-")[1] if is_numbered else None,
        "known_by": "the source" if told else convention,
    }


def _require_classes(
    table: pd.DataFrame,
    split: str,
    unsplit: bool,
    source: Source,
    unread: list[tuple[Entry, Row]],
    doubts: list[Remark],
    has_val: bool,
) -> None:
    where, expected = source.where, EXPECTED if isinstance(source, FolderSource) else "images of both classes"
    for label, class_name in enumerate(CLASSES):
        if ((table["split"] == split) & (table["label"] == label)).any():
            continue
        if unsplit and (patients := table.loc[table["label"] == label, "patient_id"].nunique()):
            raise DataError(
                f"got {where} without test/ and train/, and with {patients} patient of {class_name}; expected 3 or "
                "more, to train, validate and test; add images of other patients, or split the folder yourself."
            )
        rows = [row for entry, row in unread if entry.class_name == class_name]
        because = [f"{len(rows)} unusable files, {rows[0]['path']}: {rows[0]['reason']}"] if rows else []
        because += [remark.got for remark in doubts if remark.name == "other_labels"]
        because += [remark.note.rstrip(".") for remark in doubts if remark.name in ("ignored", "elsewhere")]
        because += ["val can be test: data.splits: {test: [val]}"] if split == "test" and has_val else []
        found = f" ({'; '.join(because)})" if because else ""
        raise DataError(
            f"got {where} with no {class_name} image for the {split} split{found}; expected {expected}; add images "
            "of both classes, or name them in data.classes and data.splits."
        )


def _counts(table: pd.DataFrame) -> str:
    parts = []
    for split in ("train", "val", "test"):
        labels = table.loc[table["split"] == split, "label"]
        if len(labels):
            by_class = ", ".join(f"{(labels == i).sum()} {name}" for i, name in enumerate(CLASSES))
            parts.append(f"{split} {len(labels)} ({by_class})")
    return "; ".join(parts)


def _facts(table: pd.DataFrame) -> list[str]:
    """Notes on the data, before val is taken from train: duplicates and patients."""
    facts = []
    if table["class_name"].notna().any():
        counts = table["class_name"].value_counts()
        facts.append(f"Classes: {', '.join(f'{name} {n}' for name, n in counts.items())}.")
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
    for convention, n in table["known_by"].value_counts().items():
        if convention not in (KAGGLE, "the source"):
            facts.append(f"Patients by file names as in {convention}: {n} images.")
    if unknown := table["known_by"].isna().sum():
        facts.append(f"File names that tell no patient: {unknown}; each name counts as a patient.")
    return facts
