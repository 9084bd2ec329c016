"""What the driver of a run does for each shard, at the lengths of small and of large runs: no network, no images.

The shards are real: Ray Data hands out and decodes them, a worker takes them, tasks write them. The worker makes
nothing, and every image is the same blank one. Counted are CPU seconds of the driver's process and its threads, from
the first finished shard to the last. Lengths take turns, round after round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from benchmarks.common import arguments, ratio, show
from cxr_ray.config import Sweep
from cxr_ray.measure.shards import ModelRef
from cxr_ray.run import cluster, pipeline, ray_start
from cxr_ray.run.context import RunContext
from cxr_ray.run.pipeline import PassSettings, ShardPass
from cxr_ray.run.plan import LONGEST_IMAGES, SHARD_IMAGES, Images, Plan
from cxr_ray.run.workers import WorkerPool
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve

SIZE = 8
BLANK = b"P5\n8 8\n255\n" + bytes(SIZE * SIZE)


@dataclass(frozen=True)
class BlankSource:
    """Every file is the same blank image."""

    where: str = "blank"

    def read(self, path: str) -> bytes:
        """A PGM file."""
        return BLANK


class Idle:
    """A worker that makes no table."""

    def begin(self, settings: PassSettings) -> None:
        """Nothing is kept of a pass."""

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What ``pipeline`` expects of a worker."""
        import json

        plan = json.loads(row["shard"])
        return {"name": plan["name"], "images": len(plan["rows"]), "backend": "none", "notes": [], "tables": {}}


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        shards=(int, 200, "shards of each length"),
        rounds=(int, 3, "rounds"),
    )
    sweep = resolve(
        {"data": {"path": "blank", "size": 32}, "checkpoints": {"m": {"path": "none"}}, "regions": None}
        | {"resources": {"gpu_per_worker": 0, "workers": 1}}
    )
    lengths = {f"shards of {length} images": length for length in (SHARD_IMAGES, LONGEST_IMAGES)}
    measured: dict[str, list[float]] = {name: [] for name in lengths}
    started = ray_start.start_ray()
    with tempfile.TemporaryDirectory() as folder:
        for r in range(args.rounds + 1):
            for name, length in lengths.items():
                seconds = _seconds_a_shard(sweep, Path(folder, f"{r}-{length}"), length, args.shards)
                if r:  # the first round starts Ray's processes
                    measured[name].append(length / seconds)
    started.end()
    short, long = lengths
    show(
        "driver",
        measured,
        {f"{long} / {short}": ratio(measured, long, short)},
        {},
        unit="images a CPU second of the driver",
        as_json=args.json,
        ms_a_shard={name: [round(1000 * lengths[name] / v, 2) for v in of] for name, of in measured.items()},
    )


def _seconds_a_shard(sweep: Sweep, folder: Path, length: int, shards: int) -> float:
    """CPU seconds of this process for each shard."""
    request = cluster.Request(sweep.resources, 0, SIZE, local=True)
    allocation = cluster.allocate(cluster.ray_nodes(), request)
    ids = [f"{i:016x}" for i in range(length * shards)]
    images = pd.DataFrame({"image_id": ids, "path": [f"test/NORMAL/{i}.pgm" for i in ids], "label": 0})
    refs = {"m": ModelRef("m", "none", None, SIZE)}
    plan = Plan(refs, {"test": Images(images.assign(donor_image=None))}, {("m", "test"): length}, splits=("test",))
    context = RunContext(sweep, cast(Any, BlankSource()), cast(Any, None), (), refs, Store(str(folder), {}))
    pool = WorkerPool(Idle, allocation)
    computed = pipeline.compute_shards(ShardPass(context, allocation, pool, refs, {"m": 1}), plan.missing())
    next(computed)
    begun = time.process_time()
    n = len(list(computed))
    seconds = time.process_time() - begun
    pool.close()
    return seconds / n


if __name__ == "__main__":
    main()
