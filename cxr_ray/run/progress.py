"""How far a command is: a line a stage with done, total, rate and time left; on a terminal in place, else now and then.

A command shows progress inside ``shown``, its stages inside ``stage``. While a stage says nothing of itself, a thread
does: no silence lasts longer than ``SILENCE``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxr_ray.run import terminal

SILENCE = 8.0  # seconds
SHORT = 2.0  # seconds; a stage that took less has no last line
DRAWS = 4  # a second, on a terminal


@dataclass
class Stage:
    """One stage: how much of it is done.

    Attributes:
        name: of the stage.
        total: what there is to do; None: not known.
        unit: of what is done, in the plural.
        rate: of what a rate is told, in the plural; without it, of what is done.
        hint: what happens before the first is done.
        lines: what stands below, on a terminal.
        bound: the time left is the most that it can be.
    """

    name: str
    total: int | None = None
    unit: str = ""
    rate: str = ""
    hint: str = ""
    lines: Sequence[str] = ()
    done: int = 0
    bound: bool = False
    work: float = 0.0  # since the first was done
    ended: bool = False
    began: float = field(default_factory=lambda: time.monotonic())
    first: tuple[float, int] | None = None  # when something was done first, and how much: before it is start-up

    def expect(self, n: int) -> None:
        """So much more is to do."""
        self.total = (self.total or 0) + n

    def advance(self, n: int = 1, work: float | None = None, lines: Sequence[str] = ()) -> None:
        """So much more is done. ``work``: how much of what the rate is told of; ``lines``: what stands below now."""
        self.done += n
        self.lines = lines
        if self.first is None:
            self.first = time.monotonic(), self.done
        else:
            self.work += n if work is None else work
        _display.tell(self)

    def told(self) -> str:
        """How far it is, in words."""
        now = time.monotonic()
        if not self.done:
            before = f" ({self.hint})" if self.hint else ""
            of = f"0 of {self.total} {self.unit}, " if self.total else ""
            return f"{self.name}: {of}{terminal.duration(now - self.began)} so far{before}"
        text = f"{self.name}: {self.done} of {self.total} {self.unit}"
        if self.ended or (self.total and self.done >= self.total):
            return f"{text} in {terminal.duration(now - self.began)}"
        moment, n = self.first or (now, self.done)
        if self.done > n and now > moment:
            text += f", {self.work / (now - moment):.1f} {self.rate or self.unit}/s"
            left = (now - moment) / (self.done - n) * ((self.total or 0) - self.done)
            text += f", {'at most ' * self.bound}{terminal.duration(left)} left"
        return text


class _Lines:
    """Plain lines, where there is no terminal, and the thread that speaks up when nothing else does."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = 0.0

    def open(self) -> None:
        """Begin to watch for silence."""
        self._ended.clear()
        terminal.heard()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._ended.wait(max(0.1, SILENCE - (time.monotonic() - terminal.last_line()))):
            if time.monotonic() - terminal.last_line() >= SILENCE and self.stages:
                terminal.say(f"  {self.stages[-1].told()}")

    def begin(self, stage: Stage) -> None:
        """A stage begins."""
        self._told = stage.began
        self.stages.append(stage)

    def tell(self, stage: Stage) -> None:
        """Something of a stage was done."""
        now = time.monotonic()
        if now - self._told > terminal.PROGRESS_SECONDS and stage.done != stage.total:
            self._told = now
            terminal.say(f"  {stage.told()}")
            for line in stage.lines:
                terminal.say(f"  {line}")

    def end(self, stage: Stage) -> None:
        """A stage is over: its last line, if it says how much was done."""
        self.stages.remove(stage)
        stage.ended = True
        if stage.total and stage.done and time.monotonic() - stage.began >= SHORT:
            terminal.say(f"  {stage.told()}")


class _InPlace(_Lines):
    """The stage that runs, drawn in place below what is said; what is done stays as a line."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console  # not where there is no terminal
        from rich.spinner import Spinner

        self.console = Console(file=sys.stdout, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._spinner = Spinner("dots")
        self._live: Any = None

    def open(self) -> None:
        """Begin to draw."""
        from rich.live import Live

        self._live = Live(
            get_renderable=self.drawn,
            console=self.console,
            refresh_per_second=DRAWS,
            transient=True,
            redirect_stdout=True,
            redirect_stderr=False,
        )
        terminal.write_above(lambda text: self.console.print(text, soft_wrap=True))
        self._live.start()

    def close(self) -> None:
        """Leave nothing of what was drawn."""
        self._live.stop()
        terminal.write_above(None)

    def tell(self, stage: Stage) -> None:
        """Nothing to do: it is drawn several times a second."""

    def drawn(self) -> Any:
        """What is drawn: a bar and how far it is, for the innermost stage."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self.stages:
            return Text("")
        stage = self.stages[-1]
        row = Table.grid(padding=(0, 1))
        bar = [ProgressBar(stage.total, stage.done, width=24)] if stage.total and stage.done else []
        row.add_row(self._spinner, *bar, Text(stage.told(), overflow="ellipsis"))
        below = [Text(f"  {line}", overflow="ellipsis", no_wrap=True) for line in stage.lines]
        return Group(row, *below)


class _Nothing(_Lines):
    """Outside a command: stages say how far they are, and no thread speaks up."""

    def open(self) -> None:
        """Nothing is watched."""


_display: _Lines = _Nothing()


def in_place() -> bool:
    """Whether stdout is a terminal on which lines can be drawn over."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def shown(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the stages of a command. ``name``: what it does where no stage says more; ``quiet``: show nothing."""
    global _display
    before = _display
    with terminal.quieted(quiet):
        _display = _Nothing() if quiet else _InPlace() if in_place() else _Lines()
        _display.begin(Stage(name))
        _display.open()
        try:
            yield
        finally:
            _display.close()
            _display = before


def concluded(name: str, lines: Iterable[str], *, quiet: bool = False) -> int:
    """Show a command until its last line is made, then print these lines; exit code 0."""
    with shown(name, quiet=quiet):
        made = list(lines)
    for line in made:
        terminal.conclude(line)
    return 0


@contextlib.contextmanager
def stage(name: str, total: int | None = None, unit: str = "", rate: str = "", hint: str = "") -> Iterator[Stage]:
    """A stage of what is shown; see ``Stage``."""
    begun, display = Stage(name, total, unit, rate, hint), _display
    display.begin(begun)
    try:
        yield begun
    finally:
        display.end(begun)


def hint(text: str) -> None:
    """What the innermost stage waits for, until something of it is done."""
    if _display.stages:
        _display.stages[-1].hint = text
