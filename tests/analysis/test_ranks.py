"""Paired comparisons of explainers and confidence sets of their ranks: known answers and simultaneous coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from cxr_ray.analysis import ranks
from cxr_ray.analysis.resampling import patient_bootstrap, simultaneous_bootstrap

NAMES = ("a", "b", "c", "d")


def clustered(n_patients, means, rng, noise=1.0):
    """values_NE with these true means and patients_N: one to three images a patient, patients shift each explainer."""
    patients = np.repeat(np.arange(n_patients), 1 + np.arange(n_patients) % 3)
    image = 3 * rng.normal(size=(len(patients), 1))
    own = rng.normal(size=(n_patients, len(means)))[patients]
    return np.asarray(means) + image + noise * (own + rng.normal(size=(len(patients), len(means)))), patients


def sets(values, patients, names=NAMES, **more):
    pairs = ranks.pair_rows(values, names, patients, seed=0, **more)
    rows = ranks.rank_rows(pairs, dict.fromkeys(names, (len(values), len(set(patients)))))
    return {row["explainer"]: (row["rank_lower"], row["rank_upper"]) for row in rows}


def test_equal_explainers_may_have_any_rank():
    values, patients = clustered(60, [0, 0, 0, 0], np.random.default_rng(3))
    assert set(sets(values, patients).values()) == {(1, 4)}
    same = np.repeat(values[:, :1], 4, axis=1)
    assert set(sets(same, patients).values()) == {(1, 4)}
    assert {row["p_max"] for row in ranks.pair_rows(same, NAMES, patients, seed=0)} == {1.0}


def test_explainers_far_apart_have_one_rank_each():
    values, patients = clustered(60, [0, 5, 10, -5], np.random.default_rng(0))
    assert sets(values, patients) == {"a": (3, 3), "b": (2, 2), "c": (1, 1), "d": (4, 4)}
    pairs = {(row["a"], row["b"]): row for row in ranks.pair_rows(values, NAMES, patients, seed=0)}
    assert (pairs["a", "b"]["better"], pairs["a", "d"]["better"]) == ("b", "a")
    assert pairs["a", "d"]["mean"] == pytest.approx(values[:, 0].mean() - values[:, 3].mean())


def test_two_groups_share_their_ranks():
    values, patients = clustered(60, [0, 0, 8, 8], np.random.default_rng(1))
    assert sets(values, patients) == {"a": (3, 4), "b": (3, 4), "c": (1, 2), "d": (1, 2)}


def test_under_twenty_patients_nothing_is_shown():
    values, patients = clustered(19, [0, 5, 10, -5], np.random.default_rng(0))
    assert set(sets(values, patients).values()) == {(1, 4)}
    assert all(row["better"] is None and np.isnan(row["lower"]) for row in ranks.pair_rows(values, NAMES, patients, 0))


def test_all_pairs_and_all_rank_sets_hold_at_once_with_clusters():
    """Five explainers of which three are equal: 250 data sets of 40 patients, who have one to three images each."""
    means, rng, n = np.array([0.0, 0.0, 0.0, 0.6, 1.2]), np.random.default_rng(5), 250
    first, second = np.array([(i, j) for i in range(5) for j in range(i + 1, 5)]).T
    truth = means[first] - means[second]
    # Of tied explainers any order is a true order: ranks 3 to 5, so that a set must hold all three.
    best, worst = np.array([3, 3, 3, 2, 1]), np.array([5, 5, 5, 2, 1])
    pairs_hold, sets_hold = [], []
    for seed in range(n):
        values, patients = clustered(40, means, rng)
        rows = ranks.pair_rows(values, "abcde", patients, seed, n_boot=300)
        lower, upper = (np.array([row[name] for row in rows]) for name in ("lower", "upper"))
        pairs_hold.append(((lower <= truth) & (truth <= upper)).all())
        found = ranks.rank_rows(rows, dict.fromkeys("abcde", (80, 40)))
        sets_hold.append(
            all(row["rank_lower"] <= b and row["rank_upper"] >= w for row, b, w in zip(found, best, worst, strict=True))
        )
    error = np.sqrt(0.05 * 0.95 / n)
    assert 0.95 - 3 * error < np.mean(pairs_hold) < 0.99
    assert np.mean(sets_hold) >= np.mean(pairs_hold)


def test_one_pair_alone_has_the_interval_of_the_patient_bootstrap():
    values, patients = clustered(50, [0, 0.5], np.random.default_rng(2))
    (row,) = ranks.pair_rows(values, "ab", patients, seed=4)
    lower, upper = patient_bootstrap(values[:, :1] - values[:, 1:], patients, seed=4)
    assert (row["lower"], row["upper"]) == pytest.approx((lower[0], upper[0]))
    assert row["p"] == row["p_max"]


def test_more_pairs_make_wider_intervals_and_larger_p():
    values, patients = clustered(60, [0, 0.3, 0.1, 0.2], np.random.default_rng(6))
    difference = values[:, [0, 0, 0]] - values[:, 1:]
    lower, upper, p, p_max = simultaneous_bootstrap(difference, patients, seed=0)
    alone_lower, alone_upper, *_ = simultaneous_bootstrap(difference[:, :1], patients, seed=0)
    assert upper[0] - lower[0] > alone_upper[0] - alone_lower[0]
    assert (p_max >= p).all()
    assert ((p_max <= 0.05) == ((lower > 0) | (upper < 0))).all()


def test_a_pair_that_differs_in_few_patients_says_nothing_and_widens_no_other():
    """As two explainers whose maps are the same but for a few images: their |t| would be the largest of all."""
    values, patients = clustered(40, [0, 0.3, 2], np.random.default_rng(8))
    twin = values[:, :1] + np.where(np.isin(patients, (0, 1, 2)), 0.1, 0.0)[:, None]
    pairs = {(row["a"], row["b"]): row for row in ranks.pair_rows(np.hstack([values, twin]), NAMES, patients, seed=0)}
    without = {(row["a"], row["b"]): row for row in ranks.pair_rows(values, NAMES[:3], patients, seed=0)}
    assert np.isnan([pairs["a", "d"][name] for name in ("lower", "upper", "p", "p_max")]).all()
    assert pairs["a", "d"]["better"] is None
    for pair, row in without.items():
        assert pairs[pair]["upper"] - pairs[pair]["lower"] == pytest.approx(row["upper"] - row["lower"], rel=0.1)
    assert (pairs["a", "c"]["better"], pairs["c", "d"]["better"]) == ("c", "c")


def test_p_of_a_pair_is_about_that_of_the_paired_t_test():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(100, 1)) * 5 + rng.normal([0, 0.25], 1, (100, 2))
    (row,) = ranks.pair_rows(values, "ab", np.arange(100), seed=0, n_boot=5000)
    assert row["p"] == pytest.approx(ttest_rel(*values.T).pvalue, abs=0.02)


def table(metric_means, n=40):
    rng = np.random.default_rng(0)
    rows = [
        {"image_id": f"i{i:03d}", "explainer": e, "outcome": "TP" if i % 2 else "TN", "value": m + rng.normal(0, 0.1)}
        for e, m in metric_means.items()
        for i in range(n)
    ]
    patients = pd.Series({f"i{i:03d}": f"p{i}" for i in range(n)})
    return pd.DataFrame(rows), patients


def test_where_lower_is_more_faithful_the_lowest_is_first():
    values, patients = table({"occlusion": 3.0, "gradcam": 1.0})
    for metric, first in (("deletion_auc", "gradcam"), ("abpc", "occlusion")):
        pairs, ranked = ranks.compare_explainers(values, patients, ["gradcam", "occlusion"], metric, seed=0)
        of_all = {row["explainer"]: row["rank_lower"] for row in ranked if row["bucket"] == "all"}
        assert of_all[first] == 1
        pair = next(row for row in pairs if row["bucket"] == "all")
        assert (pair["a"], pair["b"], pair["better"]) == ("gradcam", "occlusion", first)
        assert (pair["mean"] > 0) == (first == "gradcam")


def test_buckets_without_images_and_single_explainers_have_no_rows():
    values, patients = table({"gradcam": 1.0, "occlusion": 2.0})
    pairs, ranked = ranks.compare_explainers(values, patients, ["gradcam", "occlusion"], "abpc", seed=0)
    assert [row["bucket"] for row in pairs] == ["all", "TP"]
    assert {row["n"] for row in ranked if row["bucket"] == "TP"} == {20}
    alone = values[values["explainer"] == "gradcam"]
    assert ranks.compare_explainers(alone, patients, ["gradcam"], "abpc", seed=0) == ([], [])


def test_images_without_a_value_are_left_out_of_their_pairs_alone():
    values, patients = clustered(60, [0, 5, 10], np.random.default_rng(0))
    values[:30, 0] = np.nan
    rows = {(r["a"], r["b"]): r for r in ranks.pair_rows(values, "abc", patients, seed=0)}
    assert rows["a", "b"]["n"] == len(values) - 30
    assert rows["b", "c"]["n"] == len(values)
    assert rows["a", "b"]["mean"] == pytest.approx((values[30:, 0] - values[30:, 1]).mean())
