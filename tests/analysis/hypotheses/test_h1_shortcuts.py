"""H1: its contrasts and verdicts, why it is inconclusive, and its error rates."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.hypotheses import h1_shortcuts
from cxr_ray.analysis.resampling import patient_bootstrap, sign_flip
from tests.builders.hypotheses import (
    donor_rows,
    false_positives,
    inputs,
    judged,
    names,
    predictions,
    region_rows,
    sweep,
    trials,
)

IDS = names(60)
NOISE = np.random.default_rng(0).normal(0, 0.3, 60)


def h1(**given):
    """The verdict row, and the effects of the secondary outcomes by the start of their quantity."""
    rows, secondary = judged(inputs(**false_positives(30), **given))
    return rows["H1"], {r["quantity"].split(":")[0]: r for r in secondary if r["hypothesis"] == "H1"}


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [
        (1.0, "above margin"),
        (0.0, "within margin"),
        (0.3, "within margin"),
        (0.5, "inconclusive"),
        (-1.0, "below margin"),
    ],
)
def test_corners_are_judged_against_half_a_log_odds(mean, verdict):
    row, _ = h1(swaps=[donor_rows("m", IDS, mean + NOISE)])
    assert row["verdict"] == verdict, row["reason"]
    assert row["effect"] == pytest.approx(mean + NOISE.mean())
    assert row["lower"] < row["effect"] < row["upper"]
    assert (row["n"], row["n_patients"], row["n_trials"]) == (60, 60, 1)
    assert (row["margin_low"], row["margin_high"]) == (-0.5, 0.5)
    if verdict == "above margin":
        assert row["reason"].startswith("uses class information from the corners")
        assert "a shortcut candidate" in row["reason"]


def test_a_known_marker_is_judged_instead_of_the_corners_with_its_own_margin():
    swaps = [donor_rows("m", IDS, 0.3 + NOISE, "marker"), donor_rows("m", IDS, NOISE)]
    row, secondary = h1(swaps=swaps)
    assert row["quantity"].startswith("donor swap of the marker")
    assert (row["margin_low"], row["margin_high"]) == (-0.1, 0.1)
    assert row["verdict"] == "above margin"
    assert "0.1 log-odds" in row["reason"]
    assert secondary["donor swap of the corners"]["effect"] == pytest.approx(NOISE.mean())


def test_models_of_a_variant_are_averaged_before_recipients_are_resampled():
    seeds = [f"plain-{s}" for s in range(3)]
    label = np.repeat([0, 1], 30)
    predicted = [predictions(t, np.full(60, 2.0), label) for t in seeds]
    swaps = [donor_rows(t, IDS, shift + NOISE) for t, shift in zip(seeds, (0.8, 1.0, 1.2), strict=True)]
    rows, secondary = judged(inputs(trial_rows=trials(*seeds), predicted=predicted, swaps=swaps))
    alone = h1(swaps=[donor_rows("m", IDS, 1.0 + NOISE)])[0]
    for name in ("effect", "lower", "upper", "n", "n_patients", "p"):
        assert rows["H1"][name] == pytest.approx(alone[name])
    assert rows["H1"]["n_trials"] == 3
    assert "3 trained models" in rows["H1"]["about"]
    assert "not resampled" in rows["H1"]["about"]
    each = [r["effect"] for r in secondary if "corners, model plain-" in r["quantity"]]
    assert each == pytest.approx(np.array([0.8, 1.0, 1.2]) + NOISE.mean())


def test_each_region_has_its_share_of_the_whole_images_contrast_beside_its_area():
    whole = 10 + NOISE
    swaps = [
        donor_rows("m", IDS, NOISE),
        donor_rows("m", IDS, 0.25 * whole, "border", share_of_area=0.36),
        donor_rows("m", IDS, whole, "whole", share_of_area=1.0),
    ]
    _, secondary = h1(swaps=swaps)
    assert secondary["donor swap of the whole image"]["effect"] == pytest.approx(whole.mean())
    border = secondary["border"]
    assert border["effect"] == pytest.approx(0.25)
    assert border["lower"] == pytest.approx(0.25)
    assert border["upper"] == pytest.approx(0.25)
    assert "36.0% of the area" in border["quantity"]
    assert secondary["corners"]["effect"] == pytest.approx(NOISE.sum() / whole.sum())
    assert secondary["corners"]["lower"] < secondary["corners"]["effect"] < secondary["corners"]["upper"]


def test_false_positives_are_told_apart():
    wrong, right = IDS[:25], IDS[25:]
    swaps = [donor_rows("m", wrong, 2.0, outcome="FP"), donor_rows("m", right, 1.0)]
    swaps[1]["donor_id"] = "other" + swaps[1]["donor_id"]
    row, secondary = h1(swaps=swaps)
    assert row["effect"] == pytest.approx((25 * 2 + 35) / 60)
    alone = secondary["donor swap of the corners, false positives alone"]
    assert alone["effect"] == pytest.approx(2.0)
    assert alone["n"] == 25


def test_a_draw_without_both_scores_does_not_count():
    rows = donor_rows("m", IDS, 1.0 + NOISE)
    lost = (rows["draw"] == 0) & (rows["donor_label"] == 1)
    rows.loc[lost, "logit_pneumonia"] = np.nan
    found = h1_shortcuts.contrasts(rows, pd.Series(IDS.tolist(), index=IDS))
    assert found["contrast"].tolist() == pytest.approx((1.0 + NOISE).tolist())


def test_too_few_donors_or_recipients_are_inconclusive_and_the_reason_says_so():
    few_donors, _ = h1(swaps=[donor_rows("m", IDS[:39], 2.0 + NOISE[:39], draws=1)])
    assert few_donors["verdict"] == "inconclusive"
    assert "got 39 donor images of each class and 39 recipients; expected 40 and 20" in few_donors["reason"]
    assert few_donors["effect"] is not None
    assert few_donors["p"] is None
    few_recipients, _ = h1(swaps=[donor_rows("m", IDS[:19], 2.0, draws=4)])
    assert few_recipients["verdict"] == "inconclusive"
    assert "76 donor images of each class and 19 recipients" in few_recipients["reason"]
    none, _ = h1()
    assert none["verdict"] == "inconclusive"
    assert "got 0 donor images" in none["reason"]


@pytest.mark.parametrize("regions", [None, {"donors": None}])
def test_h1_does_not_apply_where_no_donors_are_asked_for(regions):
    row, _ = h1(config=sweep(regions=regions))
    assert row["verdict"] == "not applicable"
    assert "donors: 120" in row["reason"]


@pytest.mark.parametrize("target", [0, 1])
def test_edits_count_on_normal_images_and_rise(target):
    rise = np.where(np.arange(60) < 30, 0.75, 9.0)  # the PNEUMONIA images do not count
    pasted = region_rows("m", IDS, {("paste_marker", "none", 0): -rise}, fill="edit", target=target)
    _, secondary = h1(regions=[pasted])
    row = secondary["paste_marker"]
    assert row["effect"] == pytest.approx(0.75)
    assert row["n"] == 30
    assert "proves nothing alone" in row["quantity"]


def test_donors_that_are_used_once_keep_the_error_rate_and_shared_ones_do_not():
    """Contrasts whose true mean is 0: recipients vary little and donors much, as on radiographs."""
    rng = np.random.default_rng(0)
    recipients, studies = 40, 400
    own = rng.normal(0, 0.1, (recipients, studies))
    once = rng.normal(0, 0.3, (recipients, studies)) - rng.normal(0, 0.3, (recipients, studies))
    shared = rng.normal(0, 0.3, (8, studies)).mean(0) - rng.normal(0, 0.3, (8, studies)).mean(0)
    patients = np.arange(recipients)
    rejected = [(sign_flip(own + effect, patients, 999, seed=0) <= 0.05).mean() for effect in (once, shared[None, :])]
    lower, upper = patient_bootstrap(own + once, patients, 300, seed=0)
    assert rejected[0] < 0.08
    assert rejected[1] > 0.25
    assert 0.92 < ((lower <= 0) & (upper >= 0)).mean() < 0.98
