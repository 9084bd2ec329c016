"""Time and peak memory of whole sweeps as images and models grow, on small phantoms: linear in time, flat in memory.

Memory is the proportional set size of the command and of the processes that Ray started for it, summed, its peak over
samples. Linux only. A run that is long enough tries faster forms of the pass, which takes memory once: ``forms`` says
which run has which.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.common import arguments, show
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec

SIZE = 64


def main() -> None:
    """The command."""
    args = arguments(__doc__, images=(str, "100,200,400,600", "test images"), models=(str, "1,2,4", "models"))
    images, counts = ([int(n) for n in text.split(",")] for text in (args.images, args.models))
    if len(images) < 3 or images != sorted(set(images)):
        raise SystemExit(
            f"scale: got --images {args.images}; expected three growing numbers or more; give 100,200,400."
        )
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    forms: dict[str, str] = {}
    runs = [(n, counts[0]) for n in images] + [(images[0], m) for m in counts[1:]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "m.safetensors")
        checkpoint.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", SIZE))))
        for n, m in runs:
            name = f"{n} images, {m} models"
            seconds[name], memory[name], forms[name] = _run(folder, str(checkpoint), n, m)
    first, last = (f"{n} images, {counts[0]} models" for n in (images[0], images[-1]))
    most = f"{images[0]} images, {counts[-1]} models"
    ratios = {
        f"seconds an added image, {images[-1]} against {images[1]}": _slope(seconds, images, counts[0]),
        "memory, most images / fewest": memory[last] / memory[first],
        "memory, most models / one": memory[most] / memory[first],
    }
    show(
        "scale",
        seconds,
        ratios,
        {"memory, most images / fewest": 1.1, "memory, most models / one": 1.1},
        unit="s",
        as_json=args.json,
        peak_mib={k: round(v) for k, v in memory.items()},
        forms=forms,
    )


def _slope(seconds: dict[str, list[float]], images: list[int], m: int) -> float:
    """Seconds an added image over the whole range, over those of its first step: 1 is linear."""
    at = [seconds[f"{n} images, {m} models"][0] for n in images]
    return ((at[-1] - at[1]) / (images[-1] - images[1])) / ((at[1] - at[0]) / (images[1] - images[0]))


def _run(folder: str, checkpoint: str, n: int, m: int) -> tuple[list[float], float, str]:
    sweep = {
        "data": {"source": "phantom", "size": SIZE, "phantom": {"train": 8, "test": n}},
        "checkpoints": {f"m{i}": {"path": checkpoint} for i in range(m)},
        "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": [0.25, 0.5]},
        "controls": {"pixel_random": 1, "shifted": 1},
        "regions": {"names": ["border"], "draws": 1},
        "sanity": None,
    }
    file = Path(folder, f"{n}-{m}.yaml")
    file.write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "cxr_ray.sweep", str(file), "--out", f"{folder}/out-{n}-{m}"]
    start, peak, log = time.perf_counter(), 0.0, Path(folder, f"{n}-{m}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the sweep of {n} images and {m} models ended with {process.returncode}")
    form = re.search(r"forward passes: (\w+) \(", log.read_text())
    return [time.perf_counter() - start], peak, form[1] if form else "none"


def _memory(session: int) -> float:
    """MiB of every process of a session and of Ray's, which stay in it."""
    total = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                lines = Path(entry.path, "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue  # the process ended meanwhile
    return total / 1024


if __name__ == "__main__":
    main()
