"""The table `lung_summary`: how much maps and their controls lie on the lungs, by explainer and bucket."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis import buckets
from cxr_ray.analysis.shares import SHARE_METHOD, patient_share

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
    rows = []
    for (explainer, control, mask), part in with_own.groupby(["explainer", "control", "mask"], sort=False):
        for bucket, images in buckets.by_bucket(part):
            same = {"explainer": explainer, "bucket": bucket, "control": control, "mask": mask}
            same |= {"draws": int(images["draws"].max()), "area": float(images["area"].mean())}
            rows += [{**same, **row} for row in _quantities(images, str(control), patients, seed, n_boot)]
    return rows


def _quantities(
    images: pd.DataFrame, control: str, patients: pd.Series, seed: int, n_boot: int
) -> list[dict[str, Any]]:
    """Enrichment and, of a control, the map's advantage in it; of the map, the shares above each of ABOVE."""
    names = ["enrichment"] if control == "none" else ["enrichment", "advantage"]
    whose = images["image_id"].map(patients)
    means = buckets.means(images[names].to_numpy(float), whose, seed, n_boot)
    rows = [{"quantity": name, "value": row.pop("mean"), **row} for name, row in zip(names, means, strict=True)]
    known = images["enrichment"].notna()
    if control != "none" or not known.any():
        return rows
    for threshold in ABOVE:
        hits = (images.loc[known, "enrichment"] > threshold).to_numpy(bool)
        share = patient_share(hits, whose[known])
        counts = {"n": int(known.sum()), "n_patients": whose[known].nunique(), "n_boot": None}
        interval = {"value": share.value, "lower": share.lower, "upper": share.upper, "ci_method": SHARE_METHOD}
        rows.append({"quantity": f"above_{threshold:g}", **counts, **interval})
    return rows


def area_of(lungs: pd.DataFrame) -> float:
    """Mean share of the image that the lungs as given take, over the images that have a mask; NaN without any."""
    given = lungs[(lungs["mask"] == "given") & (lungs["control"] == "none")].drop_duplicates("image_id")
    return float(given["area"].mean()) if len(given) else np.nan
