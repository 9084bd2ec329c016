"""Tests of single images: which ways hold under the null of exchangeable draws."""

import itertools

import numpy as np

from benchmarks import single_images


def test_a_win_rate_of_one_half_is_the_wrong_null_of_a_single_image():
    rng = np.random.default_rng(0)
    found = {way: share for way, (share, _) in single_images.ways(rng.random(4000), rng).items()}
    error = np.sqrt(0.05 * 0.95 / 4000)
    assert found["Besag and Clifford"] < 0.05 + 3 * error
    assert found["Beta ratio"] < 0.05 + 3 * error
    assert found["betting on 1/2"] > 0.2


def test_the_ratio_is_fair_to_a_map_that_is_one_more_draw():
    """Under the null every number of losses 0 to D is as likely, in every order: the mean is 1, whatever D."""
    draws = 8
    outcomes = np.array(list(itertools.product([False, True], repeat=draws)))
    ratio = np.exp(single_images.beta_ratio(outcomes))
    lost = outcomes.sum(1)
    for d in (1, 4, draws):
        mean = [ratio[lost == n, d - 1].mean() for n in range(draws + 1)]
        np.testing.assert_allclose(np.mean(mean), 1, rtol=1e-9)
