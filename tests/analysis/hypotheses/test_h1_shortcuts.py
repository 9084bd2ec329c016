"""H1: its verdicts, and the reasons to be inconclusive."""

import numpy as np
import pytest

from tests.builders.hypotheses import edges, false_positives, inputs, judged, names, predictions, region_rows, sweep


def test_h1_above_margin_and_its_effect_is_the_mean_of_both_regions():
    ids = names(40)  # the last ten are true positives, and do not count
    noise = np.random.default_rng(0).normal(0, 0.2, 40)
    rows, secondary = judged(
        inputs(**false_positives(30), regions=[region_rows("m", ids, edges(2 + noise, 1 - noise / 2))])
    )
    h1 = rows["H1"]
    assert h1["verdict"] == "above margin"
    assert h1["effect"] == pytest.approx(np.mean(1.5 + noise[:30] / 4) - 0.5)
    assert h1["lower"] < h1["effect"] < h1["upper"]
    assert (h1["n"], h1["n_patients"], h1["n_trials"]) == (30, 30, 1)
    alone = {row["quantity"].split(":")[0]: row for row in secondary if row["hypothesis"] == "H1"}
    assert alone["patch swap of border"]["effect"] == pytest.approx(np.mean(2 + noise[:30]) - 0.5)


@pytest.mark.parametrize("target", [0, 1])
def test_h1_within_margin_whichever_target_was_scored(target):
    ids = names(30)
    noise = np.random.default_rng(0).normal(0, 0.2, 30)
    regions = region_rows("m", ids, edges(0.5 + noise, 0.5), target=target)
    h1 = judged(inputs(**false_positives(30), regions=[regions]))[0]["H1"]
    assert h1["verdict"] == "within margin"
    assert h1["effect"] == pytest.approx(noise.mean() / 2)
    assert h1["p"] > 0.05


def test_h1_is_not_judged_by_fills():
    """A fill may draw an opacity where the control lies; its effects are secondary outcomes."""
    rows, secondary = judged(
        inputs(**false_positives(30), regions=[region_rows("m", names(30), edges(3, 3), fill="mean")])
    )
    assert rows["H1"]["verdict"] == "inconclusive"
    assert "no patch was swapped" in rows["H1"]["reason"]
    filled = {row["quantity"].split(":")[0]: row["effect"] for row in secondary if row["hypothesis"] == "H1"}
    assert filled == {"filling border with mean": 2.5, "filling corners with mean": 2.5}


def test_h1_inconclusive_where_something_is_missing():
    few = judged(inputs(**false_positives(19), regions=[region_rows("m", names(19), edges(3, 3))]))
    assert few[0]["H1"]["verdict"] == "inconclusive"
    assert "19 patients" in few[0]["H1"]["reason"]
    without = judged(inputs(sweep(regions={"names": ["border"]}), **false_positives(30)))[0]["H1"]
    assert "add corners" in without["reason"]
    assert without["verdict"] == "not applicable"
    off = judged(inputs(sweep(regions=None), **false_positives(30)))[0]["H1"]
    assert "add border and corners" in off["reason"]
    none = judged(inputs(predicted=[predictions("m", np.full(40, -2.0), np.repeat([0, 1], 20))]))[0]["H1"]
    assert "no false positives" in none["reason"]


def test_edits_count_on_normal_images_and_rise():
    ids = names(60)
    rise = np.where(np.arange(60) < 30, 0.75, 9.0)  # the PNEUMONIA images do not count
    pasted = region_rows("m", ids, {("paste_marker", "none", 0): -rise}, fill="edit")
    _, secondary = judged(inputs(**false_positives(30), regions=[pasted]))
    (row,) = (r for r in secondary if r["quantity"].startswith("paste_marker"))
    assert row["effect"] == pytest.approx(0.75)
    assert row["n"] == 30
