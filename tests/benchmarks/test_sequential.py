"""The benchmark of sequential verdicts, small: its simulated truth, its decisions, its nulls."""

import itertools

import numpy as np
import pytest

from benchmarks import relabelling, sequential
from cxr_ray.analysis import betting
from tests.builders.runs import make_run


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("sds", sequential.SDS.values())
def test_simulated_maps_win_as_often_as_they_are_meant_to(sds):
    for win_rate in (0.5, 0.8):
        chance = sequential.probabilities(rng(), 200, sequential.SIZES_P, win_rate, sds)
        assert chance.shape == (200, 624)
        error = chance[:, :428].std() / np.sqrt(200 * 428 / 2)  # images of a patient agree: fewer than images
        assert abs(chance.mean() - win_rate) < 5 * error + 1e-9


def test_images_of_a_patient_share_its_effect():
    chance = sequential.probabilities(rng(), 500, np.array([1, 2]), 0.5, (3.0, 0.0))
    np.testing.assert_array_equal(chance[:, 1], chance[:, 2])
    assert abs(np.corrcoef(chance[:, 0], chance[:, 1])[0, 1]) < 0.2


def test_decisions_are_those_of_the_package():
    for win_rate in (0.5, 0.6, 0.7):
        x = sequential.one_image_each(rng(1), 12, 5, win_rate)
        outcome = sequential.sequential(x, 0.05)
        for i, series in enumerate(x):
            d = betting.decide(series, 0.05)
            assert (d.decision == "better", d.decision == "futile", d.n) == (
                outcome.better[i],
                outcome.futile[i],
                outcome.n[i],
            )


def test_bounds_miss_a_mean_exactly_where_the_package_puts_it_outside():
    x = sequential.one_image_each(rng(2), 40, 1, 0.6)
    outcome = sequential.sequential(x, 0.2)
    outside = [not d.lower < 0.5 < d.upper for d in (betting.decide(series, 0.2) for series in x)]
    assert 0 < np.mean(outside) < 1
    assert sequential.missed(x, outcome.n, 0.5, 0.2) == np.mean(outside)


def test_sequential_verdicts_hold_and_cost_little():
    held = sequential.type_one(rng(3), 200)
    assert max(held.values()) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    x = sequential.one_image_each(rng(4), 100, 1, 0.7)
    outcome = sequential.sequential(x, 0.0025)
    assert outcome.better.mean() > 0.95
    passes = outcome.n.mean() * 2 * sequential.PASSES
    assert passes / (624 * 6 * sequential.PASSES) < 0.055  # 0.04, and what 100 series may be off by


def test_predictable_bets_are_martingales_and_need_more_patients():
    """By enumeration: the capital of fair coins is 1 on average, whatever is learnt from the past."""
    coins = np.array(list(itertools.product([0.0, 1.0], repeat=10)))
    for stake in (sequential.plug_in, sequential.agrapa):
        np.testing.assert_allclose(np.exp(sequential.predictable(coins, 0.5, 0.05, stake)).mean(0), 1)
    patients = {name: int(cell.split()[-2]) for name, cell in sequential.bets(rng(8), 60).items()}
    assert patients["mixture, 0.7"] < patients["agrapa, 0.7"] < patients["plug_in, 0.7"]


def test_images_as_steps_and_repeated_looks_do_not_hold():
    rejected = sequential.contrasts(rng(5), 100)
    assert rejected["patients' means as steps"] < 0.12
    assert rejected["images as steps"] > 0.3
    assert rejected["sign-flip test, 10 looks"] > 0.05


def test_relabelling_makes_a_null_of_a_map_that_always_wins():
    patients = np.repeat(np.arange(60), rng(6).integers(1, 5, 60))
    series = relabelling.Series("m, gradcam, shifted", rng(6).choice([0.8, 1.0], len(patients)), patients)
    shares = relabelling.relabelled(series, 400, seed=0)
    assert all(share < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400) for share in shares.values())
    assert shares["fixed"] > 0.02
    [answer] = relabelling.answers([series]).values()
    assert answer.startswith("better after ")
    assert "of 60 patients" in answer


def test_each_patient_is_one_step_in_random_order():
    series = relabelling.Series("", np.arange(6) / 10, np.array(list("aabbcc"), dtype=object))
    orders = {tuple(relabelling.in_random_order(rng(seed), series)) for seed in range(300)}
    assert all(len({int(10 * x) // 2 for x in order}) == 3 for order in orders)
    assert len(orders) == 6 * 8  # every order, and every choice of an image


def test_win_rates_of_a_run_are_those_of_its_primary_metric(tmp_path):
    path = make_run(tmp_path / "run", rules=("pneumonia", "predicted"))
    series = {s.name: s for s in relabelling.of_run(path)}
    assert all(len(s.x_N) == len(s.patients_N) == 6 for s in series.values())
    assert {name.split(", ")[2] for name in series} == {"pixel_random", "shifted"}
    assert all(((s.x_N >= 0) & (s.x_N <= 1)).all() for s in series.values())
