"""What killed a worker's process, and how long a call may take before its worker counts as hung.

A process that ends in C (abort, segmentation fault, out of memory) raises nothing: Ray tells that it is gone. A worker
that hangs is killed here, and counts the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray import exceptions

DEATHS = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
)  # which a call meets when its process or machine is gone
LOST = (exceptions.ObjectLostError,)  # when another machine is gone, which held what the call needs
MOST = 3  # deaths of one call, after which it is not tried again
ALONE = 2  # of a call with one image: a second try, since the machine may be at fault
IN_A_ROW = 10  # of one worker's processes without a result between: it is not started again
UNANSWERED = 2  # new tries of a call in which a store did not answer
AT_START = 3  # of one worker's processes before they took a call: the same

START_SECONDS = 600.0  # for a process, until it has made its worker: it waits for its place, and loads torch
FIRST_SECONDS = 1800.0  # for the first call of a kind, which may compile
LEAST_SECONDS = 300.0  # for any other
MARGIN = 10.0  # times what the slowest call of its kind took


@dataclass(frozen=True)
class Died:
    """The result of a call that was given up. ``reason``: what ended the processes that tried it."""

    reason: str


def is_unanswered(error: OSError) -> bool:
    """Whether it is of a store that did not answer, whose errors have no number: those of a disk have one.

    >>> is_unanswered(OSError("AWS Error SLOW_DOWN during GetObject")), is_unanswered(OSError(28, "No space left"))
    (True, False)
    """
    return getattr(error, "cause", error).errno is None


def allowed_seconds(slowest: float | None, deaths: int = 0) -> float:
    """How long a call may take before its worker counts as hung; twice as long at each new try.

    Args:
        slowest: seconds of the slowest call of its kind so far; None: none is done.
        deaths: of the call so far.

    >>> allowed_seconds(None), allowed_seconds(0.1), allowed_seconds(60.0), allowed_seconds(60.0, 2)
    (1800.0, 300.0, 600.0, 2400.0)
    """
    return (FIRST_SECONDS if slowest is None else max(LEAST_SECONDS, MARGIN * slowest)) * 2**deaths


def reason_of(error: Exception) -> str:
    """How a process ended, as far as Ray knows it, as the end of a sentence.

    >>> reason_of(exceptions.WorkerCrashedError())
    'it crashed (abort, segmentation fault) or was killed (out of memory)'
    """
    text = str(error)
    if "creation task" in text:
        return next((line.strip() for line in reversed(text.splitlines()) if any(map(str.isalpha, line))), "")
    if isinstance(error, exceptions.OutOfMemoryError) or "running low on memory" in text:
        return "it was killed, since its machine ran out of memory"
    if isinstance(error, exceptions.NodeDiedError) or "node has died" in text or "node was terminated" in text:
        return "its machine ended"
    if isinstance(error, exceptions.ObjectLostError):
        return "what it computed was lost with its machine"
    return "it crashed (abort, segmentation fault) or was killed (out of memory)"


def hung(seconds: float) -> str:
    """The reason where a worker was killed because it did not go on."""
    return f"it made no progress for {seconds:.0f} seconds and was ended"
