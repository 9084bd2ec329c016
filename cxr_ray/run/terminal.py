"""What a run prints: lines, mistakes and its shards. How far it is, is in ``progress``; how it ends, in ``outcome``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from cxr_ray import quiet
from cxr_ray.credentials import redacted

PROGRESS_SECONDS = 5.0  # between two lines


class _State:
    """Of this process's terminal."""

    quiet = False
    last = 0.0  # when the last line was written
    above: Callable[[str], None] | None = None  # writes above what is drawn in place


def say(text: str = "") -> None:
    """One line on the terminal, at once; nothing while it is quiet."""
    if not _State.quiet:
        conclude(text)


def conclude(text: str = "") -> None:
    """One line on the terminal, at once, also while it is quiet."""
    heard()
    if _State.above is not None:
        _State.above(redacted(text))
    else:
        print(redacted(text), flush=True)


def complain(text: str) -> None:
    """One line on stderr for each line of ``text``."""
    for line in text.splitlines():
        if _State.above is not None and sys.stderr.isatty():
            _State.above(redacted(f"cxr_ray: {line}"))
        else:
            quiet.complain(f"cxr_ray: {line}")


def heard() -> None:
    """A line was written."""
    _State.last = time.monotonic()


def last_line() -> float:
    """When the last line was written, by ``time.monotonic``."""
    return _State.last


def write_above(write: Callable[[str], None] | None) -> None:
    """Have lines written by ``write``, above what is drawn in place; None: nothing is drawn."""
    _State.above = write


@contextlib.contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """Inside, if ``quiet``, nothing is said but what concludes and what is wrong."""
    before, _State.quiet = _State.quiet, quiet or _State.quiet
    try:
        yield
    finally:
        _State.quiet = before


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(59), duration(600), duration(7200)
    ('59 seconds', '10 minutes', '2.0 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class ShardDone(NamedTuple):
    """What is told of a shard that was computed: its images, its worker's backend, what else to know, and its name."""

    images: int
    backend: str
    notes: tuple[str, ...] = ()
    name: str = ""


def watch(computed: Generator[ShardDone, None, None], n_shards: int, name: str) -> None:
    """Say how far the shards are. Closes them when interrupted: Ray Data waits for a Ray that has ended."""
    from cxr_ray.run.progress import stage

    hint = "workers start, and choose the fastest form of the network"
    told: set[str] = set()
    with contextlib.closing(computed), stage(name, n_shards, "shards", "images", hint) as progress:
        for n, (images, backend, notes, _) in enumerate(computed, start=1):
            if n == 1:
                say(f"  forward passes: {backend}")
            for note in dict.fromkeys(notes):
                if note not in told:
                    say(f"  {note}")
            told.update(notes)
            progress.advance(1, images)


def summary(out: str) -> list[str]:
    """What ends a run: its short table, the answer in words and one path; the last two alone while it is quiet."""
    from cxr_ray.run import outcome  # analysis, which imports scipy.stats: a second

    return list(outcome.answer_lines(out) if _State.quiet else outcome.summary_lines(out))
