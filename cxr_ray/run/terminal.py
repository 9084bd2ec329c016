"""Everything that a run prints: lines, mistakes and progress. What it ends with is in ``outcome``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import NamedTuple

from cxr_ray import quiet
from cxr_ray.credentials import redacted

PROGRESS_SECONDS = 5.0  # between two lines


def say(text: str = "") -> None:
    """One line on the terminal, at once."""
    print(redacted(text), flush=True)


def complain(text: str) -> None:
    """One line on stderr for each line of ``text``."""
    for line in text.splitlines():
        quiet.complain(f"cxr_ray: {line}")


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


def watch(computed: Generator[ShardDone, None, None], n_shards: int) -> None:
    """Say how far the shards are. Closes them when interrupted: Ray Data waits for a Ray that has ended."""
    done, first, last = 0, 0.0, 0.0
    told: set[str] = set()
    with contextlib.closing(computed):
        for n, (images, backend, notes, _) in enumerate(computed, start=1):
            now = time.monotonic()
            if n == 1:
                say(f"  forward passes: {backend}")
                first = last = now  # what came before is mostly start-up
            else:
                done += images
            for note in dict.fromkeys(notes):
                if note not in told:
                    say(f"  {note}")
            told.update(notes)
            if n == n_shards:
                say(f"  {n} of {n_shards} shards")
            elif now - last > PROGRESS_SECONDS:
                last = now
                left = (now - first) / (n - 1) * (n_shards - n)
                say(f"  {n} of {n_shards} shards, {done / (now - first):.1f} images/s, {duration(left)} left")


def print_summary(out: str) -> None:
    """The short table that ends a run."""
    from cxr_ray.run.outcome import summary_lines  # analysis, which imports scipy.stats: a second

    for line in summary_lines(out):
        say(line)
