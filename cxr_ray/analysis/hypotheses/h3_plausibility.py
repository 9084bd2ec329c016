"""H3, plausible but unfaithful: maps that look right beat the same map shifted no more often than chance.

A map looks right where most of its mass is in the lungs and it is not diffuse.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import ALPHA, NOT_APPLICABLE, Margin
from cxr_ray.analysis.hypotheses.rows import ALTERNATIVE, Row, counts, row
from cxr_ray.analysis.resampling import (
    MIN_PATIENTS,
    bootstrap_weights,
    patient_codes,
    patient_sums,
    percentile_interval,
)
from cxr_ray.analysis.shares import SHARE_METHOD, patient_share

CHANCE = 0.05  # share of maps without information that beat their control at p <= 0.05
MARGIN = Margin.line(CHANCE + 0.10)  # share of maps
MIN_DRAWS = 39
IN_LUNGS = 0.5  # share of a plausible map's positive mass
FOCUSED_AREA = 0.15  # share of the image that holds half of a plausible map's positive mass, at most


def plausibility(inputs: Inputs, test: pd.DataFrame, variant: str, n_boot: int) -> Iterator[Row]:
    """Share of plausible maps that beat `shifted`; then that of the others, and faithfulness against confidence."""
    sweep, setting, metric = inputs.sweep, f"{inputs.primary.explainer}, {inputs.setting}", inputs.primary.label
    what = f"share that beats `shifted` at p <= {ALPHA:g} in {metric}, {{}} of true and false positives ({setting})"
    judged: Row = {}
    maps = inputs.maps(test[test["outcome"].isin(["TP", "FP"])])
    faith = inputs.faithfulness
    faith = faith[(faith["target"] == 1) & (faith["control"] == "shifted")]
    maps = maps.merge(faith[["trial_id", "image_id", "gap", "p_value"]], on=["trial_id", "image_id"])
    maps = maps[maps["gap"].notna()]
    focused = (maps["half_mass_area"] <= FOCUSED_AREA) | (maps["concentration"] == "border")
    looks_right = (maps["lung_share"] >= IN_LUNGS) & focused
    draws = max(sweep.controls.get("shifted", 0), sweep.sequential.max_draws if sweep.sequential else 0)
    if "shifted" not in sweep.controls or draws < MIN_DRAWS:
        judged["reason"] = f"controls.shifted has {sweep.controls.get('shifted', 0)} draws; set {MIN_DRAWS} or more"
        judged["verdict"] = NOT_APPLICABLE
    elif maps.empty:
        judged["reason"] = "no true or false positive has a map that could be compared"
    elif maps["lung_share"].isna().all():
        judged |= {"reason": "there are no lung masks: set regions.lungs", "verdict": NOT_APPLICABLE}
    elif not looks_right.any():
        judged["reason"] = "no map is plausible"
    else:
        judged |= _share(maps[looks_right], MARGIN)
    plausible = (
        f"plausible maps (at least {IN_LUNGS:.0%} of the mass in the lungs, half of it in {FOCUSED_AREA:.0%} of the "
        "area or less, or at the border)"
    )
    quantity = what.format(plausible)
    yield row("H3", variant, quantity, "share", **judged)
    if maps["p_value"].notna().any():
        if looks_right.any() and not looks_right.all():
            others = _share(maps[~looks_right & maps["lung_share"].notna()])
            yield row("H3", variant, what.format("implausible maps"), "share", **others)
        yield row("H3", variant, what.format("all maps"), "share", **_share(maps))
    if len(maps):
        yield row(
            "H3",
            variant,
            f"faithfulness against confidence: rank correlation of the advantage over `shifted` in {metric} "
            f"with the log-odds, true and false positives ({setting})",
            "Spearman's rho",
            **_rank_correlation(maps, inputs.sweep.seed, n_boot),
        )


def _share(maps: pd.DataFrame, margin: Margin | None = None) -> Row:
    """Share of p-values at most 0.05 with its interval, and p against the margin."""
    maps = maps[maps["p_value"].notna()]
    known = counts(maps)
    if maps.empty:
        return known
    beats_N = (maps["p_value"] <= ALPHA + 1e-6).to_numpy(bool)  # float32 of 0.05
    share = patient_share(beats_N, maps["patient_id"])
    found = known | {"effect": share.value, "lower": share.lower, "upper": share.upper, "ci_method": SHARE_METHOD}
    if margin is None or known["n_patients"] < MIN_PATIENTS:
        return found
    above = patient_share(~beats_N, maps["patient_id"]).tail(1 - margin.high)
    p = margin.p(share.value, above, share.tail(margin.low))
    return found | {"p": p, "test": "binomial tail of the interval, against the margin", "alternative": ALTERNATIVE}


def _rank_correlation(maps: pd.DataFrame, seed: int, n_boot: int) -> Row:
    """Spearman's rho of gap and |log-odds|, ranks within each trial, patients resampled with the ranks they have."""
    ranks_N2 = np.stack(
        [
            (maps[c].abs() if c == "logit_pneumonia" else maps[c]).groupby(maps["trial_id"]).rank(pct=True) - 0.5
            for c in ("gap", "logit_pneumonia")
        ],
        axis=1,
    )
    x, y = ranks_N2.T
    sums_PK, _ = patient_sums(
        np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1), *patient_codes(maps["patient_id"])
    )
    weights_BP = np.concatenate([np.ones((1, len(sums_PK))), bootstrap_weights(len(sums_PK), n_boot, seed)])
    n, sx, sy, sxx, syy, sxy = (weights_BP @ sums_PK).T
    with np.errstate(invalid="ignore", divide="ignore"):
        rho_B = (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))
    lower, upper = percentile_interval(rho_B[1:, None])
    few = len(sums_PK) < MIN_PATIENTS
    return counts(maps) | {
        "effect": float(rho_B[0]),
        "lower": np.nan if few else lower[0],
        "upper": np.nan if few else upper[0],
        "ci_method": "percentile bootstrap over patients",
    }
