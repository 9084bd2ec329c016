"""Where the time of a small sweep goes before its work begins: seconds, and over those of importing torch.

A given, untrained network explains a few phantoms in a process of its own. A stage ends with the line that the run
prints. Importing torch is measured in the same command, before and after: it is what this machine takes at least.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks.common import arguments, show
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec

SIZE = 64
STAGES = {  # a stage to how the line begins that ends it
    "first line": "Sweep ",
    "images read, models loaded": "Images of",
    "Ray answers": "Ray on ",
    "workers answer: first shard": "  forward passes:",
    "next pass: first shard": "  forward passes:",
    "scored, statistics and page written": "Done in",
    "exit": "",
}


def main() -> None:
    """The command."""
    args = arguments(__doc__, images=(int, 16, "test images"), rounds=(int, 3, "sweeps"))
    measured: dict[str, list[float]] = {name: [] for name in ("import torch", *STAGES, "whole")}
    with tempfile.TemporaryDirectory() as folder:
        file = _sweep(Path(folder), args.images)
        for n in range(args.rounds):
            measured["import torch"].append(_seconds("-c", "import torch"))
            moments = _moments(str(file), f"{folder}/{n}")
            for name, begin, end in zip(STAGES, [0.0, *moments], moments, strict=False):
                measured[name].append(end - begin)
            measured["whole"].append(moments[-1])
            measured["import torch"].append(_seconds("-c", "import torch"))
    torch_import = statistics.median(measured["import torch"])
    ratios = {f"{name} / import torch": statistics.median(measured[name]) / torch_import for name in (*STAGES, "whole")}
    show("startup", measured, ratios, {}, unit="s", as_json=args.json, images=args.images)


def _sweep(folder: Path, n_test: int) -> Path:
    """A sweep file, and the network that it names."""
    torch.manual_seed(0)
    model = networks.build("resnet18", ModelSpec("resnet18", SIZE))
    (folder / "model.safetensors").write_bytes(checkpoints.to_bytes(model))
    sweep = {
        "data": {"source": "phantom", "size": SIZE, "phantom": {"train": 24, "test": n_test}},
        "checkpoints": {"given": {"path": str(folder / "model.safetensors")}},
        "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75]},
        "controls": {"cell_random": 1, "shifted": 1},
        "regions": None,
        "sanity": None,
        "resources": {"workers": 1},
    }
    file = folder / "startup.yaml"
    file.write_text(yaml.safe_dump(sweep))
    return file


def _moments(file: str, out: str) -> list[float]:
    """Seconds from the start of a run to the end of each stage."""
    command = [sys.executable, "-u", "-m", "cxr_ray.sweep", file, "--out", out]
    waiting, moments, start = list(STAGES.values()), [], time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if len(waiting) > 1 and line.startswith(waiting[0]):
                waiting.pop(0)
                moments.append(time.perf_counter() - start)
    if process.returncode or len(waiting) > 1:
        raise RuntimeError(f"got the exit code {process.returncode}, and no line of: {', '.join(waiting[:-1])}.")
    return [*moments, time.perf_counter() - start]


def _seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
