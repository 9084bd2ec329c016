"""A watchdog of training: where nothing goes on, the process of a trial ends, and a note says after how long.

Ray tells of a process that ended, never of one that hangs. Signs of life are the steps of optimizers and the forward
passes of the network. A call in C that lets no other thread run is ended by Python's own timer, without a note.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

TICK_SECONDS = 1.0  # between two looks


class Watchdog:
    """Ends this process when too much time passes between two signs of life.

    Time is counted in looks, so that a machine which slept for a night, and goes on, has not hung. A process that was
    stopped alone (SIGSTOP) for longer than it may is ended as it goes on, by Python's timer, and tried again.
    """

    def __init__(self, allowed: Callable[[float | None], float], note: Callable[[float], None]):
        """Nothing is watched yet.

        Args:
            allowed: seconds that may pass, given the most that passed so far; None: before the first epoch is done.
            note: called with the seconds that passed, before the process ends.
        """
        self._allowed, self._note = allowed, note
        self._signs, self._resting, self._measured = 0, False, False
        self._over = threading.Event()

    def sign(self, *_: object) -> None:
        """Something went on."""
        self._signs += 1

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """While another process decides when it goes on; what passed so far is the measure from now on."""
        self._measured, self._resting = True, True
        try:
            yield
        finally:
            self._resting = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from a thread."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        _end_after(self._allowed(None))
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen, passed, most = -1, 0.0, 0.0
        while True:
            if self._resting or self._signs != seen:
                seen, passed, most = self._signs, 0.0, max(passed, most)
            limit = self._allowed(most if self._measured else None)
            _end_after(limit)
            if passed >= limit:
                self._note(passed)
                os._exit(1)
            if self._over.wait(TICK_SECONDS):
                return
            passed += TICK_SECONDS


def _end_after(seconds: float) -> None:
    """Have Python's timer in C end the process, unless this is called again before: where no thread gets a turn."""
    faulthandler.dump_traceback_later(seconds + 2 * TICK_SECONDS, exit=True, file=2)  # stderr, whatever sys has


@contextlib.contextmanager
def watched(model: nn.Module, dog: Watchdog) -> Iterator[None]:
    """Watch the training of a network: each forward pass and each step is a sign of life."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    hooks = model.register_forward_pre_hook(dog.sign), register_optimizer_step_post_hook(dog.sign)
    try:
        with dog.watching():
            yield
    finally:
        for hook in hooks:
            hook.remove()
