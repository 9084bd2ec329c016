"""Whether two workers on each GPU score faster than one: measured on the run's own shards, and kept for the next run.

One worker leaves a GPU waiting while it makes rows; two share its memory and its time. Which is faster depends on the
sweep and on the machine. So a scoring pass that has minutes left scores some shards with one worker on each GPU, then
some with two, and goes on with what is faster. The shards that are measured are the run's own: nothing is scored twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from cxr_ray.config import Sweep
from cxr_ray.models import kept
from cxr_ray.run import pipeline, terminal
from cxr_ray.run.cluster import Allocation
from cxr_ray.run.pipeline import ShardPass
from cxr_ray.run.plan import Missing, PassCounts, ShardPlan
from cxr_ray.run.terminal import ShardDone
from cxr_ray.schemas import to_json

PAYS = 300.0  # seconds of scoring left, from which starting workers again, perhaps twice, can pay: 10 to 20 s each
WINDOW, SHARDS = 20.0, 8  # seconds and shards, at least, that each is measured
FASTER = 1.1  # times the rate, from which two are taken: they also take twice the memory

Make = Callable[[Allocation], Callable[[], Any]]  # how a worker of an allocation is made, in its process


def allocation_of(sweep: Sweep, allocation: Allocation) -> Allocation:
    """Two workers on each GPU where an earlier run of such a sweep found them faster, else the allocation as it is."""
    if allocation.doubled is None:
        return allocation
    known = kept.read(_key(sweep, allocation))
    if known is None or not isinstance(faster := known.get("two are faster"), bool):
        return allocation
    return replace(allocation.doubled if faster else allocation, doubled=None)


def compute(
    scoring: ShardPass, missing: Missing, counts: Mapping[str, PassCounts], make: Make
) -> Generator[ShardDone, None, None]:
    """``pipeline.compute_shards`` of the scoring pass; finds out on the way how many workers a GPU should have.

    Args:
        scoring: the pass. Its allocation's ``doubled`` is what may be tried; None: nothing is.
        missing: the shards.
        counts: forward passes of an image by trial_id.
        make: makes workers of either allocation.
    """
    allocation, doubled = scoring.allocation, scoring.allocation.doubled
    if doubled is None:
        yield from pipeline.compute_shards(scoring, missing)
        return
    left = _Left(missing, counts)
    one, two = _Rate(left, allocation.workers), _Rate(left, doubled.workers)
    yield from one.of(pipeline.compute_shards(scoring, left.until(lambda: one.is_full and one.seconds_left > PAYS)))
    if not left:
        return
    scoring.pool.restart(make(doubled), doubled)
    trying = replace(scoring, allocation=doubled)
    yield from two.of(pipeline.compute_shards(trying, left.until(lambda: two.is_full)))
    faster = two.is_full and two.value > FASTER * one.value
    if two.is_full:
        kept.write(_key(scoring.context.sweep, allocation), {"two are faster": faster})
        terminal.say(
            f"  two workers on each GPU: {two.value:,.0f} forward passes/s, one: {one.value:,.0f}; "
            f"{'two' if faster else 'one'} from now on (resources.gpu_per_worker: {0.5 if faster else 1} asks for it)"
        )
    if not left:
        return
    if not faster:
        scoring.pool.restart(make(allocation), allocation)
        trying = scoring
    yield from pipeline.compute_shards(trying, left.until(lambda: False))


def _key(sweep: Sweep, allocation: Allocation) -> kept.Key:
    """What the answer depends on, as far as the driver knows: the work of an image, and the machines."""
    sections = sweep.model_dump(include={"explain", "perturb", "controls", "regions", "model", "checkpoints"})
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "what": "two workers on a GPU",
        "work": hashlib.sha256(to_json([sections, sweep.data.size]).encode()).hexdigest(),
        "machines": [allocation.n_nodes, allocation.cpus, allocation.gpus, gpu],
        "versions": kept.versions(),
    }


class _Left:
    """The shards that no pass has taken yet.

    Attributes:
        counts: forward passes of an image by trial_id.
        passes: of all shards, taken or not: about as many, since those of val and the like are left out.
        done: of those that were computed.
    """

    def __init__(self, missing: Missing, counts: Mapping[str, PassCounts]):
        self.missing, self.counts = missing, counts
        self.passes = sum(counts[trial_id].test * n for trial_id, n in missing.n_test.items())
        self.done = 0
        self._shards, self._taken = iter(missing), 0

    def __bool__(self) -> bool:
        return self._taken < len(self.missing)

    def take(self) -> ShardPlan:
        """The next one."""
        self._taken += 1
        return next(self._shards)

    def until(self, is_over: Callable[[], bool]) -> Missing:
        """The shards from here on; there are no more once ``is_over``."""
        return cast(Missing, _Part(self, is_over))  # all that a pass reads of one

    def count(self, done: ShardDone) -> int:
        """Count a shard that was computed; its forward passes."""
        trial_id, split = done.name.split(".")[:2]
        passes = self.counts[trial_id].of_splits().get(split, 1) * done.images
        self.done += passes
        return passes


class _Part:
    """Shards that end when they are told to; Ray Data has read a portion of them by then, which is computed."""

    def __init__(self, left: _Left, is_over: Callable[[], bool]):
        self.plan, self._left, self._is_over = left.missing.plan, left, is_over

    def __len__(self) -> int:
        return len(self._left.missing)

    def __iter__(self) -> Iterator[ShardPlan]:
        while self._left and not self._is_over():
            yield self._left.take()


class _Rate:
    """Forward passes a second, once each worker has begun: the first two shards of each are not counted."""

    def __init__(self, left: _Left, workers: int):
        self._left, self._skipped = left, 2 * workers
        self._seen = self._passes = 0
        self._start = self._last = 0.0

    def of(self, computed: Generator[ShardDone, None, None]) -> Generator[ShardDone, None, None]:
        """Measure shards as they are computed; as many as there are when it is full."""
        for done in computed:
            passes, full = self._left.count(done), self.is_full
            self._seen += 1
            if self._seen <= self._skipped:
                self._start = self._last = time.monotonic()
            elif not full:
                self._last = time.monotonic()
                self._passes += passes
            yield done

    @property
    def value(self) -> float:
        """Forward passes a second."""
        return self._passes / (self._last - self._start)

    @property
    def is_full(self) -> bool:
        """Whether enough was seen."""
        return self._seen - self._skipped >= SHARDS and self._last - self._start >= WINDOW

    @property
    def seconds_left(self) -> float:
        """What the rest takes at this rate."""
        return (self._left.passes - self._left.done) / self.value
