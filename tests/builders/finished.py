"""Finished runs of given models, computed in this process without Ray."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cxr_ray.config import Sweep
from cxr_ray.run import ahead, cluster, context, execute, explaining, pipeline, resume
from cxr_ray.run.pipeline import PassSettings
from cxr_ray.run.plan import ShardPlan
from cxr_ray.run.statistics import write_statistics
from cxr_ray.run.terminal import ShardDone
from cxr_ray.run.workers import Call
from cxr_ray.storage import pack

Order = Callable[[Sequence[ShardPlan]], Sequence[ShardPlan]]


class LocalPool:
    """Workers in this process, in place of those of Ray, which take calls in turn."""

    is_free, free_cpus = True, 1.0

    def __init__(self, make: Callable[[], Any], workers: int = 1):
        self._make, self._n = make, workers
        self._workers: deque[Any] = deque()
        self._done: deque[tuple[Call, Any]] = deque()

    @property
    def is_busy(self) -> bool:
        return bool(self._done)

    def start(self, n: int) -> None:
        while len(self._workers) < self._n:
            self._workers.append(self._make())

    def submit(self, function: Callable[..., Any], *arguments: Any, **how: Any) -> Call:
        call = Call()
        self._workers.rotate()
        self._done.append((call, function(self._workers[0], *arguments)))
        return call

    def wait(self) -> tuple[Call, Any]:
        return self._done.popleft()

    def close(self) -> None:
        self._workers.clear()


@contextlib.contextmanager
def without_ray(order: Order = list, workers: int = 1) -> Iterator[pytest.MonkeyPatch]:
    """Sweeps of given models need no Ray: their shards are computed here, in an order, by workers in turn."""

    def compute(shard_pass, shards):
        run = shard_pass.context
        settings = PassSettings(run.sweep, shard_pass.is_map_pass, shard_pass.tested)
        in_order = list(order(list(shards)))
        here = run, shard_pass.model_refs, shard_pass.allocation, settings
        computed = [pipeline.compute_here(*here, in_order[n::workers]) for n in range(workers)]
        for n in range(len(in_order)):
            shard, made = next(computed[n % workers])
            run.store.write_shard(shard.name, made if isinstance(made, bytes) else pack(made), shard_pass.folder)
            yield ShardDone(len(shard.rows), "eager")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "compute_shards", compute)
        patch.setattr(explaining, "WorkerPool", lambda make, allocation: LocalPool(make, workers))
        for name in ("start", "imported", "close"):
            patch.setattr(ahead.RayAhead, name, lambda _: None)
        patch.setattr(ahead.RayAhead, "started", lambda _: True)
        patch.setattr(cluster, "ray_nodes", lambda ask_gpus: [cluster.Node(2)])
        yield patch


def finished_run(sweep: Sweep, out: str, batch_size: int = 32, order: Order = list, workers: int = 1) -> str:
    """The run ``out``, as the command line makes it, but for the report.

    Its shards are computed in an order, by workers in turn.
    """
    prepared = context.prepare(sweep, out)
    store = prepared.store
    alone = SimpleNamespace(worker_gpus=0, threads=0, batch_size=batch_size, workers=1, doubled=None)
    with without_ray(order, workers):
        resume.begin(prepared)
        store.write_table("images", prepared.manifest.table)
        store.write_table("trials", [execute._given_row(ref) for ref in prepared.given.values()])
        assert explaining.explain(prepared, prepared.given, cast(Any, alone), prepared.manifest.errors)
    write_statistics(sweep, store)
    resume.mark_finished(store)
    store.clean()
    return out
