"""Sweeps that stop at a random write and go on: the tables are those of an undisturbed run, and nothing is left behind.

Without Ray, in seconds. ``benchmarks.chaos`` kills the processes of real sweeps, for hours.
"""

import contextlib
import errno
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest

from benchmarks import damage
from benchmarks.chaos import differences
from benchmarks.damage import FINISHED, KINDS, NEW
from cxr_ray.errors import CxrRayError
from cxr_ray.report import __main__ as report
from cxr_ray.results import open_run
from cxr_ray.run import lock
from cxr_ray.schemas import TABLES
from cxr_ray.storage import Store

SEEDS, FAULTS, WRITES = 4, 3, 40
PICKLES = ("tuner.pkl", "tune/tuner.pkl", "tune/searcher-state.pkl", ".work/tune/trainable.pkl", "checkpoints/x.pkl")


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs in every state."""
    return damage.prepared(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
def test_a_sweep_that_stops_at_any_write_goes_on_to_the_same_tables(runs, tmp_path):
    shutil.copytree(runs.folder / "maps", tmp_path / "maps")
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


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def places(runs: damage.Runs, state: str) -> list[list[Path]]:
    """The files of a run, those of a kind together and all tables together, and places where pickles lay once."""
    run, kinds = runs.run(state), {name: pattern for name, pattern in KINDS[state].items() if name[:5] != "table"}
    found = [sorted(path.relative_to(run) for path in run.glob(pattern)) for pattern in kinds.values()]
    known = {path for kind in found for path in kind}
    others = [path for path in (p.relative_to(run) for p in run.rglob("*") if p.is_file()) if path not in known]
    strays = [] if state == NEW else [Path(p) for p in PICKLES]
    return [kind for kind in (*found, others, strays) if kind]


@pytest.mark.slow
@pytest.mark.parametrize("state", KINDS)
def test_a_hostile_pickle_at_any_place_of_a_run_runs_nothing(runs, state, tmp_path):
    """Whether the run is opened, shown or resumed, it ends well or in a sentence."""
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Hostile(mark)))
    mark.unlink()  # that is what it would do
    for n, paths in enumerate(places(runs, state)):
        out = tmp_path / str(n) / "run"
        shutil.copytree(runs.run(state).parent, out.parent, copy_function=os.link)
        for path in paths:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).unlink(missing_ok=True)
            (out / path).write_bytes(pickle.dumps(Hostile(mark)))
        if state == FINISHED:
            for name in TABLES:
                with contextlib.suppress(CxrRayError):
                    open_run(out).arrow(name)
            if all(path.suffix in (".json", ".yaml") for path in paths):  # other files the page has by open_run, or not
                assert damage._said(report.main, str(out))[0] in (0, 1, 2), paths
        if state == NEW:
            out.rmdir()
        code, lines = damage.resumed(runs, out, state)
        assert code == 0 or not damage._told(code, lines), (paths, lines)
        assert not mark.exists(), paths
        shutil.rmtree(out.parent)
