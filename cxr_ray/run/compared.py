"""Two versions of one table: which rows one of them lacks, which values differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.schemas import TABLES

SHOWN = 3  # rows of each kind of difference
OF_SCORES = ("value", "control_mean", "control_sd", "gap")  # of faithfulness: differences of scores, which are rounded
SCORES = ("score_full", "value", "control_mean")  # that tell how large these are
OTHER = "\0other"  # ends the names of the second version's columns


@dataclass(frozen=True)
class Compared:
    """What comparing gave.

    Attributes:
        table: its name.
        rows: that are in both.
        columns: compared in each, beside the key.
        greatest: difference of two values, infinite where they are no numbers or one is null; ``column``: where.
        n_differing: rows of which a value differs by more than the tolerance.
        n_missing, n_extra: rows of the other version alone, and of the first alone.
        examples: the first of these, a line each.
    """

    table: str
    rows: int
    columns: int
    greatest: float
    column: str
    n_differing: int
    n_missing: int
    n_extra: int
    examples: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the two are the same within the tolerance."""
        return not (self.n_differing or self.n_missing or self.n_extra)

    def line(self) -> str:
        """One line of the screen."""
        where = f" ({self.column})" if self.greatest else ""
        parts = [
            f"{n:,} rows {what}"
            for n, what in ((self.n_differing, "differ"), (self.n_missing, "are missing"), (self.n_extra, "too many"))
            if n
        ]
        verdict = "holds" if self.holds else f"DOES NOT HOLD: {', '.join(parts)}"
        return (
            f"  {self.table:<20} {self.rows:>9,} rows x {self.columns:>2} columns, greatest difference "
            f"{self.greatest:.1e}{where}: {verdict}"
        )


def compare(
    name: str,
    first: pd.DataFrame,
    other: pd.DataFrame,
    tolerance: float,
    wider: Mapping[str, float] = MappingProxyType({}),
) -> Compared:
    """Compare two versions of a table by its key.

    The difference of two numbers is absolute, and relative to the other where that is above 1; of two maps it is
    relative to the other's greatest value; of the columns of OF_SCORES, which are differences of scores, to these
    scores. All else is equal or not.

    Args:
        name: of ``schemas.TABLES``.
        first, other: partition columns included. The first is examined, so what the other alone has is missing.
        tolerance: of differences.
        wider: columns to a tolerance of their own, where it is above that.
    """
    key = list(TABLES[name].key)
    columns = [str(c) for c in other if c not in key]
    if first.empty and other.empty:  # pandas cannot merge these
        return Compared(name, 0, len(columns), 0.0, "", 0, 0, 0, ())
    twice = first.duplicated(key)
    one = first[~twice]
    both = one[[*key, *columns]].merge(other, on=key, how="outer", suffixes=("", OTHER), indicator=True, sort=True)
    missing, extra = both[both["_merge"] == "right_only"], both[both["_merge"] == "left_only"]
    same = both[both["_merge"] == "both"].reset_index(drop=True)
    differences = np.zeros((len(same), len(columns)))
    for n, column in enumerate(columns):
        differences[:, n] = _differences(same[column], same[f"{column}{OTHER}"])
    if name == "faithfulness" and {*OF_SCORES, *SCORES} <= set(columns):
        for column in OF_SCORES:
            size = np.maximum(1, same[f"{column}{OTHER}"].abs().to_numpy(float, na_value=0.0))
            differences[:, columns.index(column)] *= size / _size_of_scores(same)
    exceeds = differences > [max(tolerance, wider.get(column, 0.0)) for column in columns]
    differing = pd.DataFrame(same[exceeds.any(1)])
    worst = np.unravel_index(differences.argmax(), differences.shape) if differences.size else None
    greatest = 0.0 if worst is None else float(differences[worst])
    examples = [
        *_changed(differing, exceeds[differing.index], key, columns),
        *(f"missing: {_place(row, key)}" for row in _first(missing)),
        *(f"too many: {_place(row, key)}" for row in _first(extra)),
        *(f"twice: {_place(row, key)}" for row in _first(first[twice])),
    ]
    return Compared(
        table=name,
        rows=len(same),
        columns=len(columns),
        greatest=greatest,
        column="" if worst is None else columns[int(worst[1])],
        n_differing=len(differing),
        n_missing=len(missing),
        n_extra=len(extra) + int(twice.sum()),
        examples=tuple(examples),
    )


def _size_of_scores(rows: pd.DataFrame) -> NDArray[np.float64]:
    """How large the scores are that a row of faithfulness is made of, at least 1."""
    sizes = [rows[f"{column}{OTHER}"].abs().to_numpy(float, na_value=0.0) for column in SCORES]
    size: NDArray[np.float64] = np.maximum(1, np.max(sizes, axis=0))
    return size


def _differences(first: pd.Series, other: pd.Series) -> NDArray[np.float64]:
    null = first.isna().to_numpy(), other.isna().to_numpy()
    if any(isinstance(value, np.ndarray) for value in other):
        found = np.array([_of_maps(a, b) for a, b in zip(first, other, strict=True)], dtype=float)
    elif pd.api.types.is_float_dtype(other) and pd.api.types.is_numeric_dtype(first):
        a, b = (values.to_numpy(float, na_value=np.nan) for values in (first, other))
        with np.errstate(invalid="ignore"):
            found = np.where(a == b, 0.0, np.abs(a - b) / np.maximum(1, np.abs(b)))
        found = np.where(np.isnan(found), np.inf, found)
    else:
        found = np.where((first == other).to_numpy(bool, na_value=False), 0.0, np.inf)
    return np.where(null[0] & null[1], 0.0, np.where(null[0] | null[1], np.inf, found))


def _of_maps(first: Any, other: Any) -> float:
    a, b = (np.asarray([] if x is None else x, dtype=float) for x in (first, other))
    if a.shape != b.shape:
        return np.inf
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    scale = np.abs(b).max()
    found = np.abs(a - b).max() / scale if scale > 0 else np.inf
    return np.inf if np.isnan(found) else float(found)


def _changed(
    rows: pd.DataFrame, differs: NDArray[np.bool_], key: Sequence[str], columns: Sequence[str]
) -> Iterator[str]:
    for row, at in zip(_first(rows), differs, strict=False):
        column = columns[int(np.argmax(at))]
        stored, computed = (_shown(row[name]) for name in (column, f"{column}{OTHER}"))
        yield f"{column}: {stored} in the run, {computed} recomputed: {_place(row, key)}"


def _first(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    return rows.head(SHOWN).to_dict("records")


def _place(row: dict[Any, Any], key: Sequence[str]) -> str:
    """Where a row stands, as its key says."""
    return ", ".join(f"{name} {_shown(row[name])}" for name in key if not pd.isna(row[name]))


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "a map"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
