"""Oracles: closed forms, enumeration of all series, plain loops with root finding, simulations with planted truth."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from cxr_ray.analysis import betting

BETS = [0.05 * i for i in range(1, 20)]


def capital(x, mean):
    """The mixture's capital after each step, one product at a time."""
    held = dict.fromkeys(BETS, 1.0)
    history = []
    for value in x:
        for bet in BETS:
            held[bet] *= 1 + bet / mean * (value - mean)
        history.append(sum(held.values()) / len(BETS))
    return history


def slow_lower(x, threshold):
    """The mean at which the largest capital so far is the threshold, by root finding, for each step."""
    bounds = []
    for t in range(1, len(x) + 1):  # every prefix anew

        def over(mean, t=t):
            return max(capital(x[:t], mean)) - threshold

        bounds.append(scipy.optimize.brentq(over, 1e-9, 1 - 1e-9) if over(1e-9) > 0 > over(1 - 1e-9) else 0.0)
    return np.array(bounds)


def clustered_win_rates(rng, runs, patients, sd):
    """One draw of one image of each patient: 0 or 1, with patients' log-odds of mean 0."""
    return rng.binomial(1, scipy.special.expit(rng.normal(0, sd, (runs, patients)))).astype(float)


def test_capital_of_a_map_that_always_wins():
    # Each step multiplies by 1 + lambda at mean 1/2, by 1 + 3 lambda at mean 1/4.
    for mean, odds in ((0.5, 1), (0.25, 3)):
        expected = [math.log(sum((1 + odds * bet) ** t for bet in BETS) / 19) for t in (1, 2, 3, 40)]
        np.testing.assert_allclose(betting.e_process(np.ones(40), mean)[[0, 1, 2, 39]], expected, rtol=1e-12)


def test_capital_of_three_steps_by_hand():
    # (1 + l)(1 - l)(1 + l/2) over l = .05 .. .95: mean l = .5, l^2 = .325, l^3 = .2375, so 1 + .25 - .325 - .11875.
    np.testing.assert_allclose(np.exp(betting.e_process([1, 0, 0.75])), [1.5, 0.675, 0.80625], rtol=1e-12)


def test_capital_agrees_with_one_product_at_a_time():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 11, (4, 60)) / 10
    for mean in (0.2, 0.5, 0.7):
        np.testing.assert_allclose(np.exp(betting.e_process(x, mean)), [capital(row, mean) for row in x], rtol=1e-9)


@pytest.mark.parametrize("mean", [0.3, 0.5, 0.6])
def test_capital_is_one_on_average_over_all_series_of_the_null(mean):
    """And below one for a smaller mean: every bet is on a greater one."""
    series = np.array(list(itertools.product([0.0, 1.0], repeat=10)))
    for p, expected in ((mean, 1.0), (mean - 0.1, None)):
        weight = p ** series.sum(1) * (1 - p) ** (10 - series.sum(1))
        average = weight @ np.exp(betting.e_process(series, mean))
        if expected is None:
            assert (average < 1).all()
            assert (np.diff(average) < 0).all()
        else:
            np.testing.assert_allclose(average, expected, rtol=1e-12)


def test_ville_holds_by_enumeration():
    """All 2^14 series of fair coins: those whose capital ever reached 1 / alpha."""
    series = np.array(list(itertools.product([0.0, 1.0], repeat=14)))
    for alpha in (0.2, 0.05, 0.01):
        share = np.mean(betting.crossing(betting.e_process(series), alpha) <= 14)
        assert 0 < share <= alpha


def test_crossing_counts_from_one_and_passes_the_end_where_there_is_none():
    log_e = np.log([[1, 2, 20, 5], [1, 1, 1, 1], [30, 1, 1, 40]])
    assert betting.crossing(log_e, 0.05).tolist() == [3, 5, 1]


@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, 1.0])
def test_confidence_sequence_agrees_with_root_finding(p):
    x = np.random.default_rng(3).binomial(5, p, 25) / 5
    lower, upper = betting.confidence_sequence(x, 0.1)
    slow = slow_lower(x, 20), 1 - slow_lower(1 - x, 20)
    assert (lower <= slow[0] + 1e-9).all()  # rounded outwards
    assert (upper >= slow[1] - 1e-9).all()
    np.testing.assert_allclose([lower, upper], slow, atol=2e-6)


def test_confidence_sequences_only_shrink_and_are_exact_at_the_ends():
    x = np.random.default_rng(1).random((3, 2, 30))
    lower, upper = betting.confidence_sequence(x)
    assert lower.shape == upper.shape == x.shape
    assert (np.diff(lower) >= 0).all()
    assert (np.diff(upper) <= 0).all()
    assert (lower < upper).all()
    np.testing.assert_array_equal(betting.confidence_sequence(x[1, 0])[0], lower[1, 0])
    lower, upper = betting.confidence_sequence(np.array([np.zeros(100), np.ones(100)]))
    assert (lower[0] == 0).all()
    assert (upper[1] == 1).all()
    np.testing.assert_allclose(upper[0], 1 - lower[1])
    assert lower[1, -1] > 0.92


def test_confidence_sequence_mirrors_its_values():
    x = np.random.default_rng(2).integers(0, 9, 50) / 8
    lower, upper = betting.confidence_sequence(x)
    other_lower, other_upper = betting.confidence_sequence(1 - x)
    np.testing.assert_allclose([other_lower, other_upper], [1 - upper, 1 - lower], atol=1e-12)


@pytest.mark.parametrize("mean", [0.3, 0.6])
def test_confidence_sequence_covers_the_mean_at_all_times(mean):
    """At a level of 0.8, so that 100 series can tell; it may cover more, not less."""
    x = np.random.default_rng(5).binomial(1, mean, (100, 20)).astype(float)
    lower, upper = betting.confidence_sequence(x, 0.2)
    missed_T = ((lower > mean) | (upper < mean)).mean(0)
    assert 0 < missed_T[-1] < 0.2 + 3 * np.sqrt(0.2 * 0.8 / 100)
    # A mean is left out exactly where betting against it has won.
    for values, null, bound in ((x, mean, lower), (1 - x, 1 - mean, 1 - upper)):
        won = betting.crossing(betting.e_process(values, null), 0.1)
        np.testing.assert_array_equal(won <= 20, bound[:, -1] >= null - 2e-6)


@pytest.mark.parametrize("sd", [0.0, 1.0, 3.0])
def test_true_nulls_with_patient_effects_are_rejected_at_most_at_the_level(sd):
    x = clustered_win_rates(np.random.default_rng(7), 2000, 200, sd)
    rejected = np.mean(betting.crossing(betting.e_process(x), 0.05) <= 200)
    assert 0.01 < rejected < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_images_as_steps_reject_true_nulls_of_patients():
    """What patients as steps are for: ten images of a patient that agree are no ten steps."""
    x = np.repeat(clustered_win_rates(np.random.default_rng(7), 500, 40, 3.0), 10, axis=1)
    assert np.mean(betting.crossing(betting.e_process(x), 0.05) <= 400) > 0.2


def test_a_win_rate_of_085_is_better_and_one_of_a_half_is_futile():
    rng = np.random.default_rng(0)
    better = betting.decide(rng.binomial(1, 0.85, 400), 0.0025)
    futile = betting.decide(rng.binomial(1, 0.5, 2000), 0.0025)
    assert (better.decision, futile.decision) == ("better", "futile")
    assert better.n < 60
    assert better.log_e >= math.log(400) > better.log_e_futile
    assert futile.log_e_futile >= math.log(400) > futile.log_e


def test_the_bounds_agree_with_the_decision():
    """A decision that its interval does not bear out would say more than was shown. An interval holds its mean."""
    rng = np.random.default_rng(11)
    seen = set()
    for p in (0.4, 0.55, 0.75):
        for _ in range(40):
            d = betting.decide(rng.binomial(3, p, 150) / 3, 0.05)
            seen.add(d.decision)
            assert (d.lower >= 0.5) == (d.decision == "better")
            assert (d.upper <= 0.6 + 2e-6) == (d.decision == "futile")
            assert d.lower <= d.win_rate <= d.upper
            assert d.level == 0.9
    assert seen == {"better", "futile", "undecided"}


def test_a_decision_ignores_what_follows():
    rng = np.random.default_rng(2)
    for p in (0.3, 0.8):
        x = rng.binomial(1, p, 300).astype(float)
        whole = betting.decide(x, 0.05)
        assert whole.n < 250
        for more in (0, 1, 7, 50):  # whatever block the data came in
            assert betting.decide(x[: whole.n + more], 0.05) == whole
        assert betting.decide(np.concatenate([x[: whole.n], 1 - x]), 0.05) == whole
        assert betting.decide(x[: whole.n - 1], 0.05).decision == "undecided"


def test_an_undecided_series_uses_all_steps_and_keeps_its_largest_evidence():
    x = np.array([1, 1, 1, 0, 0.5])
    d = betting.decide(x, 0.05)
    assert (d.decision, d.n, d.win_rate) == ("undecided", 5, 0.7)
    assert d.log_e == pytest.approx(max(np.log(capital(x, 0.5))))
    assert d.log_e_futile == pytest.approx(max(np.log(capital(1 - x, 0.4))))


def test_the_family_is_wrong_at_most_at_its_level():
    """Twenty dependent series, half of them null: any wrong decision of either kind."""
    rng = np.random.default_rng(4)
    alpha = betting.family_alpha(0.05, 20)
    p = np.array([0.5] * 10 + [0.6] * 10)  # the boundaries of both nulls
    shared = rng.normal(size=(300, 150, 1))
    own = rng.normal(size=(300, 150, 20))
    uniform = scipy.special.ndtr((shared + own) / np.sqrt(2))
    x = (uniform < p).astype(float).transpose(0, 2, 1)
    better = betting.crossing(betting.e_process(x), alpha) <= 150
    futile = betting.crossing(betting.e_process(1 - x, 0.4), alpha) <= 150
    wrong = better[:, :10].any(1) | futile[:, 10:].any(1)
    assert wrong.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("x", [[0.5, np.nan], [1.1], [-0.1, 0.5], [np.inf]])
def test_values_outside_the_unit_interval_are_refused(x):
    for call in (betting.e_process, betting.confidence_sequence, lambda v: betting.decide(v, 0.05)):
        with pytest.raises(ValueError, match=r"got .* among the steps; expected values from 0 to 1"):
            call(x)


def test_impossible_settings_are_refused():
    for call, message in (
        (lambda: betting.e_process([0.5], 1.0), "expected 0 < mean < 1"),
        (lambda: betting.confidence_sequence([0.5], 0.0), "expected 0 < alpha < 1"),
        (lambda: betting.decide([0.5], 0.5), "expected 0 < alpha < 0.5"),
        (lambda: betting.decide([0.5], 0.05, futile=0.5), "expected a win rate above 0.5"),
        (lambda: betting.decide([], 0.05), "a step or more"),
        (lambda: betting.decide([[0.5]], 0.05), "one series"),
        (lambda: betting.family_alpha(0.05, 0), "a family of 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
