"""Faithfulness beside accuracy, over models and over the variants that they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from cxr_ray.analysis.agreement.rows import row
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.measure.controls import CONTROLS, strong_first

Floats = NDArray[np.floating]

PERFORMANCES = ("accuracy", "auroc")
SETTING = ("target_rule", "grid", "fill", "metric", "level", "scale")
MIN_TRIALS_FOR_P = 5  # of 4, no order is rarer than 1 in 12 (two-sided)
N_PERM = 9999
CORRELATION = (
    "Spearman's rank correlation over models (null under 3, or where all tie); p: models permuted, two-sided (null "
    "under 5)"
)
MEAN = "mean over models; low and high: the smallest and the largest of them"


def accuracy_and_gaps(
    classification: pd.DataFrame,
    trials: pd.DataFrame,
    summary: pd.DataFrame,
    primary: PrimarySettings,
    bucket: str = "all",
) -> pd.DataFrame:
    """Each model's accuracy beside the faithfulness of each explainer, for one table and one plot.

    Args:
        classification, trials, summary: the tables.
        primary: what gaps are measured with.
        bucket: the images that gaps are means over; accuracy is that of the whole test split.

    Returns:
        A row for each model and explainer: trial_id, variant, seed; accuracy (at 0.5) and auroc on test, each with its
        95% interval, n_patients; control (one for all models: of those measured for the explainer the first by
        ``controls.strong_first``), gap (its mean, in log-odds of the primary metric, above 0 more faithful) with its
        95% interval over n images; and what else the gap is of: metric, level, scale, grid, fill and
        target_rule.
    """
    measured = [f"{name}{end}" for name in PERFORMANCES for end in ("", "_lower", "_upper")]
    ends = ["trial_id", "explainer", "control", "gap", "gap_lower", "gap_upper", "n", *SETTING]
    chosen = (summary["bucket"] == bucket) & summary["control"].isin(CONTROLS) & ~summary["contrast"].astype(bool)
    for name in ("target_rule", "grid", "fill", "scale"):
        chosen &= summary[name] == getattr(primary, name)
    chosen &= primary.chosen(summary)
    gaps = summary[chosen]
    place = gaps["control"].map({control: i for i, control in enumerate(strong_first(CONTROLS))})
    gaps = gaps[place == place.groupby(gaps["explainer"]).transform("min")]
    gaps = gaps.rename(columns={"mean": "gap", "lower": "gap_lower", "upper": "gap_upper"})[ends]
    at_half = classification[(classification["split"] == "test") & (classification["threshold_rule"] == "half")]
    models = trials[["trial_id", "variant", "seed"]].merge(at_half[["trial_id", *measured, "n_patients"]])
    return models.merge(gaps, on="trial_id")


def rank_correlations(models: pd.DataFrame) -> pd.DataFrame:
    """Whether models that classify better have more faithful maps: Spearman's rho over models.

    Args:
        models: what ``accuracy_and_gaps`` gives.

    Returns:
        A row for each explainer and performance (accuracy, auroc): explainer, control, performance, rho (NaN under 3
        models or where all tie), n (models), p (two-sided, models permuted: every order up to 7 of them, else 9,999;
        NaN under 5).
    """
    rows = []
    for (explainer, control), part in models.groupby(["explainer", "control"], sort=False):
        for performance in PERFORMANCES:
            known = part[[performance, "gap"]].dropna().to_numpy(float)
            rho, p = _spearman(known[:, 0], known[:, 1])
            which = {"explainer": explainer, "control": control, "performance": performance}
            rows.append({**which, "rho": rho, "n": len(known), "p": p})
    return pd.DataFrame(rows, columns=["explainer", "control", "performance", "rho", "n", "p"])


def sentence(n: int, rho: float, p: float) -> str:
    """A rank correlation over models in words; NaN for what is not known.

    >>> sentence(2, float("nan"), float("nan"))
    '2 models: too few to say.'
    """
    if np.isnan(rho):
        return f"{n} models: too few to say." if n < 3 else f"{n} models, all alike: nothing to rank."
    if np.isnan(p):
        return f"{n} models: rho {rho:.2f}; too few for a p-value."
    return f"{n} models: rho {rho:.2f}, p {p:.2g} (permutation of models)."


def accuracy_rows(models: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of kinds accuracy and variants of what ``accuracy_and_gaps`` gives; none of a single model."""
    if models["trial_id"].nunique() < 2:
        return []
    setting = {name: models[name].iloc[0] for name in SETTING}
    rows = []
    for found in rank_correlations(models).to_dict("records"):
        explainer, control = found["explainer"], found["control"]
        which = {"a": explainer, "b": control, "explainer": explainer, "control": control, "statistic": "spearman"}
        values = {"value": found["rho"], "n": found["n"], "p": found["p"], "method": CORRELATION}
        rows.append(row("accuracy", explainer, found["performance"], **which, **values, **setting))
    for (variant, explainer, control), part in models.groupby(["variant", "explainer", "control"], sort=False):
        which = {"a": explainer, "b": control, "explainer": explainer, "control": control, "statistic": "mean"}
        for quantity in (*PERFORMANCES, "gap"):
            over = part[quantity].astype(float)
            values = {"value": over.mean(), "low": over.min(), "high": over.max(), "n": len(part), "method": MEAN}
            rows.append(row("variants", str(variant), quantity, **which, **values, **setting))
    return rows


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
