"""How reliably a fill tells explainers apart: variance between explainers over the total, and what `random` gains.

Shapes: N images; E explainers; P patients; B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.agreement.rows import row
from cxr_ray.analysis.resampling import (
    MIN_PATIENTS,
    Floats,
    patient_codes,
    patient_sums,
    percentile_interval,
    resampled_sums,
)

ICC = (
    "intraclass correlation ICC(2,1), explainers as subjects and images as raters: variance between explainers over "
    "the sum of the variances between explainers, between images and of the rest; 95% percentile interval over "
    "patients (null under 20)"
)
ADVANTAGE = "mean advantage of explainer random over the control, as in summary, with its 95% interval"
RANDOM = "random"


def intraclass(values_NE: Floats, patients_N: Any, seed: int, n_boot: int = 1000) -> tuple[float, float, float]:
    """ICC(2,1) of Shrout & Fleiss (1979) with its 95% interval over patients: value, lower, upper.

    Explainers are what is judged and images the judges, as Tomsett et al. (2020) ask whether images agree on the order
    of explainers. 1: every image gives each explainer the same value, and explainers differ. 0: an image's values say
    nothing of explainers. An estimate may lie below 0. NaN where nothing varies.

    Args:
        values_NE: images whose explainers all have a value; two images and two explainers at least.
        patients_N: each image's patient.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    n_explainers = values_NE.shape[1]
    values_NE = values_NE - values_NE.mean()
    image_N1 = values_NE.mean(1, keepdims=True)
    codes_N, n_patients = patient_codes(patients_N)
    quantities = np.concatenate([values_NE, (values_NE**2).sum(1, keepdims=True), image_N1**2], axis=1)
    sums_PQ, counts_PQ = patient_sums(quantities, codes_N, n_patients)
    sums_PQ = np.concatenate([counts_PQ[:, :1], sums_PQ], axis=1)
    sums_BQ = np.concatenate([sums_PQ.sum(0, keepdims=True), resampled_sums(sums_PQ, n_boot, seed)])
    n_B, sums_BQ = sums_BQ[:, 0], sums_BQ[:, 1:]
    mean_BE = sums_BQ[:, :n_explainers] / n_B[:, None]
    mean_B = mean_BE.mean(1)
    explainers_B = n_B * ((mean_BE - mean_B[:, None]) ** 2).sum(1)
    images_B = n_explainers * (sums_BQ[:, -1] - n_B * mean_B**2)
    rest_B = sums_BQ[:, -2] - n_B * n_explainers * mean_B**2 - explainers_B - images_B
    square_explainers_B, square_images_B = explainers_B / (n_explainers - 1), images_B / (n_B - 1)
    square_rest_B = rest_B / ((n_explainers - 1) * (n_B - 1))
    between_B = (square_explainers_B - square_rest_B) / n_B
    total_B = between_B + (square_images_B - square_rest_B) / n_explainers + square_rest_B
    with np.errstate(divide="ignore", invalid="ignore"):
        icc_B = np.where(total_B > 0, between_B / total_B, np.nan)
    if n_patients < MIN_PATIENTS:
        return float(icc_B[0]), np.nan, np.nan
    lower, upper = percentile_interval(icc_B[1:, None])
    return float(icc_B[0]), float(lower[0]), float(upper[0])


def reliability_rows(
    values: pd.DataFrame, patients: pd.Series, summary: pd.DataFrame, trial_id: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of kind reliability of one model: a is the fill, b the grid.

    Args:
        values: image_id, explainer, grid, fill and value of the primary metric, log-odds, one target rule.
        patients: image_id to patient_id.
        summary: the model's rows of the same metric, scale and target rule, bucket all.
        trial_id: the model.
        seed: of the bootstrap.
    """
    for (fill, grid), part in values.groupby(["fill", "grid"], sort=False):
        wide = part.pivot(index="image_id", columns="explainer", values="value").dropna()
        same = {"a": str(fill), "b": str(grid), "fill": str(fill), "grid": str(grid), "scale": "logodds"}
        if min(wide.shape) >= 2:
            patients_N = patients.reindex(wide.index).to_numpy(object)
            value, low, high = intraclass(wide.to_numpy(np.float64), patients_N, seed)
            found = {"value": value, "low": low, "high": high, "n": len(wide), "method": ICC}
            yield row("reliability", trial_id, "fill", statistic="icc", **same, **found)
        of_random = (summary["explainer"] == RANDOM) & (summary["control"] != "none")
        of_random &= (summary["fill"] == fill) & (summary["grid"] == grid)
        for r in summary[of_random].to_dict("records"):
            known = {"value": r["mean"], "low": r["lower"], "high": r["upper"], "n": r["n"], "method": ADVANTAGE}
            which = {"explainer": RANDOM, "control": r["control"], "p": r["mean_p"]}
            yield row(
                "reliability", trial_id, "fill", statistic=f"random_over_{r['control']}", **same, **known, **which
            )
