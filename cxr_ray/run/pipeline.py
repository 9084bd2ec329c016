"""Read and decode, explain and score, write. One pipeline for all models and images of a sweep.

Its rows are shards. Tasks of Ray Data read and decode a shard's images, a worker of the pool computes the shard's
tables, tasks write them; only names come back. The same pipeline and the same workers serve all passes.
"""

from __future__ import annotations

import faulthandler
import json
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray

from cxr_ray.config import Sweep
from cxr_ray.data.entries import Source
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.masks import MaskFolder, load_parts, lungs_of, marker_of
from cxr_ray.data.outside_maps import MapSet, load_maps
from cxr_ray.data.sources import SOURCES, counterfactuals_of
from cxr_ray.data.truth import load_truth, own_truth, truth_of
from cxr_ray.errors import WorkersError
from cxr_ray.run import deaths, terminal
from cxr_ray.run.deaths import Died
from cxr_ray.run.one_by_one import OneByOne
from cxr_ray.run.terminal import ShardDone
from cxr_ray.run.workers import WorkerPool
from cxr_ray.storage import PRECISION, SHARDS, Store, pack

if TYPE_CHECKING:  # these import torch, which tasks that read and write do without
    from cxr_ray.measure.metrics import Tested
    from cxr_ray.measure.worker import ModelRef, Shard
    from cxr_ray.run.cluster import Allocation
    from cxr_ray.run.context import RunContext
    from cxr_ray.run.plan import Missing, ShardPlan

DECODE_SECONDS = 600  # after which a task that reads and decodes a shard counts as hung
LIGHT_CPUS = 0.5  # what a task that reads or writes asks for
PORTION = 2048, 16  # images, and shards at least, a worker that Ray Data is given at a time: the driver never holds all
GPU_PORTION = 8192  # images in all, at least, for workers on GPUs: they wait where one portion ends and another begins


@dataclass(frozen=True)
class ShardPass:
    """One pass over shards: the scoring pass, or the map pass before it.

    Attributes:
        context, allocation: of the run.
        pool: the workers, which all passes share.
        model_refs: the models by trial_id.
        passes: forward passes of a test image by trial_id.
        folder: where the shards' files lie; ``donors.MAPS``: predictions and maps are all that is made; PRECISION: the
            precision of each model is decided.
        tested: the primary metric and fill, once they are chosen.
    """

    context: RunContext
    allocation: Allocation
    pool: WorkerPool
    model_refs: Mapping[str, ModelRef]
    passes: Mapping[str, int]
    folder: str = SHARDS
    tested: Tested | None = None

    @property
    def is_map_pass(self) -> bool:
        """Whether it is the map pass."""
        return self.folder not in (SHARDS, PRECISION)


class _Decode:
    """A shard's images, read and decoded; runs in tasks next to the actors, or in a worker."""

    def __init__(
        self,
        source: Source,
        lungs: MaskFolder | None,
        sweep: Sweep,
        maps: Mapping[str, MapSet] | None = None,
        with_maps: Collection[str] = ("test", "stability"),
        shared: frozenset[str] = frozenset(),
    ):
        self.source, self.fit, self.sweep = source, sweep.data.fit, sweep
        self.maps, self.with_maps = maps or {}, with_maps
        truth = truth_of(sweep)
        self.truth = None if truth is None else replace(truth, shared=shared)
        folders = [folder for folder in (lungs, marker_of(sweep)) if folder is not None]
        self.folders = [replace(folder, shared=shared) for folder in folders]
        self.parts, self.changes = sweep.regions is not None, counterfactuals_of(sweep)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = json.loads(row["shard"])
        size, preprocess = shard["size"], shard["preprocess"]
        frame = pd.DataFrame(shard["rows"], columns=["image_id", "path"])
        pixels, keep, errors = load_pixels(self.source, frame, size, self.fit, preprocess)
        shard["rows"] = [r for r, kept in zip(shard["rows"], keep, strict=True) if kept]
        rows = shard["rows"] if self.parts and shard["split"] in ("test", "donors") else []
        changes = self.changes if shard["split"] == "test" else ()
        parts = load_parts(self.source, self.folders, rows, size, self.fit, preprocess, changes)
        truth, lost = self._truth(shard, parts.masks)
        with_donors = [r for r in shard["rows"] if self.parts and r.get("donor_image") is not None]
        named = [(r["image_id"], r["donor_image"]) for r in with_donors]
        donors = pd.DataFrame(named, columns=["image_id", "path"])
        pixels_of_donors, readable, unreadable = load_pixels(self.source, donors, size, self.fit, preprocess)
        masks = parts.masks | truth
        maps: tuple[dict[str, Any], list[Any]] = {}, []
        if shard["split"] in self.with_maps:
            maps = load_maps(self.maps, shard["rows"], size, self.fit, preprocess)
        shard |= {
            "donor_images": list(donors["image_id"][readable]),
            "masks": list(masks),
            "counterfactuals": list(parts.counterfactuals),
            "maps": {name: of.shape[1] for name, of in maps[0].items()},
            "errors": errors
            + parts.errors
            + lost
            + maps[1]
            + [{**error, "stage": "patch_swap"} for error in unreadable],
        }
        return {
            "shard": json.dumps(shard),
            "pixels": pixels.tobytes(),
            "masks": b"".join(mask.tobytes() for mask in masks.values()),
            "donor_images": pixels_of_donors.tobytes(),
            "counterfactuals": b"".join(rendering.tobytes() for rendering in parts.counterfactuals.values()),
            "maps": b"".join(of.tobytes() for of in maps[0].values()),
        }

    def _truth(self, shard: Mapping[str, Any], masks: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """Masks of the expert truth of a shard of test, and rows of errors; ``masks``: of parts, as far as known."""
        rows, settings = shard["rows"], (shard["size"], self.fit, shard["preprocess"])
        if shard["split"] != "test" or not rows or shard.get("comparisons"):
            return {}, []
        if self.truth is not None:
            return load_truth(self.source, self.truth, rows, *settings)
        if not masks and self.sweep.truth is not None and SOURCES[self.sweep.data.source].truth:
            masks = load_parts(self.source, (), rows, *settings).masks
        return own_truth(self.sweep, masks), []

    def in_time(self, row: dict[str, Any]) -> dict[str, Any]:
        """In a task, which ends where it hangs, also in C."""
        faulthandler.dump_traceback_later(DECODE_SECONDS, exit=True)
        try:
            return self(row)
        finally:
            faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class PassSettings:
    """What workers do in one pass.

    Attributes:
        sweep: of the pass.
        is_map_pass: predictions and maps are all that is made.
        tested: the primary metric and fill, once they are chosen.
    """

    sweep: Sweep
    is_map_pass: bool = False
    tested: Tested | None = None

    @classmethod
    def of(cls, shard_pass: ShardPass) -> PassSettings:
        """Those of a pass over shards."""
        return cls(shard_pass.context.sweep, shard_pass.is_map_pass, shard_pass.tested)


class _Explain:
    """A worker of the pool: takes rows that ``_Decode`` made and gives rows for ``_Write``, pass after pass."""

    def __init__(
        self, sweep: Sweep, store: Store, model_refs: Mapping[str, ModelRef], allocation: Allocation, passes: int
    ):
        import torch

        from cxr_ray.measure import precision
        from cxr_ray.measure.donors import DonorMaps
        from cxr_ray.measure.shards import Comparison, Shard
        from cxr_ray.measure.worker import Worker

        gpus = allocation.worker_gpus
        if allocation.threads:
            torch.set_num_threads(allocation.threads)
        if 0 < gpus < 1:  # its share of the memory as well
            torch.cuda.set_per_process_memory_fraction(gpus)
        self.shard_type, self.comparison_type = Shard, Comparison
        self.donor_maps, self.settings = partial(DonorMaps, store), PassSettings(sweep)
        device = "cuda" if gpus else "cpu"
        self.worker = Worker(sweep, model_refs, device, allocation.batch_size, passes, self.donor_maps(sweep))
        self.worker.precision_of = partial(precision.read, store)

    def begin(self, settings: PassSettings) -> None:
        """Begin a pass, if it is another than the last; models and inference backends stay."""
        if settings != self.settings:
            self.settings = settings
            self.worker.begin(settings.sweep, self.donor_maps(settings.sweep), settings.tested)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = self._shard(row)
        measured = self.worker.wins if shard.comparisons else self.worker
        tables = self.worker.map_pass(shard) if self.settings.is_map_pass else measured(shard)
        return {
            "name": shard.name,
            "images": len(shard.image_ids),
            "backend": str(self.worker.backend),
            "notes": self.worker.notes,
            "tables": tables,
        }

    def _shard(self, row: dict[str, Any]) -> Shard:
        plan = json.loads(row["shard"])
        rows, size = plan["rows"], plan["size"]

        def arrays(kind: str, dtype: type, *shape: int) -> dict[str, Any]:
            stacked: Any = np.frombuffer(row[kind], dtype).reshape(len(plan[kind]), *shape)
            return dict(zip(plan[kind], stacked, strict=True))

        maps, start = {}, 0
        for name, side in plan["maps"].items():
            values = np.frombuffer(row["maps"], np.float32, len(rows) * side * side, start)
            maps[name], start = values.reshape(len(rows), side, side), start + values.nbytes
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
            maps=maps,
            comparisons=[self.comparison_type(*c) for c in plan["comparisons"]],
            name=plan["name"],
        )


class _Write:
    """Puts a shard's tables in place; only its name goes on to the driver."""

    def __init__(self, store: Store, folder: str):
        self.store, self.folder = store, folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        tables = row["tables"]
        self.store.write_shard(row["name"], tables if isinstance(tables, bytes) else pack(tables), self.folder)
        return {key: row[key] for key in ("name", "images", "backend", "notes")}


def worker_maker(
    context: RunContext, model_refs: Mapping[str, ModelRef], passes: int
) -> Callable[[Allocation], Callable[[], Any]]:
    """How a worker of an allocation is made, in its process.

    ``passes``: forward passes that a worker makes with one model in all passes over shards.
    """
    sweep, store, refs = context.sweep, context.store, dict(model_refs)
    return lambda allocation: partial(_Explain, sweep, store, refs, allocation, passes)


def compute_shards(shard_pass: ShardPass, shards: Missing) -> Generator[ShardDone, None, None]:
    """Compute the shards and write each as a file of the run; yield what is told of each.

    Tasks of Ray Data read and decode, a worker of the pool takes each block, tasks write. A shard whose worker died is
    computed again under the same name; one that kills every worker is left for the end, and tried image by image.
    """
    pool, settings = shard_pass.pool, PassSettings.of(shard_pass)
    pool.start(len(shards))
    left: dict[str, ShardPlan] = {}
    blocks = _decoded(shard_pass, shards, left)
    block = next(blocks, None)  # Ray Data decodes while the workers start
    write, writer = ray.remote(num_cpus=0)(_write), _Write(shard_pass.context.store, shard_pass.folder)
    while block is not None or pool.is_busy:
        while block is not None and pool.is_free:
            pool.submit(_compute, settings, block, num_returns=2, kind=shard_pass.folder, most=deaths.MOST - 1)
            block = next(blocks, None)
        call, result = pool.wait()
        if isinstance(result, Died):
            continue  # it is left
        if not call.is_task:
            pool.add(write.remote(writer, result, call.refs[1]), call)
            continue
        for row in result:
            del left[row["name"]]
            yield ShardDone(row["images"], row["backend"], tuple(row["notes"]), row["name"])
    if left:
        yield from _computed_alone(shard_pass, list(left.values()))


def compute_here(
    context: RunContext,
    model_refs: Mapping[str, ModelRef],
    allocation: Allocation,
    settings: PassSettings,
    shards: Iterable[ShardPlan],
) -> Iterator[tuple[ShardPlan, Any]]:
    """Compute shards one after another in this process, without Ray; nothing is written.

    Yields:
        Each shard with its tables; in a map pass, with the bytes of its file.
    """
    decode = decode_of(context, settings.is_map_pass)
    explain = _Explain(settings.sweep, context.store, model_refs, allocation, passes=0)
    explain.begin(settings)
    for shard in shards:
        yield shard, explain(decode({"shard": json.dumps(shard.to_plain())}))["tables"]


def decode_of(context: RunContext, is_map_pass: bool) -> _Decode:
    """What reads and decodes the shards of a pass. After a map pass, those of test have their maps from outside."""
    from cxr_ray.measure.controls import needs_map_pass  # torch

    with_maps = ("test", "stability") if is_map_pass or not needs_map_pass(context.sweep) else ("stability",)
    lungs, shared = lungs_of(context.sweep), context.manifest.shared
    return _Decode(context.source, lungs, context.sweep, context.maps.sets, with_maps, shared)


def _computed_alone(shard_pass: ShardPass, shards: list[ShardPlan]) -> Generator[ShardDone, None, None]:
    """Shards whose decoding or worker died, in workers alone."""
    context = shard_pass.context
    terminal.say(f"  {len(shards)} shards ended the processes that computed them: what of each does so?")
    ask = compute_piece, PassSettings.of(shard_pass), decode_of(context, shard_pass.is_map_pass)
    alone = OneByOne(shard_pass.pool, ask, context.store, shard_pass.folder, shard_pass.is_map_pass)
    yield from alone.run(shards)
    for row in alone.given_up:
        terminal.say(f"  left out: {row['path']}, an error: {row['reason']}")


def _decoded(shard_pass: ShardPass, shards: Missing, left: dict[str, ShardPlan]) -> Iterator[Any]:
    """References to blocks of decoded shards, by Ray Data; those whose decoding dies are left out.

    ``left``: by name, takes the shards that were handed out.
    """
    pool, waiting, decode = shard_pass.pool, iter(shards), decode_of(shard_pass.context, shard_pass.is_map_pass)
    limits = ray.data.ExecutionResources.for_limits(cpu=pool.free_cpus)  # Ray Data does not know of the workers
    n = in_a_portion(shards.plan.longest, shard_pass.allocation)
    while portion := list(islice(waiting, n)):
        left |= {shard.name: shard for shard in portion}
        rows = [{"shard": json.dumps(shard.to_plain())} for shard in portion]
        source = ray.data.from_items(rows, override_num_blocks=len(rows))  # one block a shard
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # no other way is documented yet
            # a plain function: a class would become an actor; tried once, since Ray Data would try again for ever
            decoded = source.map(decode.in_time, num_cpus=LIGHT_CPUS, max_retries=0)
        decoded.context.execution_options.resource_limits = limits
        decoded.context.max_errored_blocks = -1
        for bundle in decoded.iter_internal_ref_bundles():
            yield from bundle.block_refs


def in_a_portion(longest: int, allocation: Allocation) -> int:
    """Shards that Ray Data is given at a time; ``longest``: images in the longest."""
    least = GPU_PORTION // longest if allocation.worker_gpus else 0
    return max(max(PORTION[0] // longest, PORTION[1]) * allocation.workers, least)


def _compute(explain: _Explain, settings: PassSettings, block: pa.Table) -> tuple[list[dict[str, Any]], list[Any]]:
    """In a worker: a block of decoded shards to what the driver is told of each, and to the tables of each."""
    explain.begin(settings)
    rows = [explain(row) for row in block.to_pylist()]
    tables = [row.pop("tables") for row in rows]
    return rows, tables


def compute_piece(
    explain: _Explain, settings: PassSettings, decode: _Decode, shard: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """In a worker: a shard, or a piece of one, from its files to what is told of it and its tables."""
    explain.begin(settings)
    row = explain(decode({"shard": json.dumps(shard)}))
    tables = row.pop("tables")
    return row, tables


def compute_block(
    explain: _Explain, settings: PassSettings, decode: _Decode, write: _Write, row: dict[str, Any]
) -> None:
    """In a worker: all that a block of sequential verdicts takes, which is less work than tasks would be."""
    explain.begin(settings)
    write(explain(decode(row)))


def _write(writer: _Write, rows: list[dict[str, Any]], tables: list[Any]) -> list[dict[str, Any]]:
    """In a task: put what ``_compute`` gave in place."""
    return [writer({**row, "tables": made}) for row, made in zip(rows, tables, strict=True)]


def sum_maps(shard_pass: ShardPass, groups: list[dict[str, Any]]) -> None:
    """Write the sums that mean_map needs: one for each group of trial_id, explainer, target, predicted and size."""
    pool, sweep = shard_pass.pool, shard_pass.context.sweep
    pool.start(len(groups))
    waiting = deque(groups)
    while waiting or pool.is_busy:
        while pool.is_free and waiting:
            pool.submit(_sum, sweep, waiting.popleft(), kind="sums")
        _, result = pool.wait()
        if isinstance(result, Died):
            raise WorkersError(
                f"got workers whose processes ended {deaths.MOST} times while they summed maps ({result.reason}); "
                "expected one that stays alive; use fewer workers where memory is short (--set resources.workers=1); "
                "then --resume goes on."
            )


def _sum(explain: _Explain, sweep: Sweep, group: dict[str, Any]) -> None:
    """In a worker, which has torch loaded and nothing else to do."""
    target = group["explainer"], group["target"]
    explain.donor_maps(sweep).write_total(group["trial_id"], target, group["predicted"], group["size"])
