"""Region effects against the causal truth on synthetic phantoms: the same phantom rendered without the thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from cxr_ray.analysis.agreement.rows import row
from cxr_ray.data.sources import all_counterfactuals
from cxr_ray.schemas import COUNTERFACTUAL

CORRELATION = "Spearman's rank correlation over images; null under 3 images, or where all are equal"
SAME_SIGN = "share of images"


def truth_points(effects: pd.DataFrame) -> pd.DataFrame:
    """Each region's effect beside the causal one, that of the counterfactual rendering.

    Args:
        effects: ``region_summary.region_effects`` with outcome, of one model and target rule.

    Returns:
        image_id, outcome, region, fill, truth_of (what the rendering leaves out: the region; or glyph, exchanged for
        the other), effect (of filling or patch-swapping the region, log-odds) and causal (log-odds).
    """
    drawn = effects[effects["fill"] == COUNTERFACTUAL].set_index(["image_id", "region"])["effect_logodds"]
    parts = []
    for region, kinds in all_counterfactuals().items():
        changed = effects[(effects["region"] == region) & (effects["fill"] != COUNTERFACTUAL)]
        points = changed[["image_id", "outcome", "region", "fill"]].assign(
            effect=changed["effect_logodds"].astype(float)
        )
        for kind in kinds:
            keys = pd.MultiIndex.from_arrays([changed["image_id"], [kind] * len(changed)])
            parts.append(points.assign(truth_of=kind, causal=drawn.reindex(keys).to_numpy()))
    return pd.concat(parts).dropna(subset=["effect", "causal"])


def truth_rows(points: pd.DataFrame, trial_id: str, target_rule: str) -> list[dict[str, Any]]:
    """Rows of kind truth of ``truth_points``: for each region, fill and rendering spearman and same_sign."""
    rows = []
    for (region, truth_of, fill), part in points.groupby(["region", "truth_of", "fill"], sort=False):
        enough = len(part) > 2 and part["effect"].nunique() > 1 and part["causal"].nunique() > 1
        rho = float(spearmanr(part["effect"], part["causal"]).statistic) if enough else np.nan
        same = int((np.sign(part["effect"]) == np.sign(part["causal"])).sum())
        setting = {
            "a": fill,
            "b": truth_of,
            "target_rule": target_rule,
            "fill": fill,
            "scale": "logodds",
            "n": len(part),
        }
        statistics: list[dict[str, Any]] = [
            {"statistic": "spearman", "value": rho, "method": CORRELATION},
            {"statistic": "same_sign", "value": same / len(part), "count": same, "method": SAME_SIGN},
        ]
        rows += [row("truth", trial_id, str(region), **setting, **statistic) for statistic in statistics]
    return rows
