"""Ray Data: read and decode, explain and score, write. One pipeline for all models and images of a sweep.

Its rows are shards. Tasks decode a shard's images, an actor that keeps its models computes the shard's tables, tasks
write them; only names come back. The same pipeline serves the map pass and the scoring pass.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import ray

from cxr_ray.config import Sweep
from cxr_ray.data.entries import Source
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.masks import MaskFolder, load_parts, lungs_of, marker_of
from cxr_ray.data.sources import counterfactuals_of
from cxr_ray.storage import SHARDS, Store, pack

if TYPE_CHECKING:  # these import torch, which tasks that read and write do without
    from cxr_ray.measure.metrics import Tested
    from cxr_ray.measure.worker import ModelRef, Shard
    from cxr_ray.run.cluster import Allocation
    from cxr_ray.run.context import RunContext
    from cxr_ray.run.plan import Missing

LIGHT_CPUS = 0.5  # what a task that reads or writes asks for


@dataclass(frozen=True)
class ShardPass:
    """One pass over shards: the scoring pass, or the map pass before it.

    Attributes:
        context, allocation: of the run.
        model_refs: the models by trial_id.
        passes: forward passes of a test image by trial_id.
        folder: where the shards' files lie; ``donors.MAPS``: predictions and maps are all that is made.
        tested: the primary metric and fill, once they are chosen.
    """

    context: RunContext
    allocation: Allocation
    model_refs: Mapping[str, ModelRef]
    passes: Mapping[str, int]
    folder: str = SHARDS
    tested: Tested | None = None

    @property
    def is_map_pass(self) -> bool:
        """Whether it is the map pass."""
        return self.folder != SHARDS

    def passes_of_a_worker(self, shards: Missing, workers: int) -> int:
        """Forward passes that a worker makes with one model: many make a faster backend worth its start-up."""
        total = sum(self.passes[trial_id] * n for trial_id, n in shards.n_test.items())
        return total // (len(self.model_refs) * workers)


class _Decode:
    """A shard's images, read and decoded; runs in tasks next to the actors."""

    def __init__(self, source: Source, lungs: MaskFolder | None, sweep: Sweep):
        self.source, self.fit = source, sweep.data.fit
        self.folders = [folder for folder in (lungs, marker_of(sweep)) if folder is not None]
        self.parts, self.changes = sweep.regions is not None, counterfactuals_of(sweep)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = json.loads(row["shard"])
        size, preprocess = shard["size"], shard["preprocess"]
        frame = pd.DataFrame(shard["rows"], columns=["image_id", "path", "label", "donor_image"])
        pixels, keep, errors = load_pixels(self.source, frame, size, self.fit, preprocess)
        shard["rows"] = [r for r, kept in zip(shard["rows"], keep, strict=True) if kept]
        rows = shard["rows"] if self.parts and shard["split"] in ("test", "donors") else []
        changes = self.changes if shard["split"] == "test" else ()
        parts = load_parts(self.source, self.folders, rows, size, self.fit, preprocess, changes)
        donors = frame[keep & frame["donor_image"].notna() & self.parts]
        donors = donors[["image_id", "donor_image"]].rename(columns={"donor_image": "path"})
        pixels_of_donors, readable, unreadable = load_pixels(self.source, donors, size, self.fit, preprocess)
        shard |= {
            "donor_images": list(donors["image_id"][readable]),
            "masks": list(parts.masks),
            "counterfactuals": list(parts.counterfactuals),
            "errors": errors + parts.errors + [{**error, "stage": "patch_swap"} for error in unreadable],
        }
        return {
            "shard": json.dumps(shard),
            "pixels": pixels.tobytes(),
            "masks": b"".join(mask.tobytes() for mask in parts.masks.values()),
            "donor_images": pixels_of_donors.tobytes(),
            "counterfactuals": b"".join(rendering.tobytes() for rendering in parts.counterfactuals.values()),
        }


class _Explain:
    """The actor: a Worker that takes and gives rows of Ray Data."""

    def __init__(
        self,
        sweep: Sweep,
        store: Store,
        model_refs: Mapping[str, ModelRef],
        allocation: Allocation,
        passes: int,
        is_map_pass: bool,
        tested: Tested | None = None,
    ):
        import torch

        from cxr_ray.measure.donors import DonorMaps
        from cxr_ray.measure.shards import Comparison, Shard
        from cxr_ray.measure.worker import Worker

        gpus = allocation.worker_gpus
        if allocation.threads:
            torch.set_num_threads(allocation.threads)
        if 0 < gpus < 1:  # its share of the memory as well
            torch.cuda.set_per_process_memory_fraction(gpus)
        self.shard_type, self.comparison_type, self.is_map_pass = Shard, Comparison, is_map_pass
        device = "cuda" if gpus else "cpu"
        donor_maps = DonorMaps(store, sweep)
        self.worker = Worker(sweep, model_refs, device, allocation.batch_size, passes, donor_maps, tested)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = self._shard(row)
        measured = self.worker.wins if shard.comparisons else self.worker
        tables = self.worker.map_pass(shard) if self.is_map_pass else pack(measured(shard))
        backend = str(self.worker.backend)
        return {"name": shard.name, "images": len(shard.image_ids), "backend": backend, "tables": tables}

    def _shard(self, row: dict[str, Any]) -> Shard:
        plan = json.loads(row["shard"])
        rows, size = plan["rows"], plan["size"]

        def arrays(kind: str, dtype: type, *shape: int) -> dict[str, Any]:
            stacked: Any = np.frombuffer(row[kind], dtype).reshape(len(plan[kind]), *shape)
            return dict(zip(plan[kind], stacked, strict=True))

        return self.shard_type(
            trial_id=plan["trial_id"],
            split=plan["split"],
            image_ids=[r["image_id"] for r in rows],
            paths=[r["path"] for r in rows],
            labels=[r["label"] for r in rows],
            pixels=np.frombuffer(row["pixels"], np.uint8).reshape(len(rows), 3, size, size),
            errors=plan["errors"],
            masks=arrays("masks", np.bool_, len(rows), size, size),
            counterfactuals=arrays("counterfactuals", np.uint8, len(rows), 3, size, size),
            donor_images=arrays("donor_images", np.uint8, 3, size, size),
            swaps=[r["swap"] for r in rows] if plan["split"] == "donors" else (),
            comparisons=[self.comparison_type(*c) for c in plan["comparisons"]],
            name=plan["name"],
        )


class _Write:
    """Puts a shard's tables in place; only its name goes on to the driver."""

    def __init__(self, store: Store, folder: str):
        self.store, self.folder = store, folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.store.write_shard(row["name"], row["tables"], self.folder)
        return {key: row[key] for key in ("name", "images", "backend")}


def compute_shards(shard_pass: ShardPass, shards: Missing) -> Generator[tuple[int, str], None, None]:
    """Compute the shards and write each as a file of the run; yield (images, inference backend) a shard.

    A killed actor is started again and its shards are computed again under the same names.
    """
    context, allocation = shard_pass.context, shard_pass.allocation
    sweep, store = context.sweep, context.store
    rows = [{"shard": json.dumps(shard.to_plain())} for shard in shards]
    workers = min(allocation.workers, len(rows))
    # plain functions: classes would become actors of their own
    decode, write = _Decode(context.source, lungs_of(sweep), sweep), _Write(store, shard_pass.folder)
    written = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(decode.__call__, num_cpus=LIGHT_CPUS)
        .map(
            _Explain,  # type: ignore[arg-type]
            fn_constructor_kwargs={
                "sweep": sweep,
                "store": store,
                "model_refs": dict(shard_pass.model_refs),
                "allocation": allocation,
                "passes": shard_pass.passes_of_a_worker(shards, workers),
                "is_map_pass": shard_pass.is_map_pass,
                "tested": shard_pass.tested,
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=allocation.worker_cpus,
            num_gpus=allocation.worker_gpus or None,
        )
        .map(write.__call__, num_cpus=LIGHT_CPUS)
    )
    for row in written.iter_rows():
        yield row["images"], row["backend"]


class _Total:
    """Writes the sum of the rank maps that mean_map needs, of one model, explainer, target and prediction."""

    def __init__(self, sweep: Sweep, store: Store):
        self.sweep, self.store = sweep, store

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from cxr_ray.measure.donors import DonorMaps

        target = row["explainer"], row["target"]
        DonorMaps(self.store, self.sweep).write_total(row["trial_id"], target, row["predicted"], row["size"])
        return {"trial_id": row["trial_id"]}


def sum_maps(context: RunContext, groups: list[dict[str, Any]]) -> None:
    """Write the sums that mean_map needs: one for each group of trial_id, explainer, target, predicted and size."""
    total = _Total(context.sweep, context.store)
    rows = ray.data.from_items(groups, override_num_blocks=len(groups)).map(total.__call__, num_cpus=LIGHT_CPUS)
    for _ in rows.iter_rows():
        pass
