"""The table `lung_summary`: how much maps and their controls lie on the lungs, by explainer and bucket."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis import buckets
from cxr_ray.analysis.shares import SHARE_METHOD, patient_shares

ABOVE = (1.0, 1.5)  # enrichments whose share of maps is told
OF_AREA = ("image_id", "control", "mask", "area")  # read of `lungs` for ``area_of``
KEY = ["explainer", "image_id", "target", "mask"]


def lung_rows(lungs: pd.DataFrame, patients: pd.Series, seed: int, n_boot: int = 1000) -> list[dict[str, Any]]:
    """Rows of one model and target rule, without trial_id and target_rule.

    Args:
        lungs: rows of ``lungs`` with explainer and outcome.
        patients: image_id to patient_id.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    own = lungs[lungs["control"] == "none"].set_index(KEY)["enrichment"].astype(float)
    with_own = lungs.join(own.rename("own"), on=KEY)
    with_own["advantage"] = with_own["own"] - with_own["enrichment"].astype(float)
    columns = ["enrichment", "advantage", "draws", "area"]
    groups = list(buckets.by_bucket(with_own, ["explainer", "control", "mask"], columns, patients))
    parts = [(group.matrix(_names(group)), group.patients) for group in groups]
    rows = []
    for group, means in zip(groups, buckets.means(parts, seed, n_boot), strict=True):
        explainer, control, mask = group.key
        same = {"explainer": explainer, "bucket": group.bucket, "control": control, "mask": mask}
        same |= {"draws": int(np.nanmax(group.values["draws"])), "area": float(np.nanmean(group.values["area"]))}
        found = [
            {"quantity": name, "value": row.pop("mean"), **row} for name, row in zip(_names(group), means, strict=True)
        ]
        rows += [{**same, **row} for row in (*found, *_shares_above(group))]
    return rows


def _names(group: buckets.Group) -> list[str]:
    """Enrichment and, of a control, the map's advantage in it."""
    return ["enrichment"] if group.key[1] == "none" else ["enrichment", "advantage"]


def _shares_above(group: buckets.Group) -> list[dict[str, Any]]:
    """Of the map, the shares above each of ABOVE."""
    known = ~np.isnan(group.values["enrichment"])
    if group.key[1] != "none" or not known.any():
        return []
    enrichment, whose = group.values["enrichment"][known], group.patients[known]
    counts = {"n": len(whose), "n_patients": len(set(whose)), "n_boot": None}
    shares = patient_shares(enrichment[:, None] > np.array(ABOVE), whose)
    rows = []
    for threshold, share in zip(ABOVE, shares, strict=True):
        interval = {"value": share.value, "lower": share.lower, "upper": share.upper, "ci_method": SHARE_METHOD}
        rows.append({"quantity": f"above_{threshold:g}", **counts, **interval})
    return rows


def area_of(lungs: pd.DataFrame) -> float:
    """Mean share of the image that the lungs as given take, over the images that have a mask; NaN without any."""
    given = lungs[(lungs["mask"] == "given") & (lungs["control"] == "none")].drop_duplicates("image_id")
    return float(given["area"].mean()) if len(given) else np.nan
