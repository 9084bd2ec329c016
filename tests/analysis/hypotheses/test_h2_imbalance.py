"""H2: its verdicts over paired seeds, the the reasons to be inconclusive."""

import json

import numpy as np
import pytest

from cxr_ray.analysis import classification
from tests.builders.hypotheses import false_positives, inputs, judged, map_rows, names, pair_tables, sweep


def test_h2_above_margin_and_gone_where_only_the_threshold_moved():
    given = inputs(**pair_tables(5, 2.0))
    rows, secondary = judged(given)
    h2 = rows["H2"]
    assert h2["verdict"] == "above margin"
    test = given.test
    rate = (test[test["label"] == 0]["outcome"] == "FP").groupby(test["variant"]).mean()
    assert h2["effect"] == pytest.approx(rate["plain"] - rate["balanced"])
    assert (h2["n_trials"], h2["n"]) == (10, 60)
    by_name = {row["quantity"]: row for row in secondary}
    for rule in ("sensitivity 0.95 (threshold from val)", "Youden's point (from val)"):
        assert by_name[f"false positive rate at {rule}, plain minus balanced"]["effect"] == pytest.approx(0, abs=1e-6)


def test_h2_calibration_is_that_of_classification():
    given = inputs(**pair_tables(5, 2.0))
    by_name = {row["quantity"].split(",")[0]: row for row in judged(given)[1]}
    rows = {
        t: classification.classification_rows(
            given.predictions[given.predictions["trial_id"] == t].assign(patient_id=given.predictions["image_id"]),
            t,
            0,
            10,
        )
        for t in given.trials["trial_id"]
    }
    for name, metric in (("expected calibration error", "ece"), ("Brier score", "brier")):
        mean = {
            v: np.mean(
                [
                    r[metric]
                    for t, part in rows.items()
                    if t.startswith(v)
                    for r in part
                    if r["split"] == "test" and r["threshold_rule"] == "half"
                ]
            )
            for v in ("plain", "balanced")
        }
        assert by_name[name]["effect"] == pytest.approx(mean["plain"] - mean["balanced"])


def test_h2_compares_faithfulness_to_one_control():
    given = pair_tables(5, 2.0)
    ids = names(120)
    maps = [map_rows(t, ids, gap=0.75 if t.startswith("plain") else 0.5) for t in given["trial_rows"]["trial_id"]]
    maps += [(m[:0], f[f["control"] == "shifted"].assign(control="cell_random", gap=9.0), n[:0]) for m, f, n in maps]
    (row,) = (r for r in judged(inputs(**given, maps=maps))[1] if r["quantity"].startswith("mean advantage"))
    assert "other_image" in row["quantity"]
    assert row["effect"] == pytest.approx(0.25)


def test_h2_inconclusive_where_trials_cannot_settle_it():
    four = judged(inputs(**pair_tables(4, 2.0)))[0]["H2"]
    assert "4 seeds" in four["reason"]
    assert four["verdict"] == "inconclusive"
    assert four["effect"] > 0.1  # it is reported nonetheless
    stopped = judged(inputs(sweep(search={"scheduler": "asha", "num_samples": 1}), **pair_tables(5, 2.0)))[0]["H2"]
    assert "search.scheduler" in stopped["reason"]
    other = pair_tables(5, 2.0)
    other["trial_rows"].loc[0, "config"] = json.dumps({"train": {"lr": 1e-3}})
    assert "learning rate" in judged(inputs(**other))[0]["H2"]["reason"]
    assert "plain and balanced" in judged(inputs(**false_positives(30)))[0]["H2"]["reason"]


def test_h2_p_is_against_the_margin():
    """Truly 0.05, to which p against 0 would be small."""
    given = inputs(**pair_tables(5, 0.56, n=600))
    h2 = judged(given)[0]["H2"]
    assert 0.0 < h2["lower"] < 0.05 < h2["upper"]
    assert h2["p"] > 0.2
    assert h2["verdict"] == "inconclusive"
