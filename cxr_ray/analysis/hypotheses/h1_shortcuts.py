"""H1, shortcuts: the model reads the class from the corners of an image, where markers lie.

Judged by donor swaps (``measure.donor_swaps``): the score with a region's pixels from PNEUMONIA donors minus that from
NORMAL donors, same recipient and shape. It is 0 where the region holds no class information that the model uses.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import NOT_APPLICABLE, Margin
from cxr_ray.analysis.hypotheses.rows import Row, counts, means, row
from cxr_ray.analysis.resampling import (
    CI_METHOD,
    MIN_PATIENTS,
    bootstrap_difference,
    patient_codes,
    patient_sums,
    percentile_interval,
    resampled_sums,
)
from cxr_ray.measure.edits import EDITS
from cxr_ray.schemas import CLASSES, WHOLE

MARGIN = Margin.around_zero(0.5)  # log-odds, of the corners, which hold a little anatomy
MARKER_MARGIN = Margin.around_zero(0.1)  # log-odds, of a marker whose place is known
MIN_DONORS, MIN_RECIPIENTS = 40, 20  # of each class; fewer settle nothing
LIMITS = (
    "Limits of H1: weak markers are missed where no mask says where they lie. It cannot tell a marker from framing. "
    "The margin of 0.5 suits networks whose whole image gives a contrast of about 10 log-odds; elsewhere read the "
    "share of the whole image's contrast (5% or more). The border holds anatomy: it is described, and never called a "
    "shortcut."
)
CONTRAST = "log-odds of PNEUMONIA of NORMAL images with its pixels from PNEUMONIA donors minus from NORMAL donors"
SHARE_METHOD = "percentile bootstrap over patients"
SAYS_OF_EDITS = {"paste_marker": " (shifts networks that never saw a marker too, so proves nothing alone)"}


def shortcuts(inputs: Inputs, test: pd.DataFrame, variant: str, n_boot: int) -> Iterator[Row]:
    """The contrast of the corners, or of a marker whose place is known; then other regions, shares, edits and maps.

    A recipient's contrasts are averaged over the variant's models first: their donors are the same, so that their
    contrasts move together.
    """
    seed, swaps = inputs.sweep.seed, inputs.donor_swaps[inputs.donor_swaps["trial_id"].isin(test["trial_id"])]
    found = contrasts(swaps, inputs.patients)
    region = "marker" if (found["region"] == "marker").any() else "corners"
    margin = MARKER_MARGIN if region == "marker" else MARGIN
    judged = _mean(found[found["region"] == region], seed, n_boot, margin)
    judged |= {"margin_low": margin.low, "margin_high": margin.high, "about": _about(inputs, variant, judged)}
    if (missing := _missing(inputs, swaps[swaps["region"] == region])) is not None:
        judged |= missing | {"p": None, "test": None, "alternative": None}
    yield row("H1", variant, f"donor swap of the {_named(region)}: {CONTRAST}", "log-odds", **judged)

    for name, part in found.groupby("region", sort=False):
        if name != region:
            described = _mean(part, seed, n_boot)
            yield row("H1", variant, f"donor swap of the {_named(str(name))}: {CONTRAST}", "log-odds", **described)
    yield from _shares(found, variant, seed, n_boot)
    of_region = found[found["region"] == region]
    wrong = of_region[of_region["outcome"] == "FP"]
    if len(wrong):
        alone = f"donor swap of the {_named(region)}, false positives alone: {CONTRAST}"
        yield row("H1", variant, alone, "log-odds", **_mean(wrong, seed, n_boot))
    if of_region["trial_id"].nunique() > 1:
        for trial_id, part in of_region.groupby("trial_id"):
            quantity = f"donor swap of the {_named(region)}, model {trial_id}: {CONTRAST}"
            yield row("H1", variant, quantity, "log-odds", **_mean(part, seed, n_boot))
    yield from _edits(inputs, test, variant, n_boot)
    yield from _border_concentration(inputs, variant, test, n_boot)


def contrasts(swaps: pd.DataFrame, patients: pd.Series) -> pd.DataFrame:
    """Contrast of each recipient: mean over draws of the score with the PNEUMONIA donor minus with the NORMAL one.

    Args:
        swaps: rows of ``donor_swaps``.
        patients: image_id to patient_id.

    Returns:
        trial_id, image_id, patient_id, outcome, region, contrast (log-odds), share_of_area; a draw without a score of
        both donors does not count.
    """
    key = ["trial_id", "image_id", "outcome", "region"]
    swaps = swaps.assign(logit=swaps["logit_pneumonia"].astype(float))
    signed = np.where(swaps["donor_label"] == 1, swaps["logit"], -swaps["logit"])
    draws = swaps.assign(contrast=signed).groupby([*key, "draw"], sort=False)
    both = draws.agg(contrast=("contrast", "sum"), n=("logit", "count"), share_of_area=("share_of_area", "mean"))
    both = both[both["n"] == len(CLASSES)].reset_index()
    found = both.groupby(key, sort=False, as_index=False)[["contrast", "share_of_area"]].mean()
    return found.assign(patient_id=found["image_id"].map(patients))


def _mean(part: pd.DataFrame, seed: int, n_boot: int, margin: Margin | None = None) -> Row:
    """Mean over recipients of the mean over models."""
    n_trials = part["trial_id"].nunique()
    averaged = part.groupby(["image_id", "patient_id"], as_index=False)["contrast"].mean()
    if averaged.empty:
        return {"n_trials": n_trials, "n": 0, "n_patients": 0}
    return means(averaged.assign(trial_id="mean"), "contrast", seed, n_boot, margin) | {"n_trials": n_trials}


def _missing(inputs: Inputs, swaps: pd.DataFrame) -> Row | None:
    """Why there is nothing to judge, if so."""
    regions = inputs.sweep.regions
    if regions is None or regions.donors is None:
        return {"reason": "add regions with donors to the sweep (regions: {donors: 120})", "verdict": NOT_APPLICABLE}
    donors = swaps.groupby("donor_label")["donor_id"].nunique().reindex(range(len(CLASSES)), fill_value=0).min()
    recipients = swaps["image_id"].nunique()
    if donors >= MIN_DONORS and recipients >= MIN_RECIPIENTS:
        return None
    return {
        "reason": (
            f"got {donors} donor images of each class and {recipients} recipients; expected {MIN_DONORS} and "
            f"{MIN_RECIPIENTS} or more (validation and NORMAL test images, one a patient, no patient in both); raise "
            "data.limit, data.val_share or regions.donors"
        )
    }


def _about(inputs: Inputs, variant: str, judged: Row) -> str | None:
    """Of several models only: other subjects are named as those of any hypothesis."""
    models = judged["n_trials"]
    if models < 2:
        return None
    return f"the mean of these {models} trained models of the variant {variant}, not resampled: other seeds may differ"


def _named(region: str) -> str:
    return "whole image" if region == WHOLE else region


def _shares(found: pd.DataFrame, variant: str, seed: int, n_boot: int) -> Iterator[Row]:
    """Each region's share of the whole image's contrast, beside its share of the area."""
    wide = found.groupby(["patient_id", "region"])["contrast"].mean().unstack()
    area = found.groupby("region", sort=False)["share_of_area"].mean()
    n_trials = found["trial_id"].nunique()
    for region in (r for r in area.index if r != WHOLE and WHOLE in wide):
        both = wide[[region, WHOLE]].dropna()
        n = len(both)
        known: Row = {
            "n_trials": n_trials,
            "n": n,
            "n_patients": n,
            "effect": float(both[region].sum() / both[WHOLE].sum()),
        }
        if n >= MIN_PATIENTS:
            sums_PK, _ = patient_sums(both.to_numpy(), *patient_codes(both.index))
            of_region_B, of_whole_B = resampled_sums(sums_PK, n_boot, seed).T
            lower, upper = percentile_interval((of_region_B / of_whole_B)[:, None])
            known |= {"lower": lower[0], "upper": upper[0], "ci_method": SHARE_METHOD}
        note = "; it holds anatomy, and is described alone" if region == "border" else ""
        quantity = f"{_named(region)}: share of the whole image's contrast, on {area[region]:.1%} of the area{note}"
        yield row("H1", variant, quantity, "share", **known)


def _edits(inputs: Inputs, test: pd.DataFrame, variant: str, n_boot: int) -> Iterator[Row]:
    normal = test.loc[test["label"] == 0, ["trial_id", "image_id", "patient_id"]]
    edited = inputs.regions[inputs.regions["fill"] == "edit"].merge(normal, on=["trial_id", "image_id"])
    sign = np.where(edited["target"] == 1, 1.0, -1.0)
    rise = sign * (edited["logit_target"].astype(float) - edited["logit_full_image"].astype(float))
    edited = edited.assign(rise=rise).drop_duplicates(["trial_id", "image_id", "region"])  # a row for each target
    for edit in EDITS:
        part = edited[edited["region"] == edit]
        if len(part):
            quantity = f"{edit}: rise of the log-odds of PNEUMONIA, NORMAL images{SAYS_OF_EDITS.get(edit, '')}"
            yield row("H1", variant, quantity, "log-odds", **means(part, "rise", inputs.sweep.seed, n_boot))


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
