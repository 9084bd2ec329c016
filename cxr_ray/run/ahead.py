"""Ray's start in the background, while the images are read."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from cxr_ray.run import signals

if TYPE_CHECKING:
    from cxr_ray.run.ray_start import RayStart


class RayAhead:
    """Ray's start in a thread of its own. Ray is imported there, so that nobody waits for that either.

    The thread stays until Ray is ended: on Linux, Ray's processes end with the thread that started them.
    """

    def __init__(self) -> None:
        """Takes nothing; nothing is started."""
        self._thread: ThreadPoolExecutor | None = None
        self._starting: Future[RayStart] = Future()
        self._imported = threading.Event()

    def start(self) -> None:
        """Begin; once is enough."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
            self._starting = self._thread.submit(_start, self._imported)

    def imported(self) -> None:
        """Begin, and wait until Ray is imported: of two threads that import it, one may get half a module."""
        self.start()
        self._imported.wait()

    def started(self) -> bool:
        """Wait for Ray. Whether it was started on this machine, and is no cluster that was joined.

        Raises:
            ClusterError: the cluster does not answer, or Ray does not start.
        """
        self.start()
        started = self._starting.result()
        signals.listen()  # Ray put a handler of its own in place
        return started.local

    def close(self) -> None:
        """End Ray, if it was begun here. Waits for its start: half a start cannot be taken back."""
        if self._thread is None:
            return
        if self._starting.exception() is None:
            self._starting.result().end()
        self._thread.shutdown()
        self._thread = None


def _start(imported: threading.Event) -> RayStart:
    try:
        import ray.data
        import ray.tune  # noqa: F401

        from cxr_ray.run import ray_start
    finally:
        imported.set()
    return ray_start.start_ray()
