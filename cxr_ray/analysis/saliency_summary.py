"""The table `saliency_summary`: what maps look like, by explainer and bucket.

Shares are of maps, or of a map's positive mass; intervals are over patients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis import buckets
from cxr_ray.analysis.shares import SHARE_METHOD, patient_shares
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
    maps = maps.assign(degenerate=maps["degenerate"].astype("boolean"))  # may hold nulls
    columns = ["concentration", "degenerate", "tied", *MEANS]
    groups = list(buckets.by_bucket(maps, ["explainer"], columns, patients))
    means = buckets.means([(group.matrix(MEANS), group.patients) for group in groups], seed, n_boot)
    rows = []
    for group, of_group in zip(groups, means, strict=True):
        same = {"explainer": group.key[0], "bucket": group.bucket}
        rows += [{**same, **row, "area": areas.get(row["quantity"])} for row in _quantities(group, of_group)]
    return rows


def _quantities(group: buckets.Group, means: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of KINDS, tied and each of MEANS."""
    concentration, tied = group.values["concentration"], group.values["tied"]
    kinds = {name: concentration == name for name in CONCENTRATIONS}
    kinds |= {"not_finite": pd.isna(concentration), "constant": np.nan_to_num(group.values["degenerate"]) != 0}
    shares = patient_shares(np.stack([kinds[kind] for kind in KINDS], axis=1), group.patients)
    n_patients = len(set(group.patients))
    rows: list[dict[str, Any]] = [
        {
            "quantity": kind,
            "count": int(kinds[kind].sum()),
            "n": len(concentration),
            "n_patients": n_patients,
            "value": share.value,
            "lower": share.lower,
            "upper": share.upper,
            "ci_method": SHARE_METHOD,
            "n_boot": None,
        }
        for kind, share in zip(KINDS, shares, strict=True)
    ]
    for quantity, row in zip(MEANS, means, strict=True):
        rows.append({"quantity": quantity, "count": None, "value": row.pop("mean"), **row})
    known = ~np.isnan(tied)
    without = dict.fromkeys(("count", "lower", "upper", "ci_method", "n_boot"))
    median = float(np.median(tied[known])) if known.any() else np.nan
    counts = {"n": int(known.sum()), "n_patients": len(set(group.patients[known])), "value": median}
    return [*rows, {"quantity": "tied", **without, **counts}]
