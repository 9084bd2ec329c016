"""Ctrl-C and SIGTERM end a command with a sentence; the second one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

ENDS = (signal.SIGINT, signal.SIGTERM)
SECOND = b"cxr_ray: ended at once.\n"


Handler = Callable[[int, FrameType | None], NoReturn]

_received: list[int] = []


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C and at SIGTERM, once; a second signal ends the process.

    In a thread that is not the main one, which gets no signals, nothing changes. A signal that is ignored, as Ctrl-C is
    by what a script starts in the background, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {number: signal.getsignal(number) for number in ENDS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def listen() -> None:
    """Take the signals: again after Ray has started, whose own handlers print a trace of C++."""
    if threading.current_thread() is threading.main_thread():
        _take(_first)


def again() -> None:
    """Put the handlers in place again that Python has: a Ray that ends gives SIGTERM back to the system behind it."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _take(handler: Handler) -> None:
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def interrupt() -> None:
    """Interrupt the main thread from another one, also where it sleeps or waits."""
    number = signal.SIGTERM if signal.getsignal(signal.SIGTERM) is _first else signal.SIGINT
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def was_terminated() -> bool:
    """Whether it was SIGTERM that raised KeyboardInterrupt; not a class of its own, since Ray raises another one."""
    return signal.SIGTERM in _received


def _first(number: int, frame: FrameType | None) -> NoReturn:
    _take(_second)
    _received.append(number)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, SECOND)
    os._exit(128 + number)
