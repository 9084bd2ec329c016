"""Faults at random in every stage of a small sweep: a run that was disturbed and resumed must equal one that was not.

Workers, Ray's own processes and the driver are killed, interrupted or made to stand still, and the disk is filled
(where this user may mount a small one). Each fault waits for its stage to begin, and then for a random time. A run that
ended is resumed, on one worker or two. At the end its tables must hold the same rows as those of an undisturbed run,
values within 1e-4. Linux only. ``--seed`` chooses stages, faults and times; rounds go on until ``--minutes`` are over.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from cxr_ray import results
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run.compared import compare
from cxr_ray.schemas import TABLES

SIZE, DISK = 64, 1024  # side of the images; MiB of the small disk
TOLERANCE = 1e-4
OF_RANKS = {"agreement"}  # rank correlations jump where two values that rounding tells apart change places
APART = {  # columns that may differ: of the time, and a count of signs, where rounding may decide one
    "trials": ["train_seconds"],
    "verdicts": ["seconds"],
    "summary": ["n_negative"],  # seed 13: a gap of 1.2e-7 in 40 images
}
STAGES = {  # each begins with a file that matches
    "start": ".lock.json",
    "training": ".work/trials/*/*",
    "validation": ".work/shards/*.val.*/*/*.arrow",
    "maps": ".work/maps/*/*/*.arrow",
    "verdicts": ".work/rounds/*/*/*.arrow",
    "scoring": ".work/shards/*.test.*/*/*.arrow",
    "donors": ".work/shards/*.donors.*/*/*.arrow",
    "merging": "tables/curves",
    "statistics": "tables/classification",
    "report": "tables/agreement",
}
ENDS = (0, 1, 130, 143)  # exit codes of a driver that was not killed
LONGEST = 1200.0  # seconds that a driver may take, before it counts as hanging

SWEEP: dict[str, Any] = {
    "name": "chaos",
    "data": {"source": "phantom", "size": SIZE, "val_share": 0.3, "phantom": {"train": 20, "test": 40}},
    "variants": {"plain": {}},
    "model": {"weights": "none"},
    "train": {"epochs": 3, "batch_size": 8, "augment": "light"},
    "search": {"num_samples": 1, "scheduler": "none"},
    "explain": {"explainers": ["gradcam", "edges"], "targets": ["pneumonia", "predicted"]},
    "perturb": {"grids": ["7"], "fills": ["mean", "noise"], "levels": [0.25, 0.5, 0.75]},
    "controls": {"shifted": 2, "other_image": 2, "mean_map": 1},
    "regions": {"names": ["border", "marker"], "draws": 1, "donors": 4, "edits": ["paste_marker"]},
    "sanity": {"images": 4, "layers": ["fc"]},
    "verdicts": {"controls": ["shifted", "other_image"], "alpha": 0.49, "round": 4},
}


@dataclass
class Driver:
    """A sweep in a session of its own."""

    process: subprocess.Popen[bytes]
    out: Path

    def pids(self, name: str) -> list[int]:
        """Processes of the session whose command line holds a name."""
        listed = subprocess.run(
            ["ps", "-s", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        return [int(line.split(None, 1)[0]) for line in listed if name in line]

    def signal(self, pids: list[int], what: signal.Signals) -> bool:
        """Send a signal to processes of the session; whether there was one."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)
        return bool(pids)

    def wait(self, seconds: float) -> int | None:
        """The exit code; None: it is still running."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kill what is left of the session."""
        self.signal(self.pids(""), signal.SIGKILL)
        self.process.wait()


def _kill(name: str) -> Callable[[Driver, random.Random], bool]:
    def kill(driver: Driver, rng: random.Random) -> bool:
        pids = driver.pids(name)
        return driver.signal([rng.choice(pids)] if pids else [], signal.SIGKILL)

    return kill


def _to_driver(what: signal.Signals) -> Callable[[Driver, random.Random], bool]:
    return lambda driver, rng: driver.signal([driver.process.pid], what)


def _stand_still(driver: Driver, rng: random.Random) -> bool:
    """All processes of the session stop for some seconds, as on a machine that sleeps."""
    pids = driver.pids("")
    driver.signal(pids, signal.SIGSTOP)
    time.sleep(rng.uniform(2, 8))
    return driver.signal(pids, signal.SIGCONT)


def _fill_disk(driver: Driver, rng: random.Random) -> bool:
    """Nothing more can be written, until the driver ends or half a minute is over."""
    filler = driver.out.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as f:
        while True:
            f.write(bytes(2**20))
            f.flush()
    driver.wait(30)
    filler.unlink()
    return True


FAULTS: dict[str, Callable[[Driver, random.Random], bool]] = {
    "kill a worker": _kill("ray::"),
    "kill the raylet": _kill("raylet/raylet"),
    "kill Ray's control": _kill("gcs_server"),
    "kill all": lambda driver, rng: driver.signal(driver.pids(""), signal.SIGKILL),
    "kill the driver": _to_driver(signal.SIGKILL),
    "interrupt": _to_driver(signal.SIGINT),
    "terminate": _to_driver(signal.SIGTERM),
    "stand still": _stand_still,
    "fill the disk": _fill_disk,
}
KILL_DRIVER = {"kill all", "kill the driver", "kill the raylet"}  # after these its exit code may be any


@dataclass
class Round:
    """A run that is disturbed, and what went wrong in it.

    Attributes:
        folder: of the run, which may lie on a small disk.
        file: the sweep's.
        rng: of all choices.
        stages, faults: those to choose among.
        told: what was done; ``wrong``: what must not be.
    """

    folder: Path
    file: Path
    rng: random.Random
    stages: tuple[str, ...] = tuple(STAGES)
    faults: tuple[str, ...] = tuple(FAULTS)
    told: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The run."""
        return self.folder / "run"

    def start(self) -> Driver:
        """Begin the run or go on with it, on one worker or two."""
        workers = self.rng.choice((1, 2))
        command = [sys.executable, "-m", "cxr_ray.sweep", str(self.file), "--out", str(self.out), "--resume"]
        command += [
            "--set",
            f"resources.workers={workers}",
            "--set",
            f"resources.batch_size={self.rng.choice((8, 32))}",
        ]
        with (self.folder.parent / "stderr").open("wb") as stderr:
            process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=stderr)
        return Driver(process, self.out)

    def disturb(self, most: int) -> None:
        """Begin, disturb, go on, ``most`` times; then go on undisturbed to the end."""
        for stage in sorted(self.rng.sample(self.stages, min(most, len(self.stages))), key=list(STAGES).index):
            fault = self.rng.choice(self.faults)
            if self._disturbed(stage, fault) == 0:
                break
        else:
            driver = self.start()
            code = driver.wait(LONGEST)
            driver.end()
            if code != 0:
                self.wrong.append(f"the undisturbed --resume ended with {code}: {self._stderr()}")

    def _disturbed(self, stage: str, fault: str) -> int | None:
        driver = self.start()
        try:
            done = self._await(driver, stage) and FAULTS[fault](driver, self.rng)
            code = driver.wait(LONGEST)
        finally:
            driver.end()
        self.told.append(f"{stage}: {fault}{'' if done else ' (it was over)'} -> {'hangs' if code is None else code}")
        if code is None:
            self.wrong.append(f"{stage}, {fault}: the driver hangs")
        elif fault not in KILL_DRIVER and code not in ENDS:
            self.wrong.append(f"{stage}, {fault}: exit code {code}: {self._stderr()}")
        elif fault not in KILL_DRIVER and "Traceback" in self._stderr():
            self.wrong.append(f"{stage}, {fault}: a stack trace: {self._stderr()}")
        return code

    def _await(self, driver: Driver, stage: str) -> bool:
        """Wait for a stage and a random time in it; whether the driver still runs."""
        until = time.monotonic() + LONGEST
        while next(self.out.glob(STAGES[stage]), None) is None:
            if driver.wait(0.05) is not None or time.monotonic() > until:
                return False
        return driver.wait(self.rng.uniform(0, 2)) is None

    def _stderr(self) -> str:
        return (self.folder.parent / "stderr").read_text(errors="replace").strip()[-2000:]

    def check(self, whole: Path) -> None:
        """Compare the run with an undisturbed one."""
        if self.wrong:
            return
        self.wrong += differences(whole, self.out)
        left = [str(p.relative_to(self.out)) for p in self.out.rglob(".*")]
        if left:
            self.wrong.append(f"left behind: {', '.join(left[:5])}")


def differences(
    whole: str | Path,
    other: str | Path,
    names: Iterable[str] = TABLES,
    apart: Mapping[str, Sequence[str]] = APART,
) -> list[str]:
    """What differs between the tables of two runs, a line each. ``apart``: columns of a table that may differ."""
    one, two = results.open_run(whole), results.open_run(other)
    found = []
    for name in [table for table in names if table not in OF_RANKS]:
        first, second = (run.pandas(name).drop(columns=list(apart.get(name, []))) for run in (two, one))
        compared = compare(name, first, second, TOLERANCE)
        if not compared.holds:
            found += [compared.line().strip(), *compared.examples]
    return found


def prepared(folder: Path, **changes: Any) -> Path:
    """A sweep file, and the network that it is given beside those that it trains."""
    torch.manual_seed(0)
    model = folder / "model.safetensors"
    model.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", SIZE))))
    file = folder / "chaos.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, "checkpoints": {"given": {"path": str(model)}}, **changes}))
    return file


def whole_run(folder: Path, file: Path) -> Path:
    """An undisturbed run."""
    out = folder / "whole"
    command = [sys.executable, "-m", "cxr_ray.sweep", str(file), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the undisturbed run ended with {done.returncode}: {done.stderr[-2000:]}")
    return out


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk at an empty folder, where this user may; whether it could be done."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def chaos_round(folder: Path, whole: Path, file: Path, seed: int, most: int = 3) -> Round:
    """One disturbed run in an empty folder."""
    small = folder / "disk"
    small.mkdir(parents=True)
    with small_disk(small) as mounted:
        faults = tuple(name for name in FAULTS if mounted or name != "fill the disk")
        one = Round(small, file, random.Random(seed), faults=faults)
        one.disturb(most)
        one.check(whole)
    return one


def main() -> int:
    """Disturb runs until the time is over; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next have the following ones")
    parser.add_argument("--minutes", type=float, default=10, help="after which no round begins")
    parser.add_argument("--faults", type=int, default=3, help="of a round at most")
    args = parser.parse_args()
    until, seed, failed = time.monotonic() + 60 * args.minutes, args.seed, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = prepared(folder)
        whole = whole_run(folder, file)
        print(f"undisturbed: {sum(results.open_run(whole).dataset(t).count_rows() for t in TABLES):,} rows", flush=True)
        while time.monotonic() < until:
            one = chaos_round(folder / str(seed), whole, file, seed, args.faults)
            print(f"seed {seed}: {'; '.join(one.told)}: {'WRONG' if one.wrong else 'equal'}", flush=True)
            for line in one.wrong:
                print(f"  {line}", flush=True)
            failed += [seed] if one.wrong else []
            seed += 1
    print(f"{seed - args.seed} rounds, {len(failed)} of them wrong{': seeds ' + str(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
