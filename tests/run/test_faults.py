"""Sweeps that stop at a random write and go on: the tables are those of an undisturbed run, and nothing is left behind.

Without Ray, in seconds. ``benchmarks.chaos`` kills the processes of real sweeps, for hours.
"""

import errno
import os
import random
from pathlib import Path

import pytest

from benchmarks import damage
from benchmarks.chaos import differences
from benchmarks.damage import FINISHED
from cxr_ray.run import lock
from cxr_ray.storage import Store

SEEDS, FAULTS, WRITES = 6, 3, 40


class _KilledError(BaseException):
    """Ends the driver as SIGKILL does: nobody catches it."""


def disturbed(at: int, fault: BaseException):
    """``Store.write`` that fails at its ``at``-th file: half of that is there, under a temporary name."""
    write, done = Store.write, []

    def fails(self: Store, data: bytes, *parts: str) -> None:
        if parts != (lock.NAME,):  # which another thread writes
            done.append(parts)
        if parts != (lock.NAME,) and len(done) == at:
            folder = Path(self.path(*parts)).parent
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".{parts[-1]}.0123abcd.tmp").write_bytes(data[: len(data) // 2])
            raise fault
        write(self, data, *parts)

    return damage.replaced((Store, "write", fails))


@pytest.mark.slow
def test_a_sweep_that_stops_at_any_write_goes_on_to_the_same_tables(tmp_path):
    runs = damage.prepared(tmp_path)
    ended = []
    for seed in range(SEEDS):
        rng, out = random.Random(seed), tmp_path / str(seed)
        for _ in range(FAULTS):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fault = rng.choice([full, KeyboardInterrupt(), _KilledError()])
            with disturbed(rng.randrange(2, WRITES), fault):
                try:
                    code, lines = damage.resumed(runs, out)
                except _KilledError:
                    code, lines = -9, ["killed"]
            ended.append(code)
            assert code in (0, 1, 130, -9), (seed, lines)
            assert bool(lines) == (code != 0), (seed, lines)
        assert damage.resumed(runs, out)[0] == 0
        assert not differences(runs.run(FINISHED), out), seed
        assert not list(out.rglob(".*")), seed
    assert {1, 130, -9} <= set(ended)
