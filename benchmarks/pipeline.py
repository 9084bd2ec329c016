"""Ray workers against the bare engine in a loop, in test images a second, on phantoms.

The bare engine is ``Worker`` called on decoded blocks in this process, on one thread of a CPU, as Ray's are. The rates
of Ray are taken in the steady state: from the first finished shard on, without the start of Ray and its actors.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, show
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import Manifest, load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.measure.cost import passes_per_image
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import cluster, pipeline, ray_start
from cxr_ray.run.cluster import Request
from cxr_ray.run.context import RunContext
from cxr_ray.run.pipeline import ShardPass
from cxr_ray.run.plan import Missing, PassCounts, plan_shards
from cxr_ray.run.workers import WorkerPool
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 112, "side of the images"),
        images=(int, 160, "test images a run"),
        rounds=(int, 2, "rounds"),
    )
    torch.set_num_threads(1)
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": args.size, "phantom": {"train": 8, "test": args.images}},
            "checkpoints": {"m": {"path": "none"}},
            "explain": {"explainers": ["gradcam"]},
            "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": [0.25, 0.5]},
            "controls": {"pixel_random": 1, "shifted": 1},
            "regions": None,
            "resources": {"gpu_per_worker": 0, "gpu_per_trial": 0},
        }
    )
    passes, _ = passes_per_image(sweep, args.size)
    source = source_of(sweep.data, sweep.seed)
    manifest = load_manifest(source, training=False)
    measured: dict[str, list[float]] = {"bare engine": [], "1 Ray worker": [], "2 Ray workers": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "m.safetensors")
        checkpoint.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", args.size))))
        model_refs = {"m": ModelRef("m", str(checkpoint), None, args.size)}
        shards = planned_shards(manifest, model_refs, passes)
        context = RunContext(sweep, source, manifest, (), model_refs, Store(folder, {}))
        for r in range(args.rounds):
            measured["bare engine"].append(_bare(context, shards, passes))
            started = ray_start.start_ray()
            request = Request(sweep.resources, 0, sweep.data.size, local=True)
            allocation = replace(cluster.allocate(cluster.ray_nodes(), request), threads=1)
            for workers in (1, 2):
                stored = replace(context, store=Store(str(Path(folder, f"{r}-{workers}")), {}))
                given = replace(allocation, workers=workers)
                each = passes * len(manifest.rows("test")) // workers
                pool = WorkerPool(pipeline.worker_maker(stored, model_refs, each)(given), given)
                shard_pass = ShardPass(stored, given, pool, model_refs, {"m": passes})
                measured[f"{workers} Ray worker{'s' * (workers > 1)}"].append(_rate(shard_pass, shards))
                pool.close()
            started.end()
    ratios = {
        "1 Ray worker / bare engine": max(measured["1 Ray worker"]) / max(measured["bare engine"]),
        "2 Ray workers / 1": max(measured["2 Ray workers"]) / max(measured["1 Ray worker"]),
    }
    show(
        "pipeline",
        measured,
        ratios,
        {"1 Ray worker / bare engine": 0.95, "2 Ray workers / 1": 1.8},
        unit="images/s",
        as_json=args.json,
        passes_per_image=passes,
    )


def planned_shards(manifest: Manifest, model_refs: Any, passes: int) -> Missing:
    """Shards of the test split for the one model."""
    nothing = manifest.rows("test").iloc[:0]
    plan = plan_shards(manifest, model_refs, {"m": PassCounts(passes)}, "cpu", {}, {}, nothing)
    return plan.of_split("test").missing()


def _rate(shard_pass: ShardPass, shards: Missing) -> float:
    """Images a second, from the first finished shard on."""
    start, done = None, 0
    for shard in pipeline.compute_shards(shard_pass, shards):
        if start is None:
            start = time.perf_counter()
        else:
            done += shard.images
    return done / (time.perf_counter() - (start or 0.0))


def _bare(context: RunContext, shards: Missing, passes: int) -> float:
    rows = context.manifest.rows("test")
    worker = Worker(context.sweep, context.given, passes=passes * len(rows))
    pixels = load_pixels(context.source, rows, context.sweep.data.size).images_NCHW
    blocks: list[Shard] = []
    for shard in shards:
        columns = {key: [row[key] for row in shard.rows] for key in ("image_id", "path", "label")}
        start = sum(len(block.image_ids) for block in blocks)
        part = pixels[start : start + len(shard.rows)]
        blocks.append(Shard("m", "test", columns["image_id"], columns["path"], columns["label"], part))
    worker(blocks[0])
    start_time = time.perf_counter()
    for block in blocks[1:]:
        worker(block)
    return sum(len(b.image_ids) for b in blocks[1:]) / (time.perf_counter() - start_time)


if __name__ == "__main__":
    main()
