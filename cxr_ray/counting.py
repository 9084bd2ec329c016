"""How far a long work is, told to whoever shows it: a command's progress, or nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol

_TOLD: ContextVar[Callable[[int], None] | None] = ContextVar("told", default=None)


@contextlib.contextmanager
def telling(told: Callable[[int], None]) -> Iterator[None]:
    """Inside, ``told`` is called with a number of files or images that are done, in the thread that began."""
    token = _TOLD.set(told)
    try:
        yield
    finally:
        _TOLD.reset(token)


class Counter(Protocol):
    """What is told how much there is to do, and how much of it is done."""

    def expect(self, n: int) -> None:
        """So much more is to do."""

    def advance(self, n: int = 1) -> None:
        """So much more is done."""


class _Nobody:
    def expect(self, n: int) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass


NOBODY: Counter = _Nobody()


def done(n: int = 1) -> None:
    """So many more are done; none is not told, since a rate begins with the first."""
    if n and (told := _TOLD.get()) is not None:
        told(n)
