"""Files of an object store, read by all machines of a cluster where they are many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cxr_ray.counting import done
from cxr_ray.data.entries import Source, StampedSource
from cxr_ray.data.loading import AtOnce, in_threads, one_line
from cxr_ray.errors import ClusterError

if TYPE_CHECKING:
    from cxr_ray.run.ahead import RayAhead

LEAST = 4096  # files at a time: fewer are read before Ray answers
PART = 128  # of them a task
RETRIES = 3  # of a task whose machine is lost


def reader(source: Source, ahead: RayAhead | None) -> AtOnce:
    """How many files of a source are read.

    By Ray tasks where there are at least LEAST, each a file of its own behind a URI, and the cluster has several
    machines; else in threads here. A path would not say whether every machine sees it.
    """
    places = [source.where, getattr(source, "images", None) or source.where]
    if ahead is None or not isinstance(source, StampedSource) or not all("://" in place for place in places):
        return in_threads

    def read(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if len(items) < LEAST or ahead.started() or not _several_machines():
            return in_threads(function, items)
        return in_tasks(function, items)

    return read


def _several_machines() -> bool:
    import ray  # takes seconds

    return sum(node["Alive"] for node in ray.nodes()) > 1


def in_tasks(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The function of each item, in order, in tasks of Ray; each is counted as done.

    Raises:
        ClusterError: Ray lost a task as often as it tried it.
        Exception: what the function raised.
    """
    import ray

    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(in_threads)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: deque[Any] = deque()
    results: list[Any] = []

    def finished() -> Iterator[Any]:
        try:
            part = ray.get(running.popleft())
        except ray.exceptions.RayTaskError as e:
            raise e.cause from None
        except ray.exceptions.RayError as e:
            raise ClusterError(
                f"got no answer of a task that reads files ({one_line(e)}); expected the machines of the cluster to "
                "read them; see why they fail, or run on one machine."
            ) from None
        done(len(part))
        yield from part

    for start in range(0, len(items), PART):
        if len(running) == most:
            results += finished()
        running.append(task.remote(function, items[start : start + PART]))
    while running:
        results += finished()
    return results
