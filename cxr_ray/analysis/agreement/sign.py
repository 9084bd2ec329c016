"""Which bucket's drop is larger, under every choice; and which choice turns the sign of the difference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.agreement.rows import row

AXES = ("target_rule", "fill", "level", "scale", "contrast_of", "matched")
CONTRASTS = ("TP-FP", "correct-wrong")
SIDES = {"above": 1.0, "below": -1.0, "holds_0": 0.0}
METHODS = {
    "turned": "share of pairs of cells, alike but for this choice, whose means have opposite signs",
    "clearly": "share of the same pairs whose intervals lie wholly on opposite sides of 0",
}
BY_SIDE = "share of cells by where the 95% interval of the difference of mean drops lies"


def sign_cells(summary: pd.DataFrame) -> pd.DataFrame:
    """The full factorial of level x fill x target rule x scale x contrast: does the drop of the first bucket exceed the
    second's?

    Args:
        summary: rows of one model, explainer and grid.

    Returns:
        AXES (contrast_of: TP-FP or correct-wrong), mean, lower, upper (of the difference of mean drops, control none),
        n, n_patients and sign: 1 or -1 where the interval lies above or below 0, 0 where it holds 0, NaN without an
        interval.
    """
    chosen = summary["contrast"].astype(bool) & (summary["metric"] == "drop") & (summary["control"] == "none")
    cells = summary[chosen & summary["bucket"].isin(CONTRASTS)].rename(columns={"bucket": "contrast_of"})
    cells = cells.assign(sign=np.select([cells["lower"] > 0, cells["upper"] < 0], [1.0, -1.0], 0.0))
    cells.loc[cells["lower"].isna(), "sign"] = np.nan
    return cells[[*AXES, "mean", "lower", "upper", "n", "n_patients", "sign"]].reset_index(drop=True)


def sign_turns(cells: pd.DataFrame) -> pd.DataFrame:
    """Which choice turns the sign: for each axis and two of its values, pairs of cells that differ in it alone.

    Returns:
        axis, a, b (texts), pairs, turned (the means have opposite signs), clearly (so do both whole intervals).
    """
    known = cells[cells["mean"].notna()]
    columns = [known[name].tolist() for name in (*AXES, "mean", "sign")]
    rows = []
    for i, axis in enumerate(AXES):
        found: dict[Any, dict[tuple[Any, ...], tuple[float, float]]] = {}  # value of the axis, the other choices
        for *place, mean, sign in zip(*columns, strict=True):
            found.setdefault(place.pop(i), {})[tuple(place)] = mean, sign
        for a, b in itertools.combinations(sorted(cells[axis].unique()), 2):
            of_a, of_b = found.get(a, {}), found.get(b, {})
            both = [(of_a[place], of_b[place]) for place in of_a if place in of_b]
            turned, clearly = (sum(x[k] * y[k] < 0 for x, y in both) for k in (0, 1))
            rows.append(
                {"axis": axis, "a": str(a), "b": str(b), "pairs": len(both), "turned": turned, "clearly": clearly}
            )
    return pd.DataFrame(rows, columns=["axis", "a", "b", "pairs", "turned", "clearly"])


def sign_rows(summary: pd.DataFrame, trial_id: str, explainer: str, grid: str) -> list[dict[str, Any]]:
    """Rows of kind sign of one model; ``summary``: its rows of this explainer and grid."""
    cells = sign_cells(summary)
    if cells.empty:
        return []
    same = {"explainer": explainer, "grid": grid, "metric": "drop", "control": "none"}
    counts = {name: int((cells["sign"] == sign).sum()) for name, sign in SIDES.items()}
    counts["no_interval"] = int(cells["sign"].isna().sum())
    rows = [
        row(
            "sign",
            trial_id,
            "all",
            a="all",
            b="all",
            statistic=name,
            value=count / len(cells),
            count=count,
            n=len(cells),
            method=BY_SIDE,
            **same,
        )
        for name, count in counts.items()
    ]
    for turn in sign_turns(cells).to_dict("records"):
        for statistic, method in METHODS.items():
            count, pairs = turn[statistic], turn["pairs"]
            share = count / pairs if pairs else None
            which = {"a": turn["a"], "b": turn["b"], "statistic": statistic}
            rows.append(
                row("sign", trial_id, turn["axis"], **which, value=share, count=count, n=pairs, method=method, **same)
            )
    return rows
