"""How far the ranking of explainers depends on each choice: Kendall's tau between two settings' rankings.

Shapes: S settings, E explainers.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis.agreement.rows import row
from cxr_ray.measure.metrics import Key

Floats = NDArray[np.floating]

AXES = ("target_rule", "grid", "fill", "level", "scale", "control")
TAU = "Kendall's tau-b of two rankings by mean advantage: mean, smallest and largest over settings of the other choices"
FEWEST = "explainers ranked in both settings: smallest over the same settings"


def ranking_agreement(summary: pd.DataFrame, trial_id: str, metric: Key, bucket: str = "all") -> pd.DataFrame:
    """How far the ranking of explainers by mean advantage depends on each choice.

    The primary metric speaks for every choice but the level, which is that of ``drop``. Control none is left out. Two
    controls that are the same for every explainer rank explainers alike by construction.

    Args:
        summary: the table; rows of one model and bucket are used.
        trial_id: the model.
        metric: the primary one, and its level (NaN: an area).
        bucket: the images.

    Returns:
        A row for each axis (of AXES) and two of its values a, b (texts): tau_mean, tau_min and tau_max of Kendall's
        tau-b between the two rankings (1: the same, -1: reversed) over n_settings, the combinations of the other
        choices under which both rank two explainers or more (not all tied); n_explainers, the fewest ranked in any.
    """
    chosen = (summary["trial_id"] == trial_id) & (summary["bucket"] == bucket) & (summary["control"] != "none")
    ranked = summary[chosen & ~summary["contrast"].astype(bool) & summary["mean"].notna()]
    rows = []
    primary = (ranked["metric"] == metric[0]) & (ranked["level"].isna() | (ranked["level"] == metric[1]))
    for axis in AXES:
        rows += _taus(ranked[ranked["metric"] == "drop" if axis == "level" else primary], axis)
    columns = ["axis", "a", "b", "tau_mean", "tau_min", "tau_max", "n_settings", "n_explainers"]
    return pd.DataFrame(rows, columns=columns)


def ranking_rows(summary: pd.DataFrame, trial_id: str, metric: Key) -> list[dict[str, Any]]:
    """Rows of kind ranking of one model: kendall_tau and n_explainers for each pair of an axis's values."""
    rows = []
    for found in ranking_agreement(summary, trial_id, metric).to_dict("records"):
        name, level = ("drop", None) if found["axis"] == "level" else metric
        which = {"a": found["a"], "b": found["b"], "metric": name, "level": level, "n": found["n_settings"]}
        tau = {"value": found["tau_mean"], "low": found["tau_min"], "high": found["tau_max"], "method": TAU}
        rows.append(row("ranking", trial_id, found["axis"], statistic="kendall_tau", **which, **tau))
        fewest = {"statistic": "n_explainers", "value": found["n_explainers"], "method": FEWEST}
        rows.append(row("ranking", trial_id, found["axis"], **which, **fewest))
    return rows


def _taus(part: pd.DataFrame, axis: str) -> list[dict[str, Any]]:
    part = part.assign(level=part["level"].fillna(0.0))
    others = [a for a in AXES if a != axis]
    gaps = part.set_index([axis, *others, "explainer"])["mean"].unstack("explainer")
    values = sorted(part[axis].unique()) if axis == "level" else list(dict.fromkeys(part[axis]))
    rows = []
    for a, b in itertools.combinations(values, 2):
        a_SE, b_SE = gaps.xs(a).align(gaps.xs(b), join="inner")
        tau_S, count_S = _kendall(a_SE.to_numpy(float), b_SE.to_numpy(float))
        known = ~np.isnan(tau_S)
        if known.any():
            taus = tau_S[known]
            rows.append(
                {
                    "axis": axis,
                    "a": _text(a),
                    "b": _text(b),
                    "tau_mean": taus.mean(),
                    "tau_min": taus.min(),
                    "tau_max": taus.max(),
                    "n_settings": len(taus),
                    "n_explainers": count_S[known].min(),
                }
            )
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _kendall(a_SE: Floats, b_SE: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Kendall's tau-b of each row (NaN under two explainers, or where all tie) and how many have both values.

    scipy.stats.kendalltau takes a row at a time: half a minute for the tables of a large sweep.
    """
    known_SE = ~(np.isnan(a_SE) | np.isnan(b_SE))
    signs = [
        np.sign(np.nan_to_num(m_SE[:, :, None] - m_SE[:, None])) * (known_SE[:, :, None] & known_SE[:, None])
        for m_SE in (a_SE, b_SE)
    ]
    untied = [np.abs(s).sum((1, 2)) for s in signs]
    with np.errstate(invalid="ignore"):
        return (signs[0] * signs[1]).sum((1, 2)) / np.sqrt(untied[0] * untied[1]), known_SE.sum(1)
