"""Whether a GPU should have two workers, found by a clock of its own and without Ray."""

from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from cxr_ray.measure.shards import ModelRef
from cxr_ray.run import pipeline, second_worker
from cxr_ray.run.cluster import Node, Request, allocate, with_doubled
from cxr_ray.run.pipeline import ShardPass
from cxr_ray.run.plan import Images, PassCounts, Plan
from cxr_ray.run.terminal import ShardDone
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve

LENGTH, PASSES, SHARD_SECONDS = 64, 400, 1.0
SWEEP = resolve({"data": {"source": "phantom"}})


def allocation(*nodes: Node, **asked: Any):
    request = Request(resolve({"resources": asked}).resources, 0, 224, True)
    return with_doubled(allocate(nodes, request), nodes, request)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Scores shards by a clock: one worker takes a second for each, two take so many between them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clock, log = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(second_worker, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def compute(n_shards: int, two: float, given=None):
        given = given or allocation(Node(9, 1))

        def compute_shards(shard_pass, shards):
            waiting, alone = iter(shards), shard_pass.allocation.worker_gpus == 1
            while portion := list(islice(waiting, 16 * shard_pass.allocation.workers)):
                for shard in portion:
                    clock.now += SHARD_SECONDS if alone else two
                    log.append((shard.name, shard_pass.allocation.workers))
                    yield ShardDone(len(shard.rows), "eager", (), shard.name)

        def restart(make, allocation):
            log.append(("restart", make))
            clock.now += 20

        monkeypatch.setattr(pipeline, "compute_shards", compute_shards)
        rows = {"image_id": [f"{i:x}" for i in range(n_shards * LENGTH)], "path": "x", "label": 0}
        refs = {"m": ModelRef("m", "m.pt", None, 224)}
        plan = Plan(refs, {"test": Images(pd.DataFrame(rows))}, {("m", "test"): LENGTH}, splits=("test",))
        context = cast(Any, SimpleNamespace(sweep=SWEEP, store=Store(str(tmp_path), {})))
        scoring = ShardPass(context, given, cast(Any, SimpleNamespace(restart=restart)), refs, {"m": PASSES})
        counts, make = {"m": PassCounts(PASSES)}, lambda allocation: cast(Any, allocation.workers)
        log.clear()
        done = list(second_worker.compute(scoring, plan.missing(), counts, make))
        assert [d.name for d in done] == list(plan.names("m")), "each once, in order"
        return [entry for entry in log if entry[0] == "restart"], [workers for _, workers in log]

    return compute


def test_two_workers_that_are_faster_stay_and_the_next_run_begins_with_them(run, capsys):
    restarts, workers = run(600, two=0.6)
    assert restarts == [("restart", 2)]
    assert workers == sorted(workers), "one, then two to the end"
    assert capsys.readouterr().out == (
        "  two workers on each GPU: 42,667 forward passes/s, one: 25,600; two from now on "
        "(resources.gpu_per_worker: 0.5 asks for it)\n"
    )
    later = second_worker.allocation_of(SWEEP, allocation(Node(9, 1)))
    assert (later.workers, later.worker_gpus, later.doubled) == (2, 0.5, None)
    restarts, workers = run(600, two=0.6, given=later)
    assert restarts == []
    assert set(workers) == {2}


def test_two_workers_that_gain_less_than_a_tenth_give_way_to_one_and_the_next_run_does_not_try(run, capsys):
    restarts, workers = run(600, two=0.95)
    assert restarts == [("restart", 2), ("restart", 1)]
    assert workers[-1] == 1
    assert "one from now on (resources.gpu_per_worker: 1 asks for it)" in capsys.readouterr().out
    later = second_worker.allocation_of(SWEEP, allocation(Node(9, 1)))
    assert (later.workers, later.doubled) == (1, None)


def test_another_sweep_or_machine_is_asked_again(run):
    run(600, two=0.6)
    other = resolve({"data": {"source": "phantom"}, "controls": {"cell_random": 1}})
    assert second_worker.allocation_of(other, allocation(Node(9, 1))).workers == 1
    assert second_worker.allocation_of(SWEEP, allocation(Node(17, 2))).workers == 2


@pytest.mark.parametrize("n_shards", [1, 10, 300])
def test_a_pass_of_minutes_tries_nothing(run, n_shards):
    restarts, workers = run(n_shards, two=0.1)
    assert restarts == []
    assert set(workers) == {1}


def test_two_are_tried_only_where_none_is_asked_for_and_both_fit():
    gpu = Node(9, 1)
    assert allocation(gpu).doubled.workers == 2
    assert allocation(gpu).doubled.worker_gpus == 0.5
    assert allocation(gpu, workers=1).doubled is None
    assert allocation(gpu, gpu_per_worker=1).doubled is None
    assert allocation(Node(9)).doubled is None, "no GPU"
    assert allocation(Node(9, 1, memory=3 * 2**30)).doubled is None, "memory for one"
