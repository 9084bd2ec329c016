"""Intervals over trained models and patients: coverage, closed forms, and models that lack images."""

import numpy as np
import pytest
import scipy.stats

from cxr_ray.analysis.crossed import crossed, mean_of


def test_the_interval_covers_over_models_and_patients():
    """Models and patients both vary, and so do their combinations; the true mean is 0."""
    rng, covered, rejected = np.random.default_rng(0), [], []
    for _ in range(200):
        values_NS = rng.normal(size=(60, 1)) + rng.normal(size=(1, 5)) * 0.2 + rng.normal(size=(60, 5))
        found = crossed(mean_of(values_NS, np.arange(60)), 60, 5, 0, 200)
        lower, upper = found.interval(0.95)
        covered.append(lower <= 0 <= upper)
        rejected.append(found.p_above(0) <= 0.05)
    assert np.mean(covered) > 0.92
    assert np.mean(rejected) < 0.08


def test_models_without_noise_of_patients_give_the_t_interval_of_their_means():
    means_S = np.array([0.1, 0.4, 0.2, 0.7])
    found = crossed(mean_of(np.tile(means_S, (50, 1)), np.arange(50)), 50, 4, 0, 4000)
    t = scipy.stats.ttest_1samp(means_S, 0.0)
    lower, upper = t.confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx((lower, upper), abs=0.02)
    assert found.p_above(0.0) == pytest.approx(t.pvalue / 2, abs=0.005)
    assert found.p_below(0.0) == pytest.approx(1 - t.pvalue / 2, abs=0.005)


def test_a_mean_is_over_the_images_that_each_model_has():
    values_NS = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
    statistic = mean_of(values_NS, ["a", "b", "c"])
    assert statistic(np.ones((1, 3))).tolist() == [[2.0, 5.0]]
    assert statistic(np.array([[3.0, 0.0, 0.0]])).tolist() == [[1.0, 5.0]]  # no image of the second: its own mean


def test_effects_without_any_error_are_beyond_what_they_exceed():
    found = crossed(mean_of(np.full((30, 3), 0.25), np.arange(30)), 30, 3, 0, 50)
    assert (found.p_above(0.2), found.p_below(0.3), found.p_above(0.25), found.p_below(0.2)) == (0, 0, 1, 1)
