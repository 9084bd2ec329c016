"""The workers of a run: actors that live as long as it does, so that models and inference backends are loaded once.

Ray Data starts its actors anew for each execution, which takes as long as a small pass. These are started once, as many
as there is work for, and serve every pass: validation, maps, rounds of sequential verdicts, scoring. A worker that is
killed is started again by Ray, with its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from cxr_ray.run.cluster import Allocation

AHEAD = 2  # calls that a worker on a GPU has at a time: it goes on at once with the next
RETRIES = 10  # of a call whose worker died: one that kills every worker must end the run


class _ExplainProcess:
    """The process of one worker."""

    def __init__(self, make: Callable[[], Any]):
        self.worker = make()

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.worker, *arguments)


@dataclass(frozen=True)
class Call:
    """A call of a worker, or (no actor) a task, that runs. Its first result says when it is done."""

    refs: tuple[Any, ...]
    actor: Any = None

    @property
    def is_task(self) -> bool:
        """Whether it is a task outside the workers."""
        return self.actor is None


class WorkerPool:
    """Workers, and the calls that run.

    Attributes:
        running: calls by their first result.
    """

    def __init__(self, make: Callable[[], Any], allocation: Allocation):
        """Takes how a worker is made, in its process, and what it may use. Nothing is started."""
        self.running: dict[Any, Call] = {}
        self._make, self._allocation = make, allocation
        self._ahead = AHEAD if allocation.worker_gpus else 1
        self._calls: dict[Any, int] = {}  # by actor
        self._last: dict[Any, str] = {}  # topic of an actor's last call

    def start(self, n: int) -> None:
        """Have workers for ``n`` calls at a time, at most those that the allocation has; does not wait for them."""
        allocation = self._allocation
        kind = ray.remote(_ExplainProcess).options(
            num_cpus=allocation.worker_cpus,
            num_gpus=allocation.worker_gpus or None,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        while len(self._calls) < min(n, allocation.workers):
            self._calls[kind.remote(self._make)] = 0

    @property
    def free_cpus(self) -> float:
        """CPUs of the machines that no worker holds, at least half of one."""
        held = len(self._calls) * self._allocation.worker_cpus
        return max(0.5, float(ray.cluster_resources().get("CPU", 0)) - held)

    @property
    def is_free(self) -> bool:
        """Whether a worker can take a call."""
        return any(calls < self._ahead for calls in self._calls.values())

    def submit(self, function: Callable[..., Any], *arguments: Any, num_returns: int = 1, topic: str = "") -> Call:
        """Call ``function(worker, *arguments)`` in the worker with the fewest calls, best the last one of a topic."""
        actor = min(self._calls, key=lambda a: (self._calls[a], self._last.get(a) != topic))
        refs = actor.apply.options(num_returns=num_returns).remote(function, *arguments)
        call = Call(tuple(refs) if num_returns > 1 else (refs,), actor)
        self._calls[actor] += 1
        self._last[actor] = topic
        self.running[call.refs[0]] = call
        return call

    def add(self, ref: Any) -> None:
        """Wait for a task as well."""
        self.running[ref] = Call((ref,))

    def wait(self) -> tuple[Call, Any]:
        """Wait until one of the running calls is done; it and its first result.

        Raises:
            ray.exceptions.RayError: it failed.
        """
        (done,), _ = ray.wait(list(self.running))
        call = self.running.pop(done)
        if not call.is_task:
            self._calls[call.actor] -= 1
        return call, ray.get(done)

    def close(self) -> None:
        """End the workers: others can have their CPUs and GPUs."""
        for actor in self._calls:
            ray.kill(actor)
        self._calls.clear()
