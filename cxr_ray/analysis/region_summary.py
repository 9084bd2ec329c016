"""The table `region_summary`: what changing a region does to the score, beside its matched control."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis import buckets

SCALES = ("logodds", "prob")
QUANTITIES = ("effect", "matched", "advantage")


def region_effects(regions: pd.DataFrame) -> pd.DataFrame:
    """Effect of changing each region on each image: the score of the untouched image minus that of the changed one.

    Above 0: what was changed spoke for the target.

    Args:
        regions: rows of the table, of one model.

    Returns:
        One row for each image_id, target, region, fill: share_of_area, and for scale in logodds, prob: effect_<scale>,
        matched_<scale> (mean over the draws of the matched control; NaN without one), advantage_<scale> (effect minus
        matched); draws.
    """
    keys = ["image_id", "target", "region", "fill"]
    frame = regions.assign(
        effect_logodds=regions["logit_full_image"].astype(float) - regions["logit_target"],
        effect_prob=regions["prob_full_image"].astype(float) - regions["prob_target"],
    )
    values = ["effect_logodds", "effect_prob"]
    own = frame[frame["control"] == "none"].set_index(keys)[["share_of_area", *values]]
    matched = frame[frame["control"] != "none"].groupby(keys)
    means = matched[values].mean().rename(columns=lambda c: c.replace("effect", "matched"))
    out = own.join(means).join(matched.size().rename("draws"))
    for scale in SCALES:
        out[f"advantage_{scale}"] = out[f"effect_{scale}"] - out[f"matched_{scale}"]
    return out.reset_index()


def region_rows(effects: pd.DataFrame, patients: pd.Series, seed: int, n_boot: int = 1000) -> list[dict[str, Any]]:
    """Rows of one model and target rule, without trial_id and target_rule; none for a control that has no draw.

    Args:
        effects: ``region_effects`` with outcome.
        patients: image_id to patient_id.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    cells = [(scale, quantity) for scale in SCALES for quantity in QUANTITIES]
    columns = [f"{quantity}_{scale}" for scale, quantity in cells]
    groups = list(buckets.by_bucket(effects, ["region", "fill"], [*columns, "draws", "share_of_area"], patients))
    found = buckets.means([(group.matrix(columns), group.patients) for group in groups], seed, n_boot)
    rows = []
    for group, of_group in zip(groups, found, strict=True):
        (region, fill), draws_N = group.key, group.values["draws"]
        draws = 0 if np.isnan(draws_N).all() else int(np.nanmax(draws_N))
        same = {"region": region, "fill": fill, "bucket": group.bucket, "draws": draws}
        same |= {"share_of_area": float(np.nanmean(group.values["share_of_area"]))}
        rows += [
            {**same, "scale": scale, "quantity": quantity, **row}
            for (scale, quantity), row in zip(cells, of_group, strict=True)
            if draws or quantity == "effect"
        ]
    return rows
