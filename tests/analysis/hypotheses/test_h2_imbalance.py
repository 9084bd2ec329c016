"""H2: its verdicts over paired seeds, the reasons to be undecided, and coverage."""

import json

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import classification
from cxr_ray.analysis.hypotheses import h2_imbalance
from tests.builders.hypotheses import false_positives, inputs, judged, map_rows, names, pair_tables, sweep


def test_h2_supported_and_gone_where_only_the_threshold_moved():
    given = inputs(**pair_tables(5, 2.0))
    rows, secondary = judged(given)
    h2 = rows["H2"]
    assert h2["verdict"] == "supported"
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


def test_h2_compares_faithfulness_to_the_strongest_control():
    given = pair_tables(5, 2.0)
    ids = names(120)
    maps = [map_rows(t, ids, 0.5, gap=0.75 if t.startswith("plain") else 0.5) for t in given["trial_rows"]["trial_id"]]
    maps += [(m, f.assign(control="cell_random", gap=9.0)) for m, f in maps]
    (row,) = (r for r in judged(inputs(**given, maps=maps))[1] if r["quantity"].startswith("mean advantage"))
    assert "shifted" in row["quantity"]
    assert row["effect"] == pytest.approx(0.25)


def test_h2_undecided_where_trials_cannot_settle_it():
    four = judged(inputs(**pair_tables(4, 2.0)))[0]["H2"]
    assert "4 seeds" in four["reason"]
    assert four["verdict"] == "undecided"
    assert four["effect"] > 0.1  # it is reported nonetheless
    stopped = judged(inputs(sweep(search={"scheduler": "asha", "num_samples": 1}), **pair_tables(5, 2.0)))[0]["H2"]
    assert "search.scheduler" in stopped["reason"]
    other = pair_tables(5, 2.0)
    other["trial_rows"].loc[0, "config"] = json.dumps({"train": {"lr": 1e-3}})
    assert "learning rate" in judged(inputs(**other))[0]["H2"]["reason"]
    assert "plain and balanced" in judged(inputs(**false_positives(30)))[0]["H2"]["reason"]


def test_h2_interval_covers_over_seeds_and_patients():
    """Seeds and patients both vary, and so do their combinations; the true difference is 0."""
    rng, covered, rejected = np.random.default_rng(0), [], []
    for _ in range(200):
        values = rng.normal(size=(60, 1)) + rng.normal(size=(1, 5)) * 0.2 + rng.normal(size=(60, 5))
        part = pd.DataFrame({"patient_id": np.arange(60)})
        found = h2_imbalance._paired(part, h2_imbalance._mean_of(values, part), 5, 0, 200)
        covered.append(found["lower"] <= 0 <= found["upper"])
        rejected.append(found["p"] <= 0.05)
    assert np.mean(covered) > 0.92
    assert np.mean(rejected) < 0.08
