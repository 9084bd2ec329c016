"""The table `sanity_summary`: how like the maps of a randomised model are to the model's own, and how faithful."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cxr_ray.analysis import buckets

LIKENESS = ("spearman", "spearman_abs", "ssim")
FAITHFULNESS = ("gap", "own_gap")
SETTING = ("control", "metric", "scale", "grid", "fill")  # and level


def sanity_rows(
    sanity: pd.DataFrame, own: pd.Series, patients: pd.Series, seed: int, n_boot: int = 1000
) -> list[dict[str, Any]]:
    """Rows of one model and target rule, without trial_id and target_rule.

    Args:
        sanity: rows of the table.
        own: gap of the model's own map, by (explainer, image_id, control), in the metric, level, grid, fill and scale
            of ``sanity``.
        patients: image_id to patient_id.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    keys = pd.MultiIndex.from_frame(sanity[["explainer", "image_id", "control"]])
    sanity = sanity.assign(own_gap=own.reindex(keys).to_numpy(float))
    parts = dict(iter(sanity.groupby(["explainer", "mode", "layer"], sort=False)))
    found = buckets.means(
        [(part[[*LIKENESS, *FAITHFULNESS]].to_numpy(float), part["image_id"].map(patients)) for part in parts.values()],
        seed,
        n_boot,
    )
    rows = []
    for ((explainer, mode, layer), part), means in zip(parts.items(), found, strict=True):
        same = {"explainer": explainer, "mode": mode, "layer": layer}
        measured = part["control"].notna().any()
        for quantity, row in zip((*LIKENESS, *FAITHFULNESS), means, strict=True):
            if quantity in LIKENESS:
                rows.append({**same, "quantity": quantity, **dict.fromkeys((*SETTING, "level", "draws")), **row})
            elif measured:
                setting = {name: part[name].dropna().iloc[0] for name in SETTING}
                setting["level"] = part["level"].max()  # one, or null in all
                rows.append({**same, "quantity": quantity, **setting, "draws": int(part["n_draws"].max()), **row})
    return rows
