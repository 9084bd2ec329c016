"""Images that a table lists: a CSV or Parquet file with paths, labels and perhaps patients and splits."""

from __future__ import annotations

import functools
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pandas as pd
import pyarrow as pa
from pyarrow import fs as pafs

from cxr_ray import results
from cxr_ray.config import Classes, Columns, Splits
from cxr_ray.data.cells import parquet_cells, separator_of
from cxr_ray.data.entries import Doubt, Entries, Entry, Stamp
from cxr_ray.data.folder import ENDINGS, FolderSource, is_junk, opened
from cxr_ray.data.labels import LEFT_OUT, TRUE_FALSE, ClassMap, plain, require_splits, split_names, split_of
from cxr_ray.data.loading import absolute, one_line
from cxr_ray.data.patients import known_patients, patient_by
from cxr_ray.errors import DataError
from cxr_ray.reading import TooLargeError
from cxr_ray.registry import did_you_mean

TEXT, PARQUET = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz"), (".parquet", ".pq")
YES, NO = ("1", "true", "yes"), ("0", "false", "no")  # in a column that is named as its label
LARGEST = 2**31  # bytes of a table
MEANT = {  # without case, blanks and dashes
    "patient": ("patient", "patientid", "subject", "subjectid", "person", "personid"),
    "split": ("split", "fold", "set", "subset", "partition", "phase", "istest", "istrain"),
}
NO_FILE = "no such file"


@dataclass(frozen=True)
class TableSource:
    """A table of images, and the folder that holds them.

    A path of the table is that of a file below the folder, or the end of one, with or without the file's ending. Rows
    of the same path are one image with the labels of all; where they contradict each other, it is doubtful.

    Attributes:
        path: a CSV, TSV or Parquet file.
        images: the folder; None: that of the table.
        columns: which columns say what.
        classes: which labels are the two classes.
        splits: other names of train, val and test.
        patient: as ``data.patient``, where the table has no column of patients.
        bits: that 16-bit images use; None: 16, which is checked.
    """

    path: str
    images: str | None = None
    columns: Columns = field(default_factory=Columns)
    classes: Classes = field(default_factory=Classes)
    splits: Splits = field(default_factory=Splits)
    patient: str | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute(self.path))
        place, options = results.split_options(self.path)
        object.__setattr__(self, "images", absolute(self.images or (place.rpartition("/")[0] or "/") + options))

    @property
    def where(self) -> str:
        """The table: a path or a URI."""
        return self.path

    @functools.cached_property
    def folder(self) -> FolderSource:
        """The folder of the images."""
        return FolderSource(str(self.images))

    def list(self) -> Entries:
        """An entry for each image that a row names, and for each image file of the folder that none does.

        Raises:
            DataError: no such table or folder, no such column, or rows of one image that differ in split or patient.
        """
        cells = _text_table(self.path)
        table = self._columns(cells)
        told = [("unread_columns", name) for name in self._unread(cells)]
        told += [("true_false", str(self.columns.label))] if self._is_bool(cells) else []
        require_splits(self.splits, table["split"].dropna(), self.path)
        files = _Files(self.folder.path)
        images: dict[str, _Image] = {}
        for path, labels, values, patient, split, used in table.itertuples(index=False, name=None):
            if used:
                images.setdefault(path, _Image()).add(labels, values, patient, split)
        class_map, names = ClassMap(self.classes), split_names(self.splits)
        entries = [self._entry(given, image, files, class_map, names) for given, image in images.items()]
        _one_row_each(entries, self.path)
        listed = {entry.path for entry in entries}
        others = {files.find(given)[0] or given for given in set(table["path"][~table["used"]])} - listed
        entries += [Entry("", LEFT_OUT, path, path, doubts=(Doubt("elsewhere", path),)) for path in sorted(others)]
        listed |= others
        unlisted = sorted(set(files.paths) - listed)
        entries += [Entry("", LEFT_OUT, name, name, doubts=(Doubt(kind, name),)) for kind, name in told]
        return entries + [Entry("", LEFT_OUT, path, path, doubts=(Doubt("unlisted", path),)) for path in unlisted]

    def read(self, path: str) -> bytes:
        """The bytes of one file. Raises OSError where it cannot be read."""
        return self.folder.read(path)

    def stamp(self, path: str) -> Stamp | None:
        """Size and time of one file; None on other machines."""
        return self.folder.stamp(path)

    def _unread(self, table: pd.DataFrame) -> Sequence[str]:
        """Columns that may tell patient or split and that nothing names, each with the key that would."""
        return [
            f"{name} for data.columns.{key}"
            for key, meant in MEANT.items()
            if getattr(self.columns, key) is None and key not in table.columns
            for name in table.columns
            if re.sub(r"[ _-]", "", name).casefold() in meant
        ]

    def _is_bool(self, table: pd.DataFrame) -> bool:
        """Whether the labels are True and False alone, beside empty cells, which ``classes`` does not name."""
        if self.columns.labels or self.columns.label not in table.columns:
            return False
        named = any(map(ClassMap(self.classes).named, TRUE_FALSE))
        found = set(table[self.columns.label].map(plain)) - {""}
        return not named and bool(found) and found <= TRUE_FALSE.keys()

    def _columns(self, table: pd.DataFrame) -> pd.DataFrame:
        """The columns path, labels (lists), values, patient and split (None where there is none), and used.

        Values are those of ``columns.labels``, label to value; used is as ``where``.
        """
        columns, have = self.columns, list(table.columns)
        for key in ("patient", "split"):
            if getattr(columns, key) is None and key in have:
                columns = columns.model_copy(update={key: key})
        asked = {"path": columns.path, "patient": columns.patient, "split": columns.split}
        asked |= {f"labels.{i}": name for i, name in enumerate(columns.labels)} or {"label": columns.label}
        asked |= {f"where.{name}": name for name in columns.where}
        for key, name in asked.items():
            if name is not None and name not in have:
                raise DataError(
                    f"got {self.path} without the column {name!r}.{did_you_mean(name, have)} Set data.columns.{key}."
                )
        nothing = pd.Series([None] * len(table), dtype=object)
        values: list[dict[str, str]] = [{}] * len(table)
        if columns.labels:
            cells = table[columns.labels].itertuples(index=False, name=None)
            values = [_values(columns.labels, row) for row in cells]
            labels = [_named(row) for row in values]
        else:
            separator = columns.separator
            texts = table[columns.label]
            texts = texts.map(lambda text: TRUE_FALSE.get(plain(text), "")) if self._is_bool(table) else texts
            labels = [text.split(separator) if separator else [text] for text in texts]
        return pd.DataFrame(
            {
                "path": table[columns.path].str.strip().str.replace("\\", "/"),
                "labels": labels,
                "values": values,
                "patient": nothing if columns.patient is None else known_patients(list(table[columns.patient])),
                "split": nothing if columns.split is None else table[columns.split],
                "used": _meets(table, columns.where),
            }
        )

    def _entry(self, given: str, image: _Image, files: _Files, class_map: ClassMap, names: Mapping[str, str]) -> Entry:
        for key, values in (("split", image.splits), ("patient", image.patients)):
            if len(values) > 1:
                raise DataError(
                    f"got {self.path} with {given} as {key} {' and as '.join(sorted(map(str, values)))}; expected one "
                    f"{key} for each image; correct the table."
                )
        class_name, doubts = class_map.of(image.labels, image.values)
        (split,), (patient,) = image.splits, image.patients
        if patient is None:
            patient = patient_by(self.patient, given, given)
            told = patient is not None or self.patient is None
        else:
            patient = patient or None
            told = patient is not None
        if not told:
            doubts = (*doubts, Doubt("no_patient", given))
        split = "all" if split is None else split_of(split, names, self.path)
        path, problem = files.find(given)
        if path is None:
            about = given or "a row without a path"
            return Entry(split, class_name, given, given, problem, patient, (*doubts, Doubt("missing_files", about)))
        if path != given:
            doubts = (*doubts, Doubt("by_name", f"{given} as {path}"))
        return Entry(split, class_name, path, path, None, patient, doubts, class_map.group(image.labels))


class _Image:
    """What the rows of one path say."""

    def __init__(self) -> None:
        self.labels: dict[str, None] = {}  # in the order of the rows
        self.values: dict[str, set[str]] = {}  # of each label's own column
        self.patients: set[str | None] = set()
        self.splits: set[str | None] = set()

    def add(self, labels: Sequence[str], values: Mapping[str, str], patient: str | None, split: str | None) -> None:
        """One row."""
        self.labels |= {label.strip(): None for label in labels if label.strip()}
        for label, value in values.items():
            self.values.setdefault(label, set()).add(value)
        self.patients.add(patient)
        self.splits.add(split)


def _meets(table: pd.DataFrame, where: Mapping[str, str | Sequence[str]]) -> pd.Series:
    """Whether each row has one of the wanted values in each column of ``where``."""
    used = pd.Series(True, index=table.index)
    for name, values in where.items():
        wanted = {plain(value) for value in ([values] if isinstance(values, str) else values)}
        used &= table[name].map(plain).isin(wanted)
    return used


def _values(labels: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """What each label's column says: 1, 0 or a value of its own, such as -1. An empty cell says nothing."""
    told = {label: plain(cell) for label, cell in zip(labels, cells, strict=True) if cell.strip()}
    return {label: "1" if value in YES else "0" if value in NO else value for label, value in told.items()}


def _named(values: Mapping[str, str]) -> list[str]:
    """The labels whose columns say yes; one that says neither yes nor no, such as -1, is a label of its own."""
    return [label if value == "1" else f"{label}={value}" for label, value in values.items() if value != "0"]


def _one_row_each(entries: Entries, where: str) -> None:
    (twice, rows), *_ = Counter(entry.path for entry in entries).most_common(1) or [("", 0)]
    if rows > 1:
        names = sorted(
            doubt.about.split(" as ")[0]
            for e in entries
            if e.path == twice
            for doubt in e.doubts
            if doubt.name != "by_star"
        )
        raise DataError(
            f"got {where} with {' and '.join(names)} for the one file {twice}; expected one path for each file; "
            "write it in one way."
        )


class _Files:
    """The image files of a folder, found by their path or the end of it."""

    def __init__(self, folder: str):
        fs, base = opened(folder)
        try:
            infos = fs.get_file_info(pafs.FileSelector(base or "/", recursive=True))
        except (OSError, pa.ArrowException) as e:
            raise DataError(
                f"data.images: got {folder}, which cannot be listed ({one_line(e)}); expected the folder of the "
                "images; give it."
            ) from e
        inside = [info.path[len(base) + 1 :] for info in infos if info.type == pafs.FileType.File]
        self.folder, self.base = folder, base
        self.all = set(inside)
        self.paths = [path for path in inside if path.lower().endswith(ENDINGS) and not _is_hidden(path)]
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            pure = PurePosixPath(path)
            for name in {pure.name, pure.stem}:
                self._by_name[name].append(path)

    def find(self, given: str) -> tuple[str | None, str | None]:
        """The file of a path that a table gives, in whichever form of Unicode; or None, and why."""
        found = self._find(given)
        forms = {unicodedata.normalize(form, given) for form in ("NFC", "NFD")} - {given}
        others = [other for form in sorted(forms) if (other := self._find(form))[0] is not None]
        return others[0] if found[1] == NO_FILE and others else found

    def _find(self, given: str) -> tuple[str | None, str | None]:
        given = given.removeprefix(f"{self.base}/").removeprefix("./")
        if given in self.all:
            return given, None
        found = [path for path in self._by_name.get(PurePosixPath(given).name, ()) if _is_end(path, given)]
        if len(found) == 1:
            return found[0], None
        return None, f"{len(found)} files end so: {', '.join(sorted(found)[:3])}" if found else NO_FILE


def _is_end(path: str, given: str) -> bool:
    """Whether one of two paths is the end of the other, in whole parts; ``given`` may lack the file's ending.

    >>> _is_end("images/a.png", "a"), _is_end("images/a.png", "set/images/a.png"), _is_end("test/a.png", "train/a.png")
    (True, True, False)
    """
    whole = (path, str(PurePosixPath(path).with_suffix("")))
    return any(f"/{one}".endswith(f"/{given}") or f"/{given}".endswith(f"/{one}") for one in whole)


def _is_hidden(path: str) -> bool:
    return any(is_junk(part) for part in path.split("/"))


def _text_table(path: str) -> pd.DataFrame:
    """All cells of a table as text, empty where there is nothing.

    Raises:
        DataError: no such file, or no table.
    """
    bare = results.split_options(path.lower())[0]
    if not bare.endswith((*TEXT, *PARQUET)):
        raise DataError(f"got {path} as a table; expected {', '.join((*TEXT, *PARQUET))}; save it as one of them.")
    try:
        fs, inside = results.filesystem(path)
        if (size := fs.get_file_info(inside).size or 0) > LARGEST:
            raise TooLargeError(size, LARGEST)
        with fs.open_input_stream(inside, compression="gzip" if bare.endswith(".gz") else None) as stream:
            data = stream.read(LARGEST + 1)
        if len(data) > LARGEST:  # packed
            raise TooLargeError(len(data), LARGEST)
    except (OSError, ValueError, pa.ArrowException) as e:
        raise DataError(f"got {path}, which cannot be opened ({one_line(e)}); expected a table; give its path.") from e
    try:
        table = parquet_cells(data) if bare.endswith(PARQUET) else _delimited(data)
    except (OSError, ValueError, pa.ArrowException, pd.errors.ParserError) as e:
        raise DataError(
            f"got {path}, which is no table ({one_line(e)}); expected one row of names and one for each image; save it "
            "as CSV (UTF-8) or Parquet."
        ) from e
    if table.empty:
        raise DataError(f"got {path} without rows; expected one for each image; give a table that has them.")
    if twice := sorted({str(name) for name in table.columns if list(table.columns).count(name) > 1}):
        raise DataError(f"got {path} with the column {twice[0]!r} twice; expected each once; rename one.")
    return table.reset_index(drop=True)


def _delimited(data: bytes) -> pd.DataFrame:
    text = data.decode("utf-8-sig")
    separator = separator_of(text)
    # the names are read as a row: pandas would rename those that stand twice, and drop cells beyond them
    rows = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False).fillna("")
    return rows.iloc[1:].set_axis(rows.iloc[0].str.strip(), axis=1)
