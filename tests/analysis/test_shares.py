"""Intervals of means of values in [0, 1]: against exact ones, and their coverage with clusters and near 0 and 1."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cxr_ray.analysis.shares import mean_shares, patient_share


def test_one_image_a_patient_is_clopper_and_pearson():
    hits = np.arange(40) < 11
    exact = binomtest(11, 40).proportion_ci()
    lower, upper = mean_shares(hits[:, None].astype(float), np.arange(40))
    assert (lower[0], upper[0]) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_columns_are_those_of_one_share_each():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 30, 80)
    hits = rng.random((80, 3)) < [0.0, 0.4, 1.0]
    hits[:, 0] = False
    lower, upper = mean_shares(hits.astype(float), patients)
    for k in range(3):
        one = patient_share(hits[:, k], patients)
        assert (lower[k], upper[k]) == (one.lower, one.upper)
    assert (lower[0], upper[2]) == (0, 1)
    assert upper[0] > 0.05  # no win in 80 images of 30 patients does not say that there is none
    assert lower[2] < 0.95


def test_missing_values_are_left_out_and_few_patients_have_no_interval():
    values = np.tile([[0.2, 0.2], [0.8, 0.8]], (25, 1))
    patients = np.arange(50)
    values[19:, 1] = np.nan
    lower, upper = mean_shares(values, patients)
    assert lower[0] < 0.5 < upper[0]
    assert np.isnan([lower[1], upper[1]]).all()


@pytest.mark.parametrize("n_patients", [20, 60])
@pytest.mark.parametrize("rate", [0.5, 0.95])
@pytest.mark.parametrize("draws", [1, 5])
def test_the_interval_of_a_win_rate_covers_with_clusters(n_patients, rate, draws):
    """Patients' rates are beta distributed (intraclass correlation 0.25), some patients have nine images."""
    rng = np.random.default_rng(1)
    sizes = np.where(np.arange(n_patients) % 15 == 0, 9, 1 + np.arange(n_patients) % 2)
    patients = np.repeat(np.arange(n_patients), sizes)
    rates = rng.beta(3 * rate, 3 * (1 - rate), (n_patients, 2000))[patients]
    lower, upper = mean_shares(rng.binomial(draws, rates) / draws, patients)
    error = np.sqrt(0.05 * 0.95 / 2000)
    assert np.mean((lower <= rate) & (rate <= upper)) > 0.95 - 3 * error
