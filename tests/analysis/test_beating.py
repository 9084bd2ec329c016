"""Win rate and mean advantage as two questions, and the control that is the hardest to beat."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import beating
from cxr_ray.analysis.cells import FAMILY
from tests.builders.faithfulness import faithfulness_of, images_of, one, summary_of

CONTROLS = ("none", "pixel_random", "shifted", "other_image", "mean_map")


def summary_with(gaps, wins, n=60, explainer=("gradcam",), controls=CONTROLS):
    """A summary of n true positives, each a patient; gap and win rate of each image by control."""
    predictions, images = images_of(["TP"] * n)
    table = faithfulness_of(predictions, control=controls, explainer=explainer)
    for name, by_control in (("gap", gaps), ("win_rate", wins)):
        for control, values in by_control.items():
            table.loc[table["control"] == control, name] = np.tile(np.asarray(values, np.float32), len(explainer))
    return summary_of(table, predictions, images, n_boot=1000)


def spread(mean, n=60, sd=1.0):
    """n values with this mean."""
    values = np.random.default_rng(0).normal(0, sd, n)
    return values - values.mean() + mean


def rates(mean, n=60):
    """n win rates of 0 and 1 with about this mean."""
    return (np.arange(n) < round(mean * n)).astype(float)


def test_the_hardest_control_is_the_strong_one_with_the_smallest_advantage():
    """A fixed order would name other_image, which is beaten, and hide mean_map, which is not."""
    frame = summary_with(
        {"pixel_random": spread(-1), "shifted": spread(0), "other_image": spread(1), "mean_map": spread(0.05)},
        {"pixel_random": rates(0.2), "shifted": rates(0.5), "other_image": rates(0.9), "mean_map": rates(0.55)},
    )
    rows = {c: one(frame, bucket="all", control=c) for c in CONTROLS}
    assert {c: r["hardest"] for c, r in rows.items()} == {
        "none": None,
        "pixel_random": False,  # weak controls are never the headline, however small the advantage over them
        "shifted": False,
        "other_image": False,
        "mean_map": True,
    }
    assert (rows["other_image"]["beaten"], rows["mean_map"]["beaten"]) == ("yes", "no")
    assert pd.isna(rows["none"]["beaten"])


def test_the_hardest_control_is_each_explainers_and_buckets_own():
    columns = pd.DataFrame(
        [
            {**dict.fromkeys(FAMILY, "x"), "level": np.nan, "explainer": explainer, "control": control}
            for explainer in ("gradcam", "random")
            for control in ("other_image", "mean_map", "shifted")
        ]
    )
    found = beating.hardest(columns, np.array([2.0, 1.0, 0.0, -1.0, 1.0, 0.0]))
    assert found.tolist() == [False, True, False, True, False, False]
    assert beating.hardest(columns, np.array([2.0, np.nan, 0.0, np.nan, np.nan, 0.0])).tolist() == [True] + [False] * 5


def test_without_a_strong_control_none_is_the_hardest():
    controls = ("none", "shifted")
    frame = summary_with({"shifted": spread(1)}, {"shifted": rates(0.9)}, controls=controls)
    row = one(frame, bucket="all", control="shifted")
    assert not frame["hardest"].fillna(False).any()
    assert row["beaten"] == "yes"


def test_frequent_small_wins_and_rare_large_losses_differ():
    """The map wins 54 of 60 times by 0.1 and loses 6 times by 3: it wins often, and loses on average."""
    gaps, wins = np.where(rates(0.9) > 0, 0.1, -3.0), rates(0.9)
    row = one(summary_with({"other_image": gaps}, {"other_image": wins}), bucket="all", control="other_image")
    assert row["mean"] == pytest.approx(-0.21, abs=1e-6)
    assert (row["p_holm"] < 0.05, row["win_lower"] > 0.5, row["mean_p"]) == (True, True, 1.0)
    assert row["beaten"] == "differs"


def test_p_and_interval_of_the_mean_advantage_agree():
    frame = summary_with(
        {c: spread(m) for c, m in zip(CONTROLS[1:], (0.2, 0.24, 0.3, 0.9), strict=True)},
        {c: rates(0.5) for c in CONTROLS[1:]},
    )
    rows = frame[(frame["control"] != "none") & ~frame["contrast"]]
    assert ((rows["mean_p"] <= 0.05) == (rows["lower"] > 0)).all()
    assert rows["mean_p"].between(1e-3, 0.2).any()
    assert (rows["mean_p_holm"] >= rows["mean_p"]).all()
    assert (rows["win_lower"] < rows["win_rate"]).all()
    assert (rows["win_rate"] < rows["win_upper"]).all()


def test_under_twenty_patients_nothing_is_said_to_be_beaten():
    frame = summary_with({"mean_map": spread(1, 12)}, {"mean_map": rates(1, 12)}, 12, controls=("none", "mean_map"))
    row = one(frame, bucket="all", control="mean_map")
    assert row["p"] < 0.05
    assert np.isnan([row["mean_p"], row["win_lower"], row["win_upper"]]).all()
    assert pd.isna(row["beaten"])
    assert row["hardest"]
