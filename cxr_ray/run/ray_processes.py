"""The processes that Ray starts on this machine: one that ends while Ray starts is told at once, and none is left.

Ray itself waits half a minute, for a process that is gone and for one that is only slow, and leaves the others running.
Here a slow one is waited for as long as ``ray_wait`` says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import node, services

from cxr_ray.errors import first_line
from cxr_ray.run import ray_wait

NEEDED = ("gcs_server", "raylet")
SLICE_SECONDS = 0.5  # between two looks
REPLACED: tuple[tuple[Any, str], ...] = (
    (services, "start_ray_process"),
    (services, "get_node"),
    (node, "wait_for_persisted_port"),
)


class EndedError(Exception):
    """A process that Ray needs ended while Ray started."""


class SlowError(Exception):
    """They live, and Ray did not start in the time that it has."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """While Ray starts: raise EndedError where a process that it needs has ended; where it fails, kill the others.

    Raises SlowError where they take longer than they may. Ray's own functions that start and await processes are
    replaced for as long. In a version without them, Ray's own limits hold.
    """
    if not all(hasattr(module, name) for module, name in REPLACED):
        yield
        return
    before = [getattr(module, name) for module, name in REPLACED]
    processes = _Processes(*before)
    for (module, name), other in zip(REPLACED, (processes.start, processes.node, processes.port), strict=True):
        setattr(module, name, other)
    try:
        yield
    except BaseException:
        processes.kill()
        raise
    finally:
        for (module, name), own in zip(REPLACED, before, strict=True):
            setattr(module, name, own)


class _Processes:
    """Those that Ray has started, and its functions of REPLACED as they look at them."""

    def __init__(self, start: Callable[..., Any], node: Callable[..., Any], port: Callable[..., Any]):
        self._start, self._node, self._port = start, node, port
        self._started: list[tuple[str, Any]] = []

    def start(self, command: Any, process_type: str, *arguments: Any, **options: Any) -> Any:
        info = self._start(command, process_type, *arguments, **options)
        self._started.append((process_type, info.process))
        return info

    def node(self, *arguments: Any, **options: Any) -> Any:
        return self._awaited("Ray's raylet, which runs", lambda: self._node(*arguments, **options))

    def port(self, *arguments: Any, **options: Any) -> Any:
        options["timeout_ms"] = int(1000 * SLICE_SECONDS)
        return self._awaited("Ray's gcs_server, which runs", lambda: self._port(*arguments, **options))

    def _awaited(self, what: str, ask: Callable[[], Any]) -> Any:
        """What ``ask`` returns, once it raises nothing."""
        ray_wait.waits_for(what)
        while True:
            self._check()
            try:
                return ask()
            except Exception as e:
                if ray_wait.is_over():
                    raise SlowError(f"{what}, did not answer: {first_line(e)}") from None
                time.sleep(SLICE_SECONDS / 5)

    def _check(self) -> None:
        if ray_wait.is_given_up():
            raise EndedError("its start was given up")
        for name, process in self._started:
            if name in NEEDED and process.poll() is not None:
                raise EndedError(f"its process {name} ended at once, with exit code {process.returncode}")

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            ray.shutdown()
        for _, process in self._started:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
