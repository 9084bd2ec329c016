"""Rankings that agree, reverse or turn on one choice alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from cxr_ray.analysis.agreement.ranking import AXES, ranking_agreement, ranking_rows
from cxr_ray.schemas import AGREEMENT
from tests.builders.summaries import CHOICES, EXPLAINERS, summary

ABPC = ("abpc", np.nan)


def taus(frame: pd.DataFrame) -> dict:
    return {(r.axis, r.a, r.b): r for r in frame.itertuples()}


def test_one_ranking_everywhere_gives_tau_one_on_every_axis():
    found = ranking_agreement(summary(lambda i, row: i * (3 if row["scale"] == "logodds" else 1)), "m", ABPC)
    assert (found[["tau_mean", "tau_min", "tau_max"]] == 1).all(axis=None)
    assert (found.n_explainers == len(EXPLAINERS)).all()
    assert set(found.axis) == set(AXES)
    # areas: 2 x 2 x 3 x 2 x 2 combinations without "none", and each drop as many
    settings = found.groupby("axis").n_settings.unique().map(list).to_dict()
    assert settings == {"target_rule": [24], "grid": [24], "fill": [16], "level": [48], "scale": [24], "control": [24]}
    assert found.axis.value_counts().to_dict() == {**dict.fromkeys(AXES, 1), "fill": 3, "level": 3}


def test_a_choice_that_reverses_the_ranking_gives_minus_one_on_its_axis_alone():
    found = taus(ranking_agreement(summary(lambda i, row: -i if row["fill"] == "blur" else i), "m", ABPC))
    assert found["fill", "mean", "blur"].tau_max == -1
    assert found["fill", "blur", "noise"].tau_max == -1
    assert found["fill", "mean", "noise"].tau_min == 1
    assert all(r.tau_min == 1 for (axis, *_), r in found.items() if axis != "fill")


def test_taus_are_averaged_over_the_other_choices():
    """The level turns the ranking under one of three fills: mean (1 + 1 - 1) / 3."""
    made = summary(lambda i, row: -i if row["level"] == 0.5 and row["fill"] == "noise" else i)
    found = taus(ranking_agreement(made, "m", ABPC))
    turned = found["level", "0.25", "0.5"]
    assert (turned.tau_mean, turned.tau_min, turned.tau_max) == (pytest.approx(1 / 3), -1, 1)
    assert found["level", "0.1", "0.25"].tau_min == 1


def test_taus_are_scipys_and_ties_count_half():
    rng = np.random.default_rng(0)
    numbers = {s: rng.integers(0, 3, len(EXPLAINERS)) for s in CHOICES["scale"]}
    numbers["prob"][:2] = 0, 2
    numbers["logodds"][:2] = 1, 0
    found = taus(ranking_agreement(summary(lambda i, row: float(numbers[row["scale"]][i])), "m", ABPC))
    assert found["scale", "prob", "logodds"].tau_mean == pytest.approx(kendalltau(*numbers.values()).statistic)


def test_what_cannot_be_ranked_has_no_row():
    frame = summary(lambda i, row: i)
    assert ranking_agreement(frame[frame.explainer == "gradcam"], "m", ABPC).empty
    assert ranking_agreement(frame, "another", ABPC).empty
    assert ranking_agreement(summary(lambda i, row: 1.0), "m", ABPC).empty
    one = frame[(frame.control == "shifted") & (frame.fill == "mean") & (frame.explainer != "random")]
    found = ranking_agreement(one.assign(mean=one["mean"].where(one.explainer != "occlusion")), "m", ABPC)
    assert set(found.axis) == {"target_rule", "grid", "scale", "level"}
    assert (found.n_explainers == 2).all()
    deletion = ranking_agreement(
        summary(lambda i, row: i, measures=(("deletion_auc", np.nan),)), "m", ("deletion_auc", np.nan)
    )
    assert "level" not in set(deletion.axis)
    assert len(deletion)


def test_rows_hold_tau_with_its_range_and_the_fewest_explainers():
    """The level turns the ranking under one of three fills: mean (1 + 1 - 1) / 3."""
    made = summary(lambda i, row: -i if row["level"] == 0.5 and row["fill"] == "noise" else i)
    rows = [r for r in ranking_rows(made, "m", ABPC) if (r["axis"], r["a"], r["b"]) == ("level", "0.25", "0.5")]
    tau, fewest = rows
    assert (tau["kind"], tau["subject"], tau["statistic"], tau["metric"]) == ("ranking", "m", "kendall_tau", "drop")
    assert (tau["value"], tau["low"], tau["high"], tau["n"]) == (pytest.approx(1 / 3), -1, 1, 48)
    assert (fewest["statistic"], fewest["value"]) == ("n_explainers", len(EXPLAINERS))
    assert len(AGREEMENT.from_rows(rows)) == 2


def test_a_drop_as_the_primary_metric_is_of_its_level_alone():
    made = summary(lambda i, row: -i if row["level"] == 0.5 and row["fill"] == "noise" else i)
    drops = made[made["metric"] == "drop"]
    for level, least in ((0.25, 1), (0.5, -1)):
        rows = [r for r in ranking_rows(drops, "m", ("drop", level)) if r["axis"] == "fill"]
        assert {r["level"] for r in rows} == {level}
        assert min(r["low"] for r in rows if r["statistic"] == "kendall_tau") == least
