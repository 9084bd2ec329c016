"""The table `localisation_summary`: how well maps agree with experts, and whether they beat their controls in it.

Shapes: N images with an expert truth, or those of a bucket; K columns, each a metric of an explainer and a control.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis import beating
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.cells import Cells, cells_of
from cxr_ray.analysis.resampling import CI_METHOD, Ints, patient_bootstrap, patient_codes, patient_sums
from cxr_ray.analysis.shares import SHARE_METHOD, patient_shares
from cxr_ray.measure.localisation import POINTING

# A setting that every row of `localisation` shares, in the columns that `cells` tells settings apart by.
ONE_SETTING: dict[str, Any] = {"grid": "pixel", "fill": "none", "level": np.nan, "scale": "none"}
UNUSED: dict[str, Any] = {"overlap": np.nan, "baseline_valid": False}


def localisation_rows(
    localisation: pd.DataFrame, patients: pd.Series, family: str, seed: int, n_boot: int = 1000
) -> list[dict[str, Any]]:
    """Rows of one model and target rule, without trial_id and target_rule.

    Under control none the mean is that of the metric itself, else that of the advantage over the control. Holm's
    correction is over the explainers and controls of a metric and bucket, as in ``summary``.

    Args:
        localisation: rows of ``localisation`` with explainer and outcome, one target an image.
        patients: image_id to patient_id.
        family: begins the name of each family of tests.
        seed: of bootstrap and sign flips.
        n_boot: bootstrap samples.
    """
    if localisation.empty:
        return []
    images = localisation.drop_duplicates("image_id").sort_values("image_id")
    ids = pd.Index(images["image_id"])
    nothing = pd.DataFrame({"image_id": [], "target": [], "explainer": [], "degenerate": []})
    cells = cells_of(localisation.assign(**ONE_SETTING, **UNUSED), nothing, ids, images["target"].to_numpy(np.int64))
    patients_N = patients.reindex(ids).to_numpy(object)
    outcome_N, area_N = images["outcome"].to_numpy(object), images["area"].to_numpy(np.float64)
    rows = []
    for bucket in BUCKETS:
        chosen = np.arange(len(ids)) if bucket == "all" else np.flatnonzero(outcome_N == bucket)
        if len(chosen):
            found = _bucket(cells, chosen, patients_N[chosen], f"{family}, {bucket}", (seed, n_boot))
            same = {"bucket": bucket, "area": float(area_N[chosen].mean()), "n_boot": n_boot}
            rows += [{**same, **row} for row in found]
    return rows


def _bucket(
    cells: Cells, chosen: Ints, patients_N: NDArray[Any], family: str, sampling: tuple[int, int]
) -> list[dict[str, Any]]:
    seed, n_boot = sampling
    measure_NK = cells.measure_NK[chosen]
    lower_K, upper_K = patient_bootstrap(measure_NK, patients_N, n_boot, seed=seed)
    sums_PK, counts_PK = patient_sums(measure_NK, *patient_codes(patients_N))
    with np.errstate(invalid="ignore"):
        mean_K = sums_PK.sum(0) / counts_PK.sum(0)
        control_K = np.where(np.isnan(measure_NK), 0.0, cells.control_NK[chosen]).sum(0) / counts_PK.sum(0)
    found: dict[str, NDArray[Any]] = {
        "n": counts_PK.sum(0).astype(int),
        "n_patients": (counts_PK > 0).sum(0),
        "draws": cells.draws_K,
        "mean": mean_K,
        "lower": lower_K,
        "upper": upper_K,
        "ci_method": np.full(len(mean_K), CI_METHOD, dtype=object),
        "control_mean": np.where(cells.absolute_K, np.nan, control_K),
    }
    found |= beating.against_controls(cells, chosen, patients_N, found, family, seed)
    metric_K = cells.columns["metric"].to_numpy(object)
    found["family"] = np.array([f"explainer x control | {family}, {metric}" for metric in metric_K], dtype=object)
    found["family"][cells.absolute_K] = None
    for k in np.flatnonzero(cells.absolute_K & (metric_K == POINTING)):  # yes or no: a bootstrap knows no doubt at 0
        known_N = ~np.isnan(measure_NK[:, k])
        if known_N.any():
            share = patient_shares(measure_NK[known_N, k : k + 1] > 0, patients_N[known_N])[0]
            found["lower"][k], found["upper"][k], found["ci_method"][k] = share.lower, share.upper, SHARE_METHOD
    names = ("explainer", "metric", "control")
    values = {name: cells.columns[name].tolist() for name in names} | {n: v.tolist() for n, v in found.items()}
    return [
        {name: None if v != v else v for name, v in zip(values, row, strict=True)}
        for row in zip(*values.values(), strict=True)
    ]
