"""H1, shortcuts: false positives lose log-odds when border and corners are swapped for those of another patient's
NORMAL image, more than when the same shapes are swapped elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import NOT_APPLICABLE, Margin
from cxr_ray.analysis.hypotheses.rows import Row, counts, means, row
from cxr_ray.analysis.resampling import CI_METHOD, bootstrap_difference
from cxr_ray.measure.edits import EDITS
from cxr_ray.schemas import PATCH_SWAP

MARGIN = Margin.around_zero(0.5)  # log-odds
EDGES = ("border", "corners")


def shortcuts(inputs: Inputs, test: pd.DataFrame, variant: str, n_boot: int) -> Iterator[Row]:
    """Border and corners against their controls on false positives; then regions and fills, edits, maps at the border.

    Judged by patch swap alone: a grey shape in a lung may look like an opacity, so that filling the control raises the
    score of PNEUMONIA and the edge seems to speak for it (``benchmarks.calibration`` shows it).
    """
    sweep, fill, seed = inputs.sweep, PATCH_SWAP, inputs.sweep.seed
    judged: Row = {}
    what = "drop of the log-odds of PNEUMONIA, false positives, minus the mean of the same shape elsewhere"
    quantity = f"patch swap of border and corners (mean of both): {what}"
    regions = inputs.regions[inputs.regions["trial_id"].isin(test["trial_id"])]
    wrong = test.loc[test["outcome"] == "FP", ["trial_id", "image_id", "patient_id"]]
    compared = _against_controls(_effects(regions).merge(wrong, on=["trial_id", "image_id"]))
    edges = compared[compared["region"].isin(EDGES) & (compared["fill"] == fill)]
    both = edges.groupby(["trial_id", "image_id", "patient_id"], as_index=False).agg(
        gap=("gap", "mean"), n=("region", "size")
    )
    both = both[(both["n"] == len(EDGES)) & both["gap"].notna()]
    missing = [r for r in EDGES if sweep.regions is None or r not in sweep.regions.names]
    swapped = (regions["fill"] == fill).any()
    if missing:
        judged |= {"reason": f"add {' and '.join(missing)} to regions.names", "verdict": NOT_APPLICABLE}
    elif both.empty:
        judged["reason"] = (
            "there are no false positives"
            if wrong.empty
            else "no false positive has a value"
            if swapped
            else "no patch was swapped: validation and test have no readable NORMAL image of another patient"
        )
    else:
        judged = means(both, "gap", seed, n_boot, MARGIN)
    yield row("H1", variant, quantity, "log-odds", **judged)

    for (region, one_fill), part in compared.groupby(["region", "fill"], sort=False):
        how = f"patch swap of {region}" if one_fill == PATCH_SWAP else f"filling {region} with {one_fill}"
        yield row("H1", variant, f"{how}: {what}", "log-odds", **means(part, "gap", seed, n_boot))
    normal = test.loc[test["label"] == 0, ["trial_id", "image_id", "patient_id"]]
    edits = _effects(regions[regions["fill"] == "edit"]).merge(normal, on=["trial_id", "image_id"])
    for edit in EDITS:
        part = edits[edits["region"] == edit]
        if len(part):
            rise = means(part.assign(rise=-part["effect"]), "rise", seed, n_boot)
            yield row("H1", variant, f"{edit}: rise of the log-odds of PNEUMONIA, NORMAL images", "log-odds", **rise)
    yield from _border_concentration(inputs, variant, test, n_boot)


def _effects(regions: pd.DataFrame) -> pd.DataFrame:
    """effect: how far the log-odds of PNEUMONIA fall; a row that stands for both targets counts once."""
    sign = np.where(regions["target"] == 1, 1.0, -1.0)
    effect = sign * (regions["logit_full_image"].astype(float) - regions["logit_target"].astype(float))
    return regions.assign(effect=effect).drop_duplicates(["trial_id", "image_id", "region", "fill", "control", "draw"])[
        ["trial_id", "image_id", "region", "fill", "control", "draw", "effect"]
    ]


def _against_controls(effects: pd.DataFrame) -> pd.DataFrame:
    """gap of each (trial, image, region, fill) that has matched draws, as for maps."""
    key = ["trial_id", "image_id", "patient_id", "region", "fill"]
    own = effects.loc[effects["control"] == "none", [*key, "effect"]]
    draws = effects[effects["control"] == "matched"].merge(own, on=key, suffixes=("_draw", ""))
    ahead = draws["effect"] - draws["effect_draw"]
    return draws.assign(gap=ahead).groupby(key, as_index=False, sort=False)[["gap"]].mean()


def _border_concentration(inputs: Inputs, variant: str, test: pd.DataFrame, n_boot: int) -> Iterator[Row]:
    name, maps = inputs.primary.explainer, inputs.maps(test)
    border = (maps["concentration"] == "border").astype(float)
    fp, tp = (maps.assign(border=border)[maps["outcome"] == o] for o in ("FP", "TP"))
    if len(fp) and len(tp):
        lower, upper = bootstrap_difference(
            fp[["border"]].to_numpy(),
            fp["patient_id"],
            tp[["border"]].to_numpy(),
            tp["patient_id"],
            n_boot,
            seed=inputs.sweep.seed,
        )
        yield row(
            "H1",
            variant,
            f"share of maps of {name} concentrated on the border, false positives minus true ones",
            "share",
            **counts(pd.concat([fp, tp])),
            effect=float(fp["border"].mean() - tp["border"].mean()),
            lower=lower[0],
            upper=upper[0],
            ci_method=CI_METHOD,
        )
