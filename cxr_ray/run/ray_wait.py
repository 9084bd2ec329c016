"""What Ray's start waits for, and how long at most: said by the thread that starts it, for the one that waits."""

from __future__ import annotations

import math
import time

from cxr_ray.run import terminal


class _State:
    """Of this process: Ray is one, too."""

    what = ""
    seconds = math.inf
    until = math.inf
    given_up = False


def begin(what: str, seconds: float) -> None:
    """A start begins. ``seconds``: after which it counts as failed."""
    _State.what, _State.seconds, _State.given_up = what, seconds, False
    _State.until = time.monotonic() + seconds


def waits_for(what: str) -> None:
    """The start waits for something else now, until the same moment."""
    _State.what = what


def end() -> None:
    """Nothing is waited for."""
    _State.what, _State.until = "", math.inf


def give_up() -> None:
    """Nobody needs the start any longer."""
    _State.given_up = True


def is_given_up() -> bool:
    """Whether nobody needs it."""
    return _State.given_up


def is_over() -> bool:
    """Whether it took longer than it may."""
    return time.monotonic() > _State.until


def what() -> str:
    """What is waited for; empty: nothing yet."""
    return _State.what


def told() -> str:
    """The same with its end, for a line."""
    if not _State.what:
        return "imports Ray"
    return f"waits for {_State.what}; gives up after {terminal.duration(_State.seconds)}"
