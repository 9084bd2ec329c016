"""How far a verdict depends on the choices behind it: rankings of explainers, and faithfulness beside accuracy.

Shapes: S settings, E explainers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from cxr_ray.measure.controls import CONTROLS

Floats = NDArray[np.floating]

PRIMARY = ("abpc", "insertion_auc", "deletion_auc")  # the first that is measured is the primary metric
AXES = ("target_rule", "grid", "fill", "level", "scale", "control")
PERFORMANCES = ("accuracy", "auroc")
MIN_TRIALS_FOR_P = 5  # of 4, no order is rarer than 1 in 12 (two-sided)
N_PERM = 9999


def ranking_agreement(summary: pd.DataFrame, trial_id: str, bucket: str = "all") -> pd.DataFrame:
    """How far the ranking of explainers by mean gap depends on each choice.

    Areas speak for every choice but the level, in the primary metric; the level is that of ``drop``. Control none is
    left out. Two controls that are the same for every explainer rank explainers alike by construction.

    Args:
        summary: the table; rows of one model and bucket are used.
        trial_id: the model.
        bucket: the images.

    Returns:
        A row for each axis (of AXES) and two of its values a, b (texts): tau_mean, tau_min and tau_max of Kendall's
        tau-b between the two rankings (1: the same, -1: reversed) over n_settings, the combinations of the other
        choices under which both rank two explainers or more (not all tied); n_explainers, the fewest ranked in any.
    """
    mine = summary[(summary["trial_id"] == trial_id) & (summary["bucket"] == bucket) & (summary["control"] != "none")]
    mine = mine[~mine["contrast"].astype(bool) & mine["mean"].notna()]
    metric = _primary(mine["metric"])
    rows = []
    for axis in AXES:
        rows += _taus(mine[mine["metric"] == ("drop" if axis == "level" else metric)], axis)
    columns = ["axis", "a", "b", "tau_mean", "tau_min", "tau_max", "n_settings", "n_explainers"]
    return pd.DataFrame(rows, columns=columns)


def _primary(metrics: Iterable[str]) -> str | None:
    measured = set(metrics)
    return next((m for m in PRIMARY if m in measured), None)


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
            rows.append({
                "axis": axis, "a": _text(a), "b": _text(b), "tau_mean": taus.mean(), "tau_min": taus.min(),
                "tau_max": taus.max(), "n_settings": len(taus), "n_explainers": count_S[known].min(),
            })  # fmt: skip
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


def accuracy_and_gaps(
    classification: pd.DataFrame, trials: pd.DataFrame, summary: pd.DataFrame, bucket: str = "all"
) -> pd.DataFrame:
    """Each model's accuracy beside the faithfulness of each explainer, for one table and one plot.

    Args:
        classification, trials, summary: the tables.
        bucket: the images that gaps are means over; accuracy is that of the whole test split.

    Returns:
        A row for each model and explainer: trial_id, variant, seed; accuracy (at 0.5) and auroc on test, each with its
        95% interval, n_patients; control (the strongest that is measured for the explainer), gap (its mean, in log-odds
        of the primary metric, above 0 more faithful) with its 95% interval over n images; and what else the gap is of:
        metric, scale, grid (pixel, else the first), fill and target_rule (the first).
    """
    measured = ["accuracy", "accuracy_lower", "accuracy_upper", "auroc", "auroc_lower", "auroc_upper"]
    setting = ["metric", "scale", "grid", "fill", "target_rule"]
    columns = ["trial_id", "variant", "seed", *measured, "n_patients", "explainer", "control", "gap", "gap_lower",
               "gap_upper", "n", *setting]  # fmt: skip
    metric = _primary(summary["metric"])
    gaps = summary[(summary["metric"] == metric) & (summary["scale"] == "logodds") & (summary["bucket"] == bucket)]
    gaps = gaps[gaps["control"].isin(CONTROLS) & ~gaps["contrast"].astype(bool)]
    if gaps.empty:
        return pd.DataFrame(columns=columns)
    chosen = {k: gaps[k].iloc[0] for k in ("grid", "fill", "target_rule")}
    chosen |= {"grid": "pixel"} if (gaps["grid"] == "pixel").any() else {}
    gaps = gaps[np.logical_and.reduce([gaps[k] == v for k, v in chosen.items()])]
    strength = gaps["control"].map(lambda control: CONTROLS[control].strength)
    gaps = gaps[strength == strength.groupby(gaps["explainer"]).transform("max")]
    gaps = gaps.rename(columns={"mean": "gap", "lower": "gap_lower", "upper": "gap_upper"})
    gaps = gaps[["trial_id", "explainer", "control", "gap", "gap_lower", "gap_upper", "n", *setting]]
    at_half = classification[(classification["split"] == "test") & (classification["threshold_rule"] == "half")]
    models = trials[["trial_id", "variant", "seed"]].merge(at_half[["trial_id", *measured, "n_patients"]])
    return models.merge(gaps, on="trial_id")[columns]


def rank_correlations(models: pd.DataFrame) -> pd.DataFrame:
    """Whether models that classify better have more faithful maps: Spearman's rho over models.

    Args:
        models: what ``accuracy_and_gaps`` gives.

    Returns:
        A row for each explainer and performance (accuracy, auroc): explainer, control, performance, rho (NaN under 3
        models or where all tie), n (models), p (two-sided, models permuted: every order up to 7 of them, else 9,999;
        NaN under 5) and text, the same in words.
    """
    rows = []
    for (explainer, control), part in models.groupby(["explainer", "control"], sort=False):
        for performance in PERFORMANCES:
            known = part[[performance, "gap"]].dropna().to_numpy(float)
            rho, p = _spearman(known[:, 0], known[:, 1])
            rows.append({"explainer": explainer, "control": control, "performance": performance, "rho": rho,
                         "n": len(known), "p": p, "text": _sentence(len(known), rho, p)})  # fmt: skip
    return pd.DataFrame(rows, columns=["explainer", "control", "performance", "rho", "n", "p", "text"])


def _spearman(x: Floats, y: Floats) -> tuple[float, float]:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan
    x, y = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2

    def rho(x: Floats, axis: int = -1) -> Floats:
        return (x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum())

    if len(x) < MIN_TRIALS_FOR_P:
        return float(rho(x)), np.nan
    test = permutation_test(
        (x,), rho, permutation_type="pairings", vectorized=True, n_resamples=N_PERM, alternative="two-sided", rng=0
    )
    return float(test.statistic), float(test.pvalue)


def _sentence(n: int, rho: float, p: float) -> str:
    if np.isnan(rho):
        return f"{n} models: too few to say." if n < 3 else f"{n} models, all alike: nothing to rank."
    if np.isnan(p):
        return f"{n} models: rho {rho:.2f}; too few for a p-value."
    return f"{n} models: rho {rho:.2f}, p {p:.2g} (permutation of models)."
