"""Paired differences: planted truths, DeLong's variance by hand, coverage, Holm."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_ray.analysis.paired_differences import BOUND, corrected, direction, paired_auroc, paired_means


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Patients of two images that share an effect; 95% of 200 intervals, give or take four standard errors."""
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        patients = np.repeat(np.arange(40), 2)
        a = random.normal(size=80)
        r = paired_means(a, a + 0.5 + random.normal(size=40)[patients] + random.normal(0, 0.3, 80), patients, 0)
        held += r["lower"] <= 0.5 <= r["upper"]
        assert (r["p"] <= 0.05) == (r["lower"] >= 0 or r["upper"] <= 0)
    assert 0.88 < held / 200 <= 1


def test_values_that_one_run_lacks_and_few_patients_give_no_interval():
    r = paired_means([1.0, np.nan, 3.0], [2.0, 2.0, np.nan], ["p", "q", "r"], 0)
    assert (r["n"], r["n_patients"], r["difference"], r["lower"], r["ci_method"]) == (1, 1, 1.0, None, None)


@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_models_alike_on_every_patient_seen_may_differ_on_others(difference):
    r = paired_means(np.zeros(30), np.full(30, difference), np.arange(30), 0, share=True)
    missed = 1 - 0.025 ** (1 / 30)
    ends = (1 - missed) * difference - missed, min((1 - missed) * difference + missed, 1.0)
    assert (r["lower"], r["upper"]) == pytest.approx(ends)
    assert r["ci_method"] == BOUND
    assert (r["p"] == 1) == (difference == 0)


def test_areas_are_scikit_learns_and_their_variance_is_delongs():
    random = np.random.default_rng(5)
    label = np.arange(60) % 2
    a, b = (np.round(random.normal(size=60) + label, 1) for _ in range(2))  # with ties
    r = paired_auroc(label, a, b, np.arange(60))
    assert (r["mean"], r["mean_run"]) == pytest.approx([roc_auc_score(label, a), roc_auc_score(label, b)])

    def components(score):  # DeLong et al. 1988, pair by pair
        wins = (score[label == 1][:, None] > score[label == 0]) + 0.5 * (
            score[label == 1][:, None] == score[label == 0]
        )
        return wins.mean(1), wins.mean(0)

    variance = sum(np.var(x - y) / 30 for x, y in zip(components(a), components(b), strict=True))
    half = (r["upper"] - r["lower"]) / 2
    assert half == pytest.approx(2.000995 * np.sqrt(variance * 60 / 59), rel=1e-5)  # Student's quantile of 59
    assert (r["p"] <= 0.05) == (not r["lower"] < 0 < r["upper"])


def test_intervals_of_areas_hold_the_truth_as_often_as_they_say():
    """Two scores of one quality, which patients of two images share: their areas differ by 0."""
    held = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        patients, label = np.repeat(np.arange(60), 2), np.repeat(np.arange(60) % 2, 2)
        shared = label + random.normal(size=60)[patients]
        a, b = (shared + random.normal(size=60)[patients] + random.normal(0, 0.3, 120) for _ in range(2))
        r = paired_auroc(label, a, b, patients)
        held.append(r["lower"] <= 0 <= r["upper"])
    assert 0.88 < np.mean(held) <= 1


def test_areas_that_cannot_vary_and_few_patients_of_a_class_have_no_interval():
    label, patients = np.arange(60) % 2, np.arange(60)
    assert paired_auroc(label, label * 1.0, label * 2.0, patients)["lower"] is None
    assert paired_auroc(label, label * 1.0, label * 1.0, patients)["upper"] == 0
    few = (np.arange(60) < 10).astype(int)
    assert paired_auroc(few, patients * 1.0, -1.0 * patients, patients)["lower"] is None
    assert paired_auroc(np.ones(60), patients * 1.0, patients * 1.0, patients)["difference"] is None


def test_a_difference_is_shown_after_correction_within_its_bucket_alone():
    row = {"bucket": "all", "lower": 0.1, "upper": 0.5, "difference": 0.3, "p": 0.02}
    rows = corrected([row, {**row, "p": 0.04}, {**row, "bucket": "TP", "p": 0.04}, {**row, "p": None}])
    assert [r["p_holm"] for r in rows] == [0.04, 0.04, 0.04, None]
    assert [r["family_size"] for r in rows] == [2, 2, 1, None]
    assert [direction(r) for r in corrected([row, {**row, "p": 0.03}, {**row, "p": 0.9}])] == ["corrected"] * 3
    assert [direction(r) for r in rows] == ["higher", "higher", "higher", None]
    assert direction({**rows[0], "lower": -0.1}) == "open"
    assert direction({**rows[0], "lower": 0.0, "upper": 0.0}) == "same"
