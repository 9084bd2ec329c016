"""Intervals of means of values in [0, 1]: against exact ones, and their coverage with clusters and near 0 and 1."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cxr_ray.analysis.shares import mean_shares, patient_share


def test_one_yes_or_no_a_patient_is_about_clopper_and_pearson():
    hits = np.arange(40) < 11
    exact = binomtest(11, 40).proportion_ci()
    lower, upper = mean_shares(hits[:, None].astype(float), np.arange(40))
    assert (lower[0], upper[0]) == pytest.approx((exact.low, exact.high), abs=0.01)
    one = patient_share(hits, np.arange(40))
    assert (one.lower, one.upper) == pytest.approx((exact.low, exact.high), abs=0.005)


def test_always_winning_leaves_doubt():
    values = np.tile([0.0, 0.5, 1.0], (40, 1))
    lower, upper = mean_shares(values, np.arange(40) // 2)
    assert (lower[0], upper[2]) == (0, 1)
    assert 0.05 < upper[0] < 0.3  # no win of 20 patients does not say that there is none
    assert 0.7 < lower[2] < 0.95
    assert lower[1] < 0.5 < upper[1]


def test_more_draws_make_the_interval_narrower():
    rng = np.random.default_rng(0)
    widths = [np.diff(mean_shares(rng.binomial(d, 0.7, (100, 1)) / d, np.arange(100)), axis=0)[0, 0] for d in (1, 9)]
    assert widths[1] < 0.6 * widths[0]


def test_missing_values_are_left_out_and_few_patients_have_no_interval():
    values = np.tile([[0.2, 0.2], [0.8, 0.8]], (25, 1))
    patients = np.arange(50)
    values[19:, 1] = np.nan
    lower, upper = mean_shares(values, patients)
    assert lower[0] < 0.5 < upper[0]
    assert np.isnan([lower[1], upper[1]]).all()


@pytest.mark.parametrize("n_patients", [20, 60])
@pytest.mark.parametrize("rate", [0.5, 0.95])
@pytest.mark.parametrize("draws", [1, 9])
def test_the_interval_of_a_win_rate_covers_with_clusters(n_patients, rate, draws):
    """Patients' rates are beta distributed (intraclass correlation 0.25), some patients have nine images."""
    rng = np.random.default_rng(1)
    sizes = np.where(np.arange(n_patients) % 15 == 0, 9, 1 + np.arange(n_patients) % 2)
    patients = np.repeat(np.arange(n_patients), sizes)
    rates = rng.beta(3 * rate, 3 * (1 - rate), (n_patients, 2000))[patients]
    lower, upper = mean_shares(rng.binomial(draws, rates) / draws, patients)
    error = np.sqrt(0.05 * 0.95 / 2000)
    assert np.mean((lower <= rate) & (rate <= upper)) > 0.95 - 3 * error
