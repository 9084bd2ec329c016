"""The workers of a run: actors that live as long as it does, so that models and inference backends are loaded once.

Ray Data starts its actors anew for each execution, which takes as long as a small pass. These are started once, as many
as there is work for, and serve every pass: validation, maps, rounds of sequential verdicts, scoring.

A worker whose process dies or hangs is replaced, and its call is tried again by another worker, a few times. Ray itself
restarts nothing: it would try again in silence, and blame a call for the death that another one caused.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle

from cxr_ray.errors import WorkersError
from cxr_ray.run import deaths
from cxr_ray.run.deaths import Died

if TYPE_CHECKING:
    from cxr_ray.run.cluster import Allocation

AHEAD = 2  # calls that a worker on a GPU has at a time: it goes on at once with the next
TICK_SECONDS = 10.0  # between two looks at what hangs


class _ExplainProcess:
    """The process of one worker."""

    def __init__(self, pickled: bytes):
        """Takes a function that makes what works, pickled, since torch is imported with what it holds."""
        # Which torch reads when it is imported. Its threads would spin for milliseconds after each small operation, on
        # CPUs that decode and write: twice the CPU time of a pass of small images.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.worker = pickle.loads(pickled)()

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.worker, *arguments)


@dataclass(eq=False)
class Call:
    """A call of a worker, or (no function) a task that runs.

    Attributes:
        refs: its results; the first one says when it is done. Others, when it is tried again.
        function, arguments: what the worker is asked.
        topic: calls of one topic are best made by one worker.
        kind: calls of one kind take about as long.
        most: deaths after which it is given up.
        deaths: so far.
        unanswered: how often a store did not answer in it.
        before: of a task, the call that made what it needs, and is made again where that is lost.
    """

    refs: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    arguments: Sequence[Any] = ()
    topic: str = ""
    kind: str = ""
    most: int = deaths.MOST
    deaths: int = 0
    unanswered: int = 0
    before: Call | None = None

    @property
    def is_task(self) -> bool:
        """Whether it is a task outside the workers."""
        return self.function is None


@dataclass(eq=False)
class _Worker:
    """One worker, and the process that it is at the moment.

    Attributes:
        actor: its process.
        ready: done once the process has made its worker; None once that is known.
        calls: in the order in which the process takes them.
        since: when it began with the first of them, or with its process.
        topic: of its last call.
        deaths: of its processes since the last result.
        at_start: those of them that never took a call.
    """

    actor: Any
    ready: Any
    calls: deque[Call] = field(default_factory=deque)
    since: float = 0.0
    topic: str = ""
    deaths: int = 0
    at_start: int = 0


class WorkerPool:
    """Workers, and the calls that run."""

    def __init__(self, make: Callable[[], Any], allocation: Allocation):
        """Takes how a worker is made, in its process, and what it may use. Nothing is started."""
        self._make, self._allocation = make, allocation
        self._ahead = AHEAD if allocation.worker_gpus else 1
        self._workers: list[_Worker] = []
        self._places = allocation.workers  # workers that may be started
        self._running: dict[Any, tuple[Call, _Worker | None]] = {}  # by a call's first result
        self._again: deque[Call] = deque()  # to be tried again
        self._done: deque[tuple[Call, Any]] = deque()
        self._slowest: dict[str, float] = {}  # seconds of a call, by kind

    def start(self, n: int) -> None:
        """Have workers for ``n`` calls at a time, at most those that the allocation has; does not wait for them."""
        while len(self._workers) < min(n, self._places):
            self._workers.append(_Worker(*self._begin(), since=time.monotonic()))

    def _begin(self) -> tuple[Any, Any]:
        kind = ray.remote(_ExplainProcess).options(
            num_cpus=self._allocation.worker_cpus,
            num_gpus=self._allocation.worker_gpus or None,
            max_restarts=0,
            max_task_retries=0,
        )
        actor: Any = kind.remote(cloudpickle.dumps(self._make))
        return actor, actor.apply.options(num_returns=1).remote(_nothing)

    @property
    def free_cpus(self) -> float:
        """CPUs of the machines that no worker holds, at least half of one."""
        held = len(self._workers) * self._allocation.worker_cpus
        return max(0.5, float(ray.cluster_resources().get("CPU", 0)) - held)

    @property
    def is_busy(self) -> bool:
        """Whether there is a call whose result was not taken."""
        return bool(self._running or self._again or self._done)

    @property
    def is_free(self) -> bool:
        """Whether a worker can take a new call. Waits for the first worker where nothing runs.

        Raises:
            WorkersError: no worker can be kept alive.
        """
        self._try_again()
        while self._workers and not self._running and not self._free():
            self._wait()
            self._try_again()
        return bool(self._free())

    def _free(self) -> list[_Worker]:
        return [w for w in self._workers if w.ready is None and len(w.calls) < self._ahead]

    def submit(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        num_returns: int = 1,
        topic: str = "",
        kind: str = "",
        most: int = deaths.MOST,
    ) -> Call:
        """Call ``function(worker, *arguments)`` in the worker with the fewest calls, best the last one of a topic.

        ``kind`` and ``most``: as in ``Call``.
        """
        call = Call((None,) * num_returns, function, arguments, topic, kind, most)
        self._submit(call)
        return call

    def _submit(self, call: Call) -> None:
        worker = min(self._free(), key=lambda w: (len(w.calls), w.topic != call.topic))
        n = len(call.refs)
        refs = worker.actor.apply.options(num_returns=n).remote(call.function, *call.arguments)
        call.refs = tuple(refs) if n > 1 else (refs,)
        if not worker.calls:
            worker.since = time.monotonic()
        worker.calls.append(call)
        worker.topic = call.topic
        self._running[call.refs[0]] = call, worker

    def _try_again(self) -> None:
        while self._again and self._free():
            self._submit(self._again.popleft())

    def add(self, ref: Any, before: Call | None = None) -> None:
        """Wait for a task as well; ``before``: the call that made what it needs."""
        self._running[ref] = Call((ref,), before=before), None

    def wait(self) -> tuple[Call, Any]:
        """Wait until one of the running calls is done; it and its first result, or Died where it was given up.

        Raises:
            ray.exceptions.RayError: it failed.
            WorkersError: no worker can be kept alive.
        """
        while not self._done:
            self._try_again()
            self._wait()
        return self._done.popleft()

    def _wait(self) -> None:
        """Wait until a call is done or has died, or a worker is ready, or has died."""
        starting = {w.ready: w for w in self._workers if w.ready is not None}
        limit = min((self._deadline(w) for w in self._workers if w.calls or w.ready is not None), default=None)
        timeout = None if limit is None else min(TICK_SECONDS, max(0.0, limit - time.monotonic()))
        ended, _ = ray.wait([*self._running, *starting], timeout=timeout)
        for ref in ended:
            if ref in starting:
                self._started(starting[ref])
            else:
                self._ended(*self._running[ref])
        if not ended:
            self._end_hung()

    def _deadline(self, worker: _Worker) -> float:
        if worker.ready is not None:
            return worker.since + deaths.START_SECONDS
        call = worker.calls[0]
        return worker.since + deaths.allowed_seconds(self._slowest.get(call.kind), call.deaths)

    def _end_hung(self) -> None:
        now = time.monotonic()
        hung = [w for w in self._workers if (w.calls or w.ready is not None) and self._deadline(w) <= now]
        for worker in hung:
            reason = deaths.hung(now - worker.since)
            if worker.ready is None:
                self._died(worker, reason, worker.calls[0])
            else:
                worker.at_start += 1
                self._replace(worker, reason)

    def _started(self, worker: _Worker) -> None:
        try:
            ray.get(worker.ready)
        except deaths.DEATHS as e:
            worker.at_start += 1
            self._replace(worker, deaths.reason_of(e))
        else:
            worker.ready, worker.at_start = None, 0

    def _ended(self, call: Call, worker: _Worker | None) -> None:
        try:
            result = ray.get(call.refs[0])
        except deaths.LOST as e:  # what it needed: the worker lives
            blamed = call.before if call.is_task else call
            if blamed is None:
                raise
            self._take(call, worker)
            self._blame(blamed, deaths.reason_of(e))
        except deaths.DEATHS as e:
            if worker is None:
                raise
            self._died(worker, deaths.reason_of(e))
        except OSError as e:  # Ray's error is one of the kind that it tells of
            if call.is_task or not deaths.is_unanswered(e) or call.unanswered == deaths.UNANSWERED:
                raise
            call.unanswered += 1
            self._take(call, worker)
            self._again.append(call)
        else:
            self._finish(call, worker, result)

    def _take(self, call: Call, worker: _Worker | None) -> None:
        """A call that runs no longer."""
        del self._running[call.refs[0]]
        if worker is not None:
            worker.calls.remove(call)
            worker.since = time.monotonic()

    def _finish(self, call: Call, worker: _Worker | None, result: Any) -> None:
        if worker is not None:
            seconds = time.monotonic() - worker.since
            self._slowest[call.kind] = max(seconds, self._slowest.get(call.kind, 0.0))
            worker.deaths = 0
        self._take(call, worker)
        self._done.append((call, result))

    def _died(self, worker: _Worker, reason: str, guilty: Call | None = None) -> None:
        """Blame the first call that is not done; those behind it are innocent.

        ``guilty``: the one that hung.
        """
        for call in list(worker.calls):
            if call is not guilty and self._is_done(call):
                self._finish(call, worker, ray.get(call.refs[0]))
        calls, worker.calls = list(worker.calls), deque()
        for call in calls:
            del self._running[call.refs[0]]
        self._again.extend(calls[1:])
        if calls:
            self._blame(calls[0], reason)
        self._replace(worker, reason)

    def _is_done(self, call: Call) -> bool:
        """Whether a call of a process that died has a result."""
        try:
            ready, _ = ray.wait([call.refs[0]], timeout=0)
            ray.get(ready)
        except (*deaths.LOST, *deaths.DEATHS, OSError):
            return False
        return bool(ready)

    def _blame(self, call: Call, reason: str) -> None:
        call.deaths += 1
        if call.deaths < call.most:
            self._again.appendleft(call)
        else:
            self._done.append((call, Died(reason)))

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Start another process for a worker, if that still makes sense."""
        ray.kill(worker.actor)  # where it hangs, or only cannot be reached
        worker.deaths += 1
        if worker.deaths < deaths.IN_A_ROW and worker.at_start < deaths.AT_START:
            worker.actor, worker.ready = self._begin()
            worker.since = time.monotonic()
            return
        self._workers.remove(worker)
        self._places -= 1
        if not self._workers:
            how = "before it took any work" if worker.at_start else "without a result between"
            raise WorkersError(
                f"got a worker whose process died {worker.deaths} times in a row {how} ({reason}); expected one that "
                "stays alive; see whether the network and the explainers run on one image (cxr-ray verdict), or use "
                "fewer workers where memory is short (--set resources.workers=1); then --resume goes on."
            )

    def restart(self, make: Callable[[], Any], allocation: Allocation) -> None:
        """End the workers, which have no call; those that are started from now on are of another allocation."""
        self.close()
        self._make, self._allocation, self._places = make, allocation, allocation.workers
        self._ahead = AHEAD if allocation.worker_gpus else 1
        self._slowest.clear()

    def close(self) -> None:
        """End the workers: others can have their CPUs and GPUs."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()


def _nothing(worker: Any) -> None:
    """In a worker: it is ready."""
