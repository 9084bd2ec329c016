"""The target that a rule selects, buckets, and means counted by hand."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import buckets, resampling


def test_the_rule_chooses_the_target():
    frame = pd.DataFrame({"image_id": ["a", "a", "b"], "target": [0, 1, 1], "outcome": "old"})
    test = pd.DataFrame({"image_id": ["a", "b"], "outcome": ["TN", "TP"], "predicted": [0, 1]})
    chosen = buckets.of_rule(frame, test, "predicted")
    found = list(zip(chosen["image_id"], chosen["target"], chosen["outcome"], strict=True))
    assert found == [("a", 0, "TN"), ("b", 1, "TP")]
    assert list(buckets.of_rule(frame, test, "pneumonia")["target"]) == [1, 1]


def test_buckets_without_rows_are_left_out():
    frame = pd.DataFrame({"outcome": ["TP", "FN", "TP"]})
    assert {bucket: len(part) for bucket, part in buckets.by_bucket(frame)} == {"all": 3, "TP": 2, "FN": 1}
    assert list(buckets.by_bucket(frame.iloc[:0])) == []


def test_means_leave_out_what_is_not_known():
    values = [[1.0, np.nan], [2.0, 4.0], [6.0, np.nan]]
    first, second = buckets.means(values, ["p", "p", "q"], seed=0)
    assert (first["mean"], first["n"], first["n_patients"]) == (3.0, 3, 2)
    assert (second["mean"], second["n"], second["n_patients"]) == (4.0, 1, 1)
    assert np.isnan(first["lower"])
    assert np.isnan(first["upper"])


def test_intervals_are_those_of_the_patient_bootstrap():
    values = np.random.default_rng(0).normal(size=(60, 1))
    patients = [f"p{i // 2}" for i in range(60)]
    (found,) = buckets.means(values, patients, seed=3)
    lower, upper = resampling.patient_bootstrap(values, patients, seed=3)
    assert (found["lower"], found["upper"]) == pytest.approx((lower[0], upper[0]))
    assert (found["ci_method"], found["n_boot"]) == (resampling.CI_METHOD, 1000)
