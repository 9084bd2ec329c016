"""Whether maps beat their controls: win rate and mean advantage, two questions, each with interval, test and Holm.

Shapes: N images of a bucket; K columns, each an explainer against a control in one setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis.cells import FAMILY, Cells
from cxr_ray.analysis.resampling import MIN_PATIENTS, Floats, Ints, holm, mean_p, sign_flip
from cxr_ray.analysis.shares import mean_shares
from cxr_ray.measure.controls import CONTROLS

N_PERM = 9999
ALPHA = 0.05
TEST = (
    "win rate: sign-flip of the patients' sums of win rate - 1/2; mean advantage: symmetric bootstrap-t over patients"
)
YES, NO, DIFFERS = "yes", "no", "differs"
NO_STRONG = "not shown: no strong control was measured"
COLUMNS = (
    *("test", "alternative", "p", "mean_p", "family", "family_size", "p_holm", "mean_p_holm"),
    *("win_rate", "win_lower", "win_upper", "hardest", "beaten"),
)


def against_controls(
    cells: Cells,
    chosen: Ints,
    patients_N: NDArray[Any],
    advantage: Mapping[str, NDArray[Any]],
    family: str,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """The COLUMNS of a bucket, each an array over K, null for control none.

    Args:
        cells: faithfulness of the trial.
        chosen: the bucket's images.
        patients_N: their patients.
        advantage: mean, lower, upper and n_patients of each column.
        family: begins the name of each family of tests.
        seed: of the sign flips.
    """
    tested = np.flatnonzero(~cells.absolute_K)
    columns = cells.columns.iloc[tested]
    win_NK = cells.win_NK[np.ix_(chosen, tested)] + 0.5
    known_K = (~np.isnan(win_NK)).sum(0)
    win_lower_K, win_upper_K = mean_shares(win_NK, patients_N)
    mean_K, lower_K, patients_K = (advantage[name][tested] for name in ("mean", "lower", "n_patients"))
    with np.errstate(invalid="ignore"):
        found: dict[str, NDArray[Any]] = {
            "test": np.full(len(tested), TEST, dtype=object),
            "alternative": np.full(len(tested), "greater", dtype=object),
            "p": sign_flip(win_NK - 0.5, patients_N, N_PERM, seed=seed),
            "mean_p": mean_p(mean_K, lower_K, patients_K),
            "win_rate": np.nansum(win_NK, axis=0) / known_K,
            "win_lower": win_lower_K,
            "win_upper": win_upper_K,
        }
    found |= _holm(columns, cells.family_K[tested], found, family)
    found |= {"hardest": hardest(columns, mean_K), "beaten": beaten(pd.DataFrame({**found, "lower": lower_K}))}
    full = {}
    for name in COLUMNS:
        full[name] = np.full(len(cells.columns), np.nan if found[name].dtype == np.float64 else None)
        full[name][tested] = found[name]
    return full


def _holm(
    columns: pd.DataFrame, code_K: Ints, found: Mapping[str, NDArray[Any]], family: str
) -> dict[str, NDArray[Any]]:
    """Corrected p-values of both tests, each over the explainers and controls of one setting, and the families."""
    corrected = {name: np.full(len(columns), np.nan) for name in ("p", "mean_p")}
    family_K, size_K = (np.full(len(columns), None, dtype=object) for _ in range(2))
    for code in np.unique(code_K):
        where = np.flatnonzero(code_K == code)
        for name, corrected_K in corrected.items():
            corrected_K[where] = holm(found[name][where])
        family_K[where] = f"explainer x control | {family}, {_family_name(columns.iloc[where[0]])}"
        size_K[where] = int(np.count_nonzero(~np.isnan(found["p"][where])))
    return {
        "family": family_K,
        "family_size": size_K,
        "p_holm": corrected["p"],
        "mean_p_holm": corrected["mean_p"],
    }


def hardest(columns: pd.DataFrame, mean_K: Floats) -> NDArray[Any]:
    """Whether each column's control is the strong one with the smallest mean advantage for its explainer and setting.

    No order fixed beforehand: which strong control is the hardest to beat depends on model, explainer and bucket. Of
    controls with equal means the first in ``columns`` is named.

    Args:
        columns: K rows with FAMILY, explainer and control.
        mean_K: mean advantages; NaN: not measured.
    """
    strong_K = columns["control"].map(lambda c: c in CONTROLS and CONTROLS[c].strong).to_numpy(bool) & ~np.isnan(mean_K)
    hardest_K = np.zeros(len(columns), dtype=object)
    hardest_K[:] = False
    strong = columns[strong_K].assign(mean=mean_K[strong_K], place=np.flatnonzero(strong_K))
    of_each = strong.sort_values("mean", kind="stable").drop_duplicates([*FAMILY, "explainer"])
    hardest_K[of_each["place"].to_numpy(int)] = True
    return hardest_K


def beaten(rows: pd.DataFrame) -> NDArray[Any]:
    """yes, no or differs for each row: whether the map beats the control.

    By the win rate: p_holm < 0.05 and win_lower > 1/2. By the mean advantage: mean_p_holm < 0.05 and lower > 0. Both:
    yes; neither: no, which says that it is not shown; one of them: differs. None without intervals.

    Args:
        rows: p_holm, win_lower, mean_p_holm and lower, as ``summary`` holds them.
    """
    often = (rows["p_holm"] < ALPHA) & (rows["win_lower"] > 0.5)
    on_average = (rows["mean_p_holm"] < ALPHA) & (rows["lower"] > 0)
    answer = np.select([often & on_average, often ^ on_average], [YES, DIFFERS], NO).astype(object)
    answer[(rows["win_lower"].isna() | rows["lower"].isna()).to_numpy(bool)] = None
    return answer


def in_words(row: Any) -> str:
    """Whether a row's control is beaten, in words; where the two questions differ, which says what.

    Args:
        row: the columns of ``summary`` as attributes.
    """
    if pd.isna(row.beaten):
        few = row.n_patients < MIN_PATIENTS
        return f"not tested (under {MIN_PATIENTS} patients)" if few else "not tested (too few patients differ)"
    words = {YES: "beaten", NO: "not beaten"}.get(row.beaten, "")
    if row.beaten == DIFFERS:
        on_average = row.mean_p_holm < ALPHA and row.lower > 0
        shown, open_ = ("mean advantage", "win rate") if on_average else ("win rate", "mean advantage")
        words = f"differs: the {shown} is above chance, the {open_} is not shown to be"
    if row.mean * (row.win_rate - 0.5) < 0:
        words += "; win rate and mean advantage have opposite signs"
    return words


def _family_name(column: pd.Series) -> str:
    metric = column["metric"] if pd.isna(column["level"]) else f"{column['metric']} at {column['level']:g}"
    return f"{column['grid']}, {column['fill']}, {metric}, {column['scale']}"
