"""Whether faithful maps are plausible: faithfulness beside agreement with experts, image by image, over one control.

Shapes: N images; B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cxr_ray.analysis.agreement.rows import row
from cxr_ray.analysis.resampling import (
    MIN_PATIENTS,
    Floats,
    patient_codes,
    patient_sums,
    percentile_interval,
    resampled_sums,
)
from cxr_ray.analysis.shares import SHARE_METHOD, patient_shares

CORRELATION = (
    "Spearman's rank correlation over images of the advantage in faithfulness and that in localisation; 95% percentile "
    "interval over patients, ranks kept (null under 20)"
)
ALONE = f"share of images; {SHARE_METHOD}"
POINT = ["image_id", "explainer", "control"]


def points(faithfulness: pd.DataFrame, localisation: pd.DataFrame) -> pd.DataFrame:
    """Each map's advantage and win rate over a control in both.

    Args:
        faithfulness: POINT, gap and win_rate in one metric and setting, one target an image.
        localisation: POINT, outcome, metric, gap and win_rate, of the same targets.

    Returns:
        POINT, metric, outcome, faithful, plausible (the advantages), faithful_wins and plausible_wins; maps that have
        both.
    """
    own = faithfulness[[*POINT, "gap", "win_rate"]].rename(columns={"gap": "faithful", "win_rate": "faithful_wins"})
    theirs = localisation[[*POINT, "metric", "outcome", "gap", "win_rate"]]
    theirs = theirs.rename(columns={"gap": "plausible", "win_rate": "plausible_wins"})
    return theirs.merge(own, on=POINT).dropna(subset=["faithful", "plausible"])


def rank_correlation(
    first_N: Floats, second_N: Floats, patients_N: Any, seed: int, n_boot: int = 1000
) -> tuple[float, float, float]:
    """Spearman's correlation with its 95% interval over patients: value, lower, upper.

    Samples keep the ranks of the data, so that each is a sum over patients. NaN where either does not vary, or under 3
    images; no interval under 20 patients.
    """
    if len(first_N) < 3 or np.ptp(first_N) == 0 or np.ptp(second_N) == 0:
        return np.nan, np.nan, np.nan
    x, y = (rankdata(values) for values in (first_N, second_N))
    x, y = x - x.mean(), y - y.mean()
    codes, n_patients = patient_codes(patients_N)
    moments = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)
    sums_PQ, _ = patient_sums(moments, codes, n_patients)
    sums_BQ = np.concatenate([sums_PQ.sum(0, keepdims=True), resampled_sums(sums_PQ, n_boot, seed)])
    n, sx, sy, sxy, sxx, syy = sums_BQ.T
    with np.errstate(divide="ignore", invalid="ignore"):
        found_B = (sxy - sx * sy / n) / np.sqrt((sxx - sx**2 / n) * (syy - sy**2 / n))
    if n_patients < MIN_PATIENTS:
        return float(found_B[0]), np.nan, np.nan
    lower, upper = percentile_interval(found_B[1:, None])
    return float(found_B[0]), float(lower[0]), float(upper[0])


def plausibility_rows(
    both: pd.DataFrame, patients: pd.Series, trial_id: str, target_rule: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of kind plausibility of one model: axis is the metric of localisation, a the explainer, b the control.

    Args:
        both: of ``points``.
        patients: image_id to patient_id.
        trial_id: the model.
        target_rule: whose maps and scores they are.
        seed: of the bootstrap.
    """
    for (metric, explainer, control), part in both.groupby(["metric", "explainer", "control"], sort=False):
        whose = patients.reindex(part["image_id"]).to_numpy(object)
        faithful, plausible = (part[name].to_numpy(np.float64) for name in ("faithful", "plausible"))
        setting = {"a": explainer, "b": control, "explainer": explainer, "control": control}
        setting |= {"target_rule": target_rule, "n": len(part)}
        value, low, high = rank_correlation(faithful, plausible, whose, seed)
        found = {"value": value, "low": low, "high": high, "method": CORRELATION}
        yield row("plausibility", trial_id, str(metric), statistic="spearman", **setting, **found)
        wins = {name: part[f"{name}_wins"].to_numpy(np.float64) > 0.5 for name in ("faithful", "plausible")}
        alone = {
            "faithful_alone": wins["faithful"] & ~wins["plausible"],
            "plausible_alone": wins["plausible"] & ~wins["faithful"],
        }
        for (statistic, hits), share in zip(
            alone.items(), patient_shares(np.stack(list(alone.values()), axis=1), whose), strict=True
        ):
            found = {"value": share.value, "low": share.lower, "high": share.upper, "method": ALONE}
            yield row(
                "plausibility", trial_id, str(metric), statistic=statistic, count=int(hits.sum()), **setting, **found
            )
