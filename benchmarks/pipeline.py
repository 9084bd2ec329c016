"""Ray workers against the bare engine in a loop, in test images a second, on phantoms.

The bare engine is ``Worker`` called on decoded blocks in this process, on one thread of a CPU, as Ray's are. The rates
of Ray are taken in the steady state: from the first finished unit of work on, without the start of Ray and its actors.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.common import arguments, show
from cxr_ray.config import resolve
from cxr_ray.data.entries import Source
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import Manifest, load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import pipeline
from cxr_ray.storage import Store
from cxr_ray.sweep import passes_per_image


def main() -> None:
    """The command."""
    args = arguments(__doc__, size=(int, 112, "side of the images"), images=(int, 160, "test images a run"),
                     rounds=(int, 2, "rounds"))  # fmt: skip
    torch.set_num_threads(1)
    sweep = resolve({
        "data": {"source": "phantom", "size": args.size, "phantom": {"train": 8, "test": args.images}},
        "checkpoints": {"m": {"path": "none"}}, "explain": {"explainers": ["gradcam"]},
        "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": [0.25, 0.5]},
        "controls": {"pixel_random": 1, "shifted": 1}, "regions": None,
        "resources": {"gpu_per_worker": 0, "gpu_per_trial": 0},
    })  # fmt: skip
    passes, _ = passes_per_image(sweep, args.size)
    source = source_of(sweep.data, sweep.seed)
    manifest = load_manifest(source, training=False)
    measured: dict[str, list[float]] = {"bare engine": [], "1 Ray worker": [], "2 Ray workers": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "m.safetensors")
        checkpoint.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", args.size))))
        model_refs = {"m": ModelRef("m", str(checkpoint), None, args.size)}
        units = [
            u
            for u in pipeline.plan_shards(
                manifest, model_refs, {"m": passes}, "cpu", manifest.rows("test").iloc[:0], {"m": 0}, {}
            )["m"].values()
            if u["split"] == "test"
        ]
        for r in range(args.rounds):
            measured["bare engine"].append(_bare(sweep, model_refs, units, manifest, source, passes))
            pipeline.start_ray()
            for workers in (1, 2):
                resources = _resources(sweep, workers)
                store = Store(str(Path(folder, f"{r}-{workers}")), {})
                start, done = None, 0
                for images, _ in pipeline.explain_sweep(
                    sweep, units, model_refs, source, store, resources, {"m": passes}
                ):
                    if start is None:
                        start = time.perf_counter()
                    else:
                        done += images
                elapsed = time.perf_counter() - (start or 0.0)
                measured[f"{workers} Ray worker{'s' * (workers > 1)}"].append(done / elapsed)
            ray.shutdown()
    ratios = {
        "1 Ray worker / bare engine": max(measured["1 Ray worker"]) / max(measured["bare engine"]),
        "2 Ray workers / 1": max(measured["2 Ray workers"]) / max(measured["1 Ray worker"]),
    }
    show("pipeline", measured, ratios, {"1 Ray worker / bare engine": 0.95, "2 Ray workers / 1": 1.8},
         unit="images/s", as_json=args.json, passes_per_image=passes)  # fmt: skip


def _resources(sweep: Any, workers: int) -> pipeline.Resources:
    resources = pipeline.Resources(sweep, 0, sweep.data.size, local=True)
    resources.workers, resources.threads = workers, 1
    return resources


def _bare(sweep: Any, model_refs: Any, units: Any, manifest: Manifest, source: Source, passes: int) -> float:
    worker = Worker(sweep, model_refs, passes=passes * len(manifest.rows("test")))
    rows = manifest.rows("test")
    pixels = load_pixels(source, rows, sweep.data.size).images_NCHW
    blocks = []
    for i, unit in enumerate(units):
        columns = {key: [row[key] for row in unit["rows"]] for key in ("image_id", "path", "label")}
        start = i * len(units[0]["rows"])
        part = pixels[start : start + len(unit["rows"])]
        blocks.append(Shard("m", "test", columns["image_id"], columns["path"], columns["label"], part))
    worker(blocks[0])
    start_time = time.perf_counter()
    for block in blocks[1:]:
        worker(block)
    return sum(len(b.image_ids) for b in blocks[1:]) / (time.perf_counter() - start_time)


if __name__ == "__main__":
    main()
