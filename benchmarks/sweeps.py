"""Whole sweeps of given models by the command, against their forward passes at the plain rate, in one run.

Phantoms, random weights. One model: Grad-CAM against 27 draws of a control, 400 passes an image. Several: 39 draws, the
strong controls, and regions. ``scoring``: from the line that names the models to the last shard's; ``whole``: all of
the command. Printed are rates of passes, so that their ratio to the plain rate is the share of the time that scoring at
that rate would have taken.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import arguments, rates, ratio, show
from benchmarks.plain import PRECISION, Plain
from cxr_ray.measure.cost import passes_per_image
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.sweepfile import resolve

ONE: dict[str, Any] = {"controls": {"shifted": 27}, "regions": None}
SEVERAL: dict[str, Any] = {
    "controls": {"shifted": 39, "other_image": 5, "mean_map": 1},
    "regions": {"names": ["border", "corners", "centre"], "draws": 5},
}


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        images=(int, 624, "test images"),
        models=(int, 1, "models"),
        rounds=(int, 3, "rounds of plain passes"),
        gpu_per_worker=(float, 0.0, "GPUs of a worker: 0.5 for two on each; 0: auto"),
        precision=PRECISION,
    )
    plain = Plain.of(args.size, args.precision)
    measured = rates({"plain": plain.passes(plain.forward, 4)}, args.rounds, 1.0)
    form = str(plain.form)
    del plain
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        sweep = _sweep(folder, args)
        passes = args.models * args.images * passes_per_image(resolve(sweep), args.size)[0]
        whole, scoring = _timed(folder, sweep)
    measured |= {"scoring": [passes / scoring] * args.rounds, "whole": [passes / whole] * args.rounds}
    ratios = {f"{stage} / plain": ratio(measured, stage, "plain") for stage in ("scoring", "whole")}
    show(
        "sweeps",
        measured,
        ratios,
        {},
        unit="passes/s",
        as_json=args.json,
        passes=passes,
        seconds={"scoring": round(scoring, 1), "whole": round(whole, 1)},
        chosen=form,
    )


def _sweep(folder: str, args: Any) -> dict[str, Any]:
    paths = {}
    for i in range(args.models):
        torch.manual_seed(i)
        path = Path(folder, f"m{i}.safetensors")
        path.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", args.size))))
        paths[f"m{i}"] = {"path": str(path)}
    return {
        "data": {"source": "phantom", "size": args.size, "phantom": {"train": 8, "test": args.images}},
        "checkpoints": paths,
        "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["pixel"], "fills": ["mean"], "precision": args.precision},
        "sanity": None,
        "resources": {"gpu_per_worker": args.gpu_per_worker or "auto"},
        **(ONE if args.models == 1 else SEVERAL),
    }


def _timed(folder: str, sweep: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the whole command, and of the scoring pass."""
    file = Path(folder, "sweep.yaml")
    file.write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-u", "-m", "cxr_ray.sweep", str(file), "--out", f"{folder}/out"]
    start, begun, ended, lines = time.perf_counter(), 0.0, 0.0, []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Models to explain"):
            begun = time.perf_counter()
        elif re.search(r"\b(\d+) of \1 shards", line) or (ended < begun and line.startswith("Done in")):  # a short pass
            ended = time.perf_counter()
    if process.wait():
        raise SystemExit(f"sweeps: the sweep ended with {process.returncode}: {' '.join(lines[-3:]).strip()}")
    return time.perf_counter() - start, ended - begun


if __name__ == "__main__":
    main()
