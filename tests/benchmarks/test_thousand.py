"""The simulation of many workers: known times, and nothing lost."""

from typing import Any

import pytest

from benchmarks.thousand import Cluster, simulate


def test_even_shards_without_overhead_keep_every_worker_busy():
    found = simulate(Cluster(workers=10, shards=100, seconds=3.0))
    assert (found.wall, found.efficiency, found.wasted) == (pytest.approx(30), pytest.approx(1), 0)


def test_a_start_and_a_last_round_that_is_not_full_cost_what_they_must():
    found = simulate(Cluster(workers=10, shards=101, seconds=3.0, start=20.0))
    assert found.wall == pytest.approx(20 + 11 * 3)


def test_a_driver_that_cannot_keep_up_sets_the_pace():
    found = simulate(Cluster(workers=1000, shards=20_000, seconds=1.0, driver=0.01))
    assert found.wall == pytest.approx(20_000 * 0.01, rel=0.02)
    assert found.efficiency == pytest.approx(0.1, rel=0.02)


def test_a_shard_held_ahead_hides_the_driver():
    one, two = (simulate(Cluster(workers=1, shards=500, seconds=1.0, driver=0.5, ahead=n)) for n in (1, 2))
    assert one.wall == pytest.approx(500 * 1.5)
    assert two.wall == pytest.approx(500 + 0.5)


def test_lost_machines_cost_their_shards_again_and_every_shard_is_computed():
    given: dict[str, Any] = {"workers": 50, "shards": 5000, "seconds": 10.0}
    found = simulate(Cluster(**given, lost=6.0, replaced=0.0))
    even = simulate(Cluster(**given))
    assert found.wasted > 20
    # a loss costs half a shard on average: 50 machines, 6 losses an hour each
    assert found.wasted == pytest.approx(50 * 6 * found.wall / 3600, rel=0.3)
    assert even.wall < found.wall < 1.1 * even.wall


def test_stragglers_keep_the_mean_time_of_a_shard():
    found = simulate(Cluster(workers=1, shards=20_000, seconds=1.0, spread=0.5))
    assert found.wall == pytest.approx(20_000, rel=0.02)
