"""Workers that share calls, die, hang and are replaced: without Ray, in which a call is done once it is asked for."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import exceptions

from cxr_ray.errors import WorkersError
from cxr_ray.run import deaths, workers
from cxr_ray.run.deaths import Died
from cxr_ray.run.workers import WorkerPool


def test_threads_of_a_worker_do_not_spin():
    """The variable is set before torch is imported, which reads it once, and only in a worker."""
    code = """if True:
        import os, pickle, sys
        from cxr_ray.run.workers import _ExplainProcess
        class Made:
            def __reduce__(self):
                return exec, ("import os, sys; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])",)
        pickled = pickle.dumps(Made())
        print(os.environ.get("OMP_WAIT_POLICY"))
        try:
            _ExplainProcess(pickled)
        except TypeError:  # exec made nothing
            pass
    """
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["None", "False", "PASSIVE"]


class Ref:
    """A result that is made when it is asked for, once; of a process that ended, the error that says so."""

    def __init__(self, actor, function, arguments):
        self.actor, self.function, self.arguments = actor, function, arguments
        self.made: Any = None

    def get(self):
        if self.made is None:
            self.made = self._make()
        if isinstance(self.made, Exception):
            raise self.made
        return self.made[0]

    def _make(self):
        if not self.actor.alive:
            return exceptions.ActorDiedError()
        try:
            return (self.function(self.actor.worker, *self.arguments),)
        except (exceptions.RayActorError, exceptions.ObjectLostError, OSError) as e:
            self.actor.alive = not isinstance(e, exceptions.RayActorError)
            return e

    @property
    def hangs(self) -> bool:
        return self.function is hang and self.actor.alive


class Actor:
    """A process of a worker."""

    def __init__(self, make):
        self.apply, self.alive, self.worker = self, True, None
        try:
            self.worker = make()
        except exceptions.RayActorError:
            self.alive = False

    def options(self, num_returns):
        return self

    def remote(self, function, *arguments):
        return Ref(self, function, arguments)


@pytest.fixture
def actors(monkeypatch):
    """The processes that were started."""
    started: list[Actor] = []
    clock = SimpleNamespace(now=0.0)

    def start(make):
        started.append(Actor(make))
        return started[-1]

    def wait(refs, timeout=None):
        done = [ref for ref in refs if not ref.hangs][:1]
        if not done:
            assert timeout is not None, "waits for ever"
            clock.now += timeout
        return done, [ref for ref in refs if ref not in done]

    def kill(actor):
        actor.alive = False

    kind = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))
    fake = SimpleNamespace(
        remote=lambda _: kind,
        wait=wait,
        get=lambda ref: [one.get() for one in ref] if isinstance(ref, list) else ref.get(),
        kill=kill,
    )
    monkeypatch.setattr(workers, "ray", fake)
    monkeypatch.setattr(workers, "cloudpickle", SimpleNamespace(dumps=lambda make: make))  # all in this process
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return started


def hang(worker):
    raise AssertionError("hangs")


def die(worker, *_):
    raise exceptions.ActorDiedError()


def echo(worker, n):
    return n


def pool_of(n: int, gpus: float = 0, make: Any = lambda: "worker") -> WorkerPool:
    pool = WorkerPool(make, cast(Any, SimpleNamespace(workers=n, worker_gpus=gpus, worker_cpus=1)))
    pool.start(n)
    return pool


def fill(pool: WorkerPool, calls: list) -> list[Any]:
    """Results of calls that are submitted as workers are free."""
    results, waiting = [], list(calls)
    while waiting or pool.is_busy:
        while waiting and pool.is_free:
            pool.submit(*waiting.pop(0))
        results.append(pool.wait()[1])
    return results


@pytest.mark.parametrize(("gpus", "ahead"), [(0, 1), (0.5, 2)])
def test_workers_are_started_once_and_share_the_calls(actors, gpus, ahead):
    pool = WorkerPool(lambda: "worker", cast(Any, SimpleNamespace(workers=3, worker_gpus=gpus, worker_cpus=1)))
    pool.start(2)
    assert len(actors) == 2  # no more than there is work for
    for _ in range(2):
        pool.start(99)
        assert len(actors) == 3  # no more than there is room for
        while any(w.ready is not None for w in pool._workers):
            pool._wait()
        n = 0
        while pool.is_free:
            pool.submit(lambda worker, n: f"{worker} {n}", n)
            n += 1
        assert n == 3 * ahead
        assert {pool.wait()[1] for _ in range(n)} == {f"worker {i}" for i in range(n)}
    pool.close()
    assert not any(actor.alive for actor in actors)
    assert not pool.is_free


def test_a_call_goes_to_an_idle_worker_and_best_to_the_last_one_of_its_topic(actors):
    pool = pool_of(3)
    while any(w.ready is not None for w in pool._workers):
        pool._wait()
    first = {}
    for topic in "abc":
        first[topic] = pool.submit(echo, 0, topic=topic).refs[0].actor
    assert len(set(first.values())) == 3
    assert not pool.is_free
    for _ in range(3):
        pool.wait()
    assert {topic: pool.submit(echo, 0, topic=topic).refs[0].actor for topic in "cab"} == first


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_call_that_kills_is_given_up_after_three_processes_and_the_others_are_made(actors, gpus):
    pool = pool_of(2, gpus)
    results = fill(pool, [(echo, 1), (die,), *((echo, n) for n in range(2, 9))])
    assert sorted(r for r in results if not isinstance(r, Died)) == list(range(1, 9)), "each once"
    (died,) = [r for r in results if isinstance(r, Died)]
    assert "crashed" in died.reason
    assert len(actors) == 2 + deaths.MOST


def test_calls_behind_one_that_kills_are_not_blamed(actors):
    """On a GPU, a worker has two calls: the second one dies with the first."""
    pool = pool_of(1, gpus=1)
    assert pool.is_free
    killer, innocent = pool.submit(die, most=1), pool.submit(echo, 5)
    call, result = pool.wait()
    assert call is killer
    assert isinstance(result, Died)
    assert pool.wait() == (innocent, 5)
    assert innocent.deaths == 0


def test_a_call_that_hangs_is_ended_and_given_up(actors):
    pool = pool_of(1)
    results = fill(pool, [(echo, 1), (hang,), (echo, 2)])
    assert [r for r in results if not isinstance(r, Died)] == [1, 2]
    (died,) = [r for r in results if isinstance(r, Died)]
    assert died.reason == "it made no progress for 1200 seconds and was ended"  # of the last try


def test_what_was_lost_with_another_machine_is_made_again_and_kills_no_worker(actors):
    lost = iter([exceptions.ObjectLostError("00" * 28, None, "")])

    def needs(worker):
        for error in lost:
            raise error
        return "made"

    pool = pool_of(1)
    assert fill(pool, [(needs,)]) == ["made"]
    assert len(actors) == 1


def test_a_call_is_made_again_where_a_task_has_lost_its_result(actors):
    pool = pool_of(1)
    assert pool.is_free
    made = pool.submit(echo, 7)
    assert pool.wait() == (made, 7)

    def write(_):
        raise exceptions.ObjectLostError("00" * 28, None, "")

    pool.add(Ref(SimpleNamespace(alive=True, worker=None), write, ()), made)
    assert pool.wait() == (made, 7)
    assert made.deaths == 1
    assert not pool.is_busy


def test_processes_that_die_at_start_end_the_run_with_a_sentence(actors):
    pool = pool_of(2, make=lambda: die(None))
    with pytest.raises(WorkersError, match="3 times in a row before it took any work"):
        _ = pool.is_free
    assert len(actors) == 2 * deaths.AT_START


def test_processes_that_hang_at_start_end_the_run_with_a_sentence(actors, monkeypatch):
    monkeypatch.setattr(workers, "_nothing", hang)
    pool = pool_of(2)
    with pytest.raises(WorkersError, match=r"before it took any work \(it made no progress for 600 seconds"):
        _ = pool.is_free
    assert len(actors) == 2 * deaths.AT_START


def test_processes_that_never_give_a_result_end_the_run_with_a_sentence(actors):
    pool = pool_of(1)
    with pytest.raises(WorkersError, match="10 times in a row without a result between"):
        fill(pool, [(die,)] * 99)


def test_a_worker_whose_machine_is_bad_is_given_up_and_the_others_go_on(actors):
    made = iter([True, False, False, False])

    def make():
        if not next(made):
            die(None)
        return "good"

    pool = pool_of(2, make=make)
    while any(w.ready is not None for w in pool._workers):
        pool._wait()
    assert len(pool._workers) == 1
    assert fill(pool, [(echo, n) for n in range(5)]) == list(range(5))
    pool.start(2)
    assert len(pool._workers) == 1, "it is not started again"


@pytest.mark.parametrize(("times", "number"), [(2, None), (3, None), (1, 28)])
def test_a_call_in_which_a_store_did_not_answer_is_made_again_twice_and_blames_nobody(actors, times, number):
    """A disk that is full (28) is no store that did not answer."""
    errors = [OSError("AWS Error") if number is None else OSError(number, "No space left on device")] * times

    def reads(worker):
        if errors:
            raise errors.pop()
        return "read"

    pool = pool_of(1)
    if (times, number) == (2, None):
        assert fill(pool, [(reads,), (echo, 1)]) == ["read", 1]
    else:
        with pytest.raises(OSError, match=r"AWS Error|No space"):
            fill(pool, [(reads,), (echo, 1)])
    assert errors == []
    assert len(actors) == 1


def test_an_error_of_our_own_is_no_death(actors):
    def wrong(worker):
        raise ValueError("of the function")

    pool = pool_of(1)
    assert pool.is_free
    pool.submit(wrong)
    with pytest.raises(ValueError, match="of the function"):
        pool.wait()


def test_a_pool_that_starts_again_has_other_workers_and_as_many_as_it_may(actors):
    pool = pool_of(1)
    assert fill(pool, [(echo, 1)]) == [1]
    pool.restart(lambda: "other", cast(Any, SimpleNamespace(workers=2, worker_gpus=0.5, worker_cpus=1)))
    assert not actors[0].alive
    pool.start(9)
    assert len(actors) == 3
    assert fill(pool, [(lambda worker: worker,)] * 4) == ["other"] * 4
