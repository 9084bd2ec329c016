"""What grows with the number of images and models, and how fast: sweeps with a stub as network, on tiny images.

Each sweep runs in processes of its own. CPU seconds of a stage are those of all its processes, which what else runs on
the machine does not change. Memory is the proportional set size of the driver and of the largest worker, the peak over
samples. A line is fitted to each and read off at a million images and twenty models. Linux only. The stub's own time is
in the figures, a real network's is not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.common import machine
from benchmarks.fits import Fit, fitted
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec

SIZE, STORED = 32, 8  # sides: of the images as the models see them, and of the files
IMAGES = (500, 2000, 20000)
LARGEST = 200_000
TARGET = (1_000_000, 20)  # images, models
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_WAIT_POLICY": "PASSIVE",  # as workers have it, whom the stub makes import torch before they set it
}
GRACE = 0.2  # seconds between samples of memory
STAGES = ("manifest", "maps", "sums of maps", "scores", "merge", "statistics", "page", "whole")


@dataclass
class Measured:
    """One sweep.

    Attributes:
        images, models: its size.
        seconds: on the clock, of each stage.
        cpu: CPU seconds of all processes in each stage.
        driver_cpu: those of the driver alone.
        peak: MiB of the driver, and of the largest worker.
        driver_peak: MiB of the driver in each stage.
        counts: files, those of the fullest folder, shards, bytes of the page.
    """

    images: int
    models: int
    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    driver_cpu: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    driver_peak: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = ",".join(map(str, IMAGES))
    parser.add_argument("--images", default=sizes, help=f"numbers of test images (default: {sizes})")
    parser.add_argument("--models", type=int, default=4, help="models of a second run of the fewest images")
    parser.add_argument("--workers", type=int, default=1, help="workers of each sweep")
    parser.add_argument("--largest", action="store_true", help=f"{LARGEST} images as well: hours")
    parser.add_argument("--keep", help="folder for data and runs; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    images = sorted({int(n) for n in args.images.split(",")} | ({LARGEST} if args.largest else set()))
    print(f"growth: {machine()}; workers: {args.workers}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = [measured(folder, n, 1, args.workers) for n in images]
        if args.models > 1:
            runs.append(measured(folder, images[0], args.models, args.workers))
    fits = list(fits_of(runs))
    print("\n".join(str(fit) for fit in fits))
    if args.json:
        print(json.dumps({"runs": [vars(run) for run in runs], "fits": [vars(fit) for fit in fits]}))


def write_images(folder: Path, n_test: int) -> None:
    """Grey images of noise, a third brighter and PNEUMONIA: n of test, and 40 of train, from which val is taken."""
    rng = np.random.default_rng(n_test)
    for split, first, n in (("test", 0, n_test), ("train", n_test, 40)):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(label, n, 2):
                pixels = rng.integers(40 * label, 160 + 40 * label, (STORED, STORED), np.uint8)
                (place / f"IM-{first + i:07d}-0001.pgm").write_bytes(
                    b"P5\n%d %d\n255\n" % pixels.shape + pixels.tobytes()
                )


def measured(folder: Path, images: int, models: int, workers: int) -> Measured:
    """Run one sweep and watch it."""
    data, out = folder / f"data-{images}", folder / f"run-{images}-{models}"
    if not data.exists():
        write_images(data, images)
    checkpoint = _checkpoint(folder)
    sweep = {
        "data": {"path": str(data), "size": SIZE},
        "checkpoints": {f"m{i}": {"path": str(checkpoint), "size": SIZE} for i in range(models)},
        "explain": {"explainers": ["edges"]},
        "perturb": {"grids": ["7"], "fills": ["black"], "levels": [0.25, 0.5, 0.75]},
        "controls": {"cell_random": 1, "shifted": 1, "other_image": 1, "mean_map": 1},
        "regions": None,
        "sanity": None,
        "resources": {"workers": workers, "batch_size": 256},
    }
    file, stages = folder / f"{images}-{models}.yaml", folder / f"{images}-{models}.json"
    file.write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "benchmarks.stub", str(stages), str(file), "--out", str(out)]
    log = Path(folder, f"{images}-{models}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, start_new_session=True, env=os.environ | _ENVIRONMENT
        )
    try:
        samples = list(_watched(process))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise SystemExit(f"growth: the sweep of {images} images and {models} models failed:\n{log.read_text()[-2000:]}")
    run = _summed(Measured(images, models), json.loads(stages.read_text()), samples, out)
    print("\n".join(lines_of(run)), flush=True)
    return run


def _checkpoint(folder: Path) -> Path:
    """The stub's weights: the log-odds are the mean brightness, so that a black image is a valid baseline."""
    from benchmarks import stub

    stub.install()
    checkpoint, model = folder / "stub.safetensors", networks.build("resnet18", ModelSpec("resnet18", SIZE))
    weight = model.network.fc.weight.data
    weight[0], weight[1] = 0.0, 20.0 / weight.shape[1]
    model.network.fc.bias.data[:] = 0.0
    checkpoint.write_bytes(checkpoints.to_bytes(model))
    return checkpoint


class Sample(NamedTuple):
    """A moment: MiB of the driver and of the largest worker, CPU seconds of all processes since they began."""

    moment: float
    driver: float
    worker: float
    cpu: float


def _watched(process: subprocess.Popen[bytes]) -> Iterator[Sample]:
    """Samples until the process ends."""
    cpu: dict[int, float] = {}  # processes that ended keep what they had
    while process.poll() is None:
        driver = worker = 0.0
        for pid in _session(process.pid):
            try:
                mib, cpu[pid], is_worker = _seen(pid)
            except (OSError, StopIteration):
                continue  # it ended meanwhile
            driver = mib if pid == process.pid else driver
            worker = max(worker, mib) if is_worker else worker
        yield Sample(time.monotonic(), driver, worker, sum(cpu.values()))
        time.sleep(GRACE)


def _session(leader: int) -> Iterator[int]:
    """Processes of a session: Ray's stay in that of the driver."""
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                yield int(entry.name)
        except OSError:
            continue


def _seen(pid: int) -> tuple[float, float, bool]:
    """MiB of a process, its CPU seconds, and whether it is one of Ray's workers."""
    own = Path(f"/proc/{pid}")
    pss = next(line for line in (own / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    user, system = (own / "stat").read_text().rpartition(")")[2].split()[11:13]
    seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return int(pss.split()[1]) / 1024, seconds, (own / "cmdline").read_bytes().startswith(b"ray::")


def _summed(run: Measured, told: Mapping[str, Any], samples: list[Sample], out: Path) -> Measured:
    shards = 0
    moments, cpu = [s.moment for s in samples], [s.cpu for s in samples]
    for stage in told["stages"]:
        name, start, end = stage["name"], stage["start"], stage["end"]
        run.seconds[name] = run.seconds.get(name, 0.0) + end - start
        run.cpu[name] = run.cpu.get(name, 0.0) + float(np.diff(np.interp([start, end], moments, cpu))[0])
        run.driver_cpu[name] = run.driver_cpu.get(name, 0.0) + stage["driver_cpu"]
        inside = [s.driver for s in samples if start <= s.moment <= end]
        run.driver_peak[name] = max([run.driver_peak.get(name, 0.0), *inside])
        shards += stage.get("shards", 0)
    run.peak = {"driver": max(s.driver for s in samples), "worker": max(s.worker for s in samples)}
    run.counts = {**told["files"], "shards": shards, "bytes of the page": (out / "report.html").stat().st_size}
    return run


def lines_of(run: Measured) -> Iterator[str]:
    """What one sweep took."""
    pairs = run.images * run.models
    yield f"{run.images} images, {run.models} model{'s' * (run.models > 1)}:"
    for name in STAGES:
        if name in run.seconds:
            yield (
                f"  {name:<14}{run.seconds[name]:>9.2f} s on the clock; CPU {run.cpu[name]:>9.2f} s, "
                f"{1000 * run.cpu[name] / pairs:>9.3f} ms an image and model; driver's {run.driver_cpu[name]:>8.2f} s, "
                f"memory {run.driver_peak[name]:>7.0f} MiB"
            )
    yield f"  peak memory: driver {run.peak['driver']:.0f} MiB, largest worker {run.peak['worker']:.0f} MiB"
    yield "  " + ", ".join(f"{name} {value:.0f}" for name, value in run.counts.items())


def fits_of(runs: list[Measured]) -> Iterator[Fit]:
    """How each quantity grows with images and models, and where that leads."""
    sizes = [(run.images, run.models) for run in runs]

    def of(name: str, unit: str, values: list[float]) -> Fit:
        return fitted(name, unit, sizes, values, TARGET)

    for name in STAGES[:-1]:
        if all(name in run.seconds for run in runs):
            yield of(f"{name}, CPU of all processes", "s", [run.cpu[name] for run in runs])
            yield of(f"{name}, CPU of the driver", "s", [run.driver_cpu[name] for run in runs])
    yield of("driver, peak memory", "MiB", [run.peak["driver"] for run in runs])
    yield of("worker, peak memory", "MiB", [run.peak["worker"] for run in runs])
    for name in runs[0].counts:
        yield of(name, "", [run.counts[name] for run in runs])


if __name__ == "__main__":
    main()
