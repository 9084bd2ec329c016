"""The table `saliency_summary`: what maps look like, by explainer and bucket.

Shares are of maps, or of a map's positive mass; intervals are over patients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis import buckets
from cxr_ray.analysis.shares import SHARE_METHOD, patient_share
from cxr_ray.measure.concentration import CONCENTRATIONS
from cxr_ray.measure.regions import BORDER, CENTRE, CORNER

AREAS = {  # share of a map's mass: share of the image's area
    "border_share": 1 - (1 - 2 * BORDER) ** 2,
    "corner_share": 4 * CORNER**2,
    "centre_share": CENTRE**2,
}
KINDS = (*CONCENTRATIONS, "not_finite", "constant")  # of maps, counted
MEANS = (*AREAS, "lung_share", "half_mass_area")  # of numbers that a map has
COLUMNS = ("explainer", "image_id", "target", "tied", "degenerate", "concentration", *MEANS)  # read of `saliency`


def saliency_rows(
    maps: pd.DataFrame, patients: pd.Series, lung_area: float, seed: int, n_boot: int = 1000
) -> list[dict[str, Any]]:
    """Rows of one model and target rule, without trial_id and target_rule.

    Args:
        maps: COLUMNS of ``saliency`` and outcome.
        patients: image_id to patient_id.
        lung_area: mean share of the image that the lungs take; NaN without masks.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    areas = {**AREAS, "lung_share": lung_area}
    rows = []
    for explainer, of_explainer in maps.groupby("explainer", sort=False, observed=True):
        for bucket, part in buckets.by_bucket(of_explainer):
            same = {"explainer": explainer, "bucket": bucket}
            rows += [
                {**same, **row, "area": areas.get(row["quantity"])} for row in _quantities(part, patients, seed, n_boot)
            ]
    return rows


def _quantities(part: pd.DataFrame, patients: pd.Series, seed: int, n_boot: int) -> list[dict[str, Any]]:
    """A row for each of KINDS, tied and each of MEANS."""
    kinds = {name: (part["concentration"] == name) for name in CONCENTRATIONS}
    kinds |= {
        "not_finite": part["concentration"].isna(),
        "constant": part["degenerate"].astype("boolean").fillna(False),
    }
    whose = part["image_id"].map(patients)
    rows = [{"quantity": kind, **_share(kinds[kind].to_numpy(bool), whose)} for kind in KINDS]
    values_NK = np.stack([part[m].to_numpy(float) for m in MEANS], axis=1)
    for quantity, row in zip(MEANS, buckets.means(values_NK, whose, seed, n_boot), strict=True):
        rows.append({"quantity": quantity, "count": None, "value": row.pop("mean"), **row})
    tied = part["tied"].notna()
    without = dict.fromkeys(("count", "lower", "upper", "ci_method", "n_boot"))
    counts = {"n": int(tied.sum()), "n_patients": whose[tied].nunique(), "value": float(part["tied"].median())}
    return [*rows, {"quantity": "tied", **without, **counts}]


def _share(hits_N: NDArray[np.bool_], patients: pd.Series) -> dict[str, Any]:
    """Columns of the share of maps that are of a kind."""
    share = patient_share(hits_N, patients)
    return {
        "count": int(hits_N.sum()),
        "n": len(hits_N),
        "n_patients": patients.nunique(),
        "value": share.value,
        "lower": share.lower,
        "upper": share.upper,
        "ci_method": SHARE_METHOD,
        "n_boot": None,
    }
