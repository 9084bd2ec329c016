"""Ray's start in the background, while the images are read."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from cxr_ray.errors import ClusterError
from cxr_ray.run import progress, ray_wait, signals

if TYPE_CHECKING:
    from cxr_ray.run.ray_start import RayStart

LOOK_SECONDS = 0.5  # between two looks at what Ray waits for
GRACE_SECONDS = 5.0  # for a start to end by itself, once it took too long or nobody needs it


class RayAhead:
    """Ray's start in a thread of its own. Ray is imported there, so that nobody waits for that either.

    The thread stays until Ray is ended: on Linux, Ray's processes end with the thread that started them. A start that
    does not come back, deep in Ray, is left to its thread, for which no process waits.
    """

    def __init__(self) -> None:
        """Takes nothing; nothing is started."""
        self._thread: threading.Thread | None = None
        self._starting: Future[RayStart] = Future()
        self._imported, self._over = threading.Event(), threading.Event()
        self._left = False

    def start(self) -> None:
        """Begin; once is enough."""
        if self._thread is None:
            self._starting, self._over = Future(), threading.Event()
            self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            started = _start(self._imported, self._over)
        except BaseException as e:  # for who waits
            self._starting.set_exception(e)
            return
        self._starting.set_result(started)
        self._over.wait()
        if self._left:
            started.end()

    def imported(self) -> None:
        """Begin, and wait until Ray is imported: of two threads that import it, one may get half a module."""
        self.start()
        self._imported.wait()

    def started(self) -> bool:
        """Wait for Ray, and say what it waits for. Whether it was started on this machine, and is no cluster.

        Raises:
            ClusterError: the cluster does not answer, or Ray does not start, or takes too long.
        """
        self.imported()
        late = 0.0
        while not wait([self._starting], LOOK_SECONDS).done:
            progress.hint(ray_wait.told())
            late = late + LOOK_SECONDS if ray_wait.is_over() else 0.0
            if late > GRACE_SECONDS:
                from cxr_ray.run import ray_start

                self._left = True
                raise ray_start.too_slow()
        started = self._starting.result()
        signals.listen()  # Ray put a handler of its own in place
        return started.local

    def close(self) -> None:
        """End Ray, if it was begun here; a start that is under way ends first."""
        if self._thread is None:
            return
        if not self._starting.done():
            self._over.set()
            ray_wait.give_up()
        self._left = self._left or not wait([self._starting], GRACE_SECONDS).done
        if not self._left and self._starting.exception() is None:
            self._starting.result().end()
        self._over.set()
        if not self._left:
            self._thread.join()
        self._thread = None
        signals.again()


def _start(imported: threading.Event, over: threading.Event) -> RayStart:
    try:
        import ray.data
        import ray.tune  # noqa: F401

        from cxr_ray.run import ray_start
    finally:
        imported.set()
    if over.is_set():
        raise ClusterError("Ray is not needed any longer.")
    return ray_start.start_ray()
