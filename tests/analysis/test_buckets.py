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
    frame = pd.DataFrame({"image_id": ["a", "b", "c"], "outcome": ["TP", "FN", "TP"], "kind": "x"})
    patients = pd.Series({"a": "p", "b": "q", "c": "p"})
    groups = list(buckets.by_bucket(frame, ["kind"], [], patients))
    assert {g.bucket: list(g.patients) for g in groups} == {"all": ["p", "q", "p"], "TP": ["p", "p"], "FN": ["q"]}
    assert list(buckets.by_bucket(frame.iloc[:0], ["kind"], [], patients)) == []


def test_groups_hold_their_own_rows_in_the_order_they_begin_in():
    frame = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "outcome": "TN",
            "kind": ["z", "a", "z", None],
            "yes": pd.array([True, None, False, True], "boolean"),
            "value": np.array([1, 2, 3, 4], np.float32),
        }
    )
    patients = pd.Series({i: i for i in "abcd"})
    groups = [g for g in buckets.by_bucket(frame, ["kind"], ["yes", "value"], patients) if g.bucket == "all"]
    assert [g.key for g in groups] == [("z",), ("a",)]
    np.testing.assert_array_equal(groups[0].matrix(["yes", "value"]), [[1.0, 1.0], [0.0, 3.0]])
    np.testing.assert_array_equal(groups[1].matrix(["yes", "value"]), [[np.nan, 2.0]])


def test_means_leave_out_what_is_not_known():
    values = [[1.0, np.nan], [2.0, 4.0], [6.0, np.nan]]
    ((first, second),) = buckets.means([(values, ["p", "p", "q"])], seed=0)
    assert (first["mean"], first["n"], first["n_patients"]) == (3.0, 3, 2)
    assert (second["mean"], second["n"], second["n_patients"]) == (4.0, 1, 1)
    assert np.isnan(first["lower"])
    assert np.isnan(first["upper"])


def test_intervals_are_those_of_the_patient_bootstrap():
    values = np.random.default_rng(0).normal(size=(60, 1))
    patients = [f"p{i // 2}" for i in range(60)]
    ((found,),) = buckets.means([(values, patients)], seed=3)
    lower, upper = resampling.patient_bootstrap(values, patients, seed=3)
    assert (found["lower"], found["upper"]) == pytest.approx((lower[0], upper[0]))
    assert (found["ci_method"], found["n_boot"]) == (resampling.CI_METHOD, 1000)


def test_parts_are_summarised_as_if_each_were_alone():
    rng = np.random.default_rng(0)
    some, others = [f"p{i // 2}" for i in range(60)], [f"q{i}" for i in range(25)]
    parts = [(rng.normal(size=(len(p), k)), p) for k, p in ((2, some), (1, others), (3, some))]
    together = buckets.means(parts, seed=3)
    assert [len(rows) for rows in together] == [2, 1, 3]
    for part, rows in zip(parts, together, strict=True):
        (alone,) = buckets.means([part], seed=3)
        assert [row.pop("lower") for row in rows] == pytest.approx([row.pop("lower") for row in alone])
        assert [row.pop("upper") for row in rows] == pytest.approx([row.pop("upper") for row in alone])
        assert rows == alone
