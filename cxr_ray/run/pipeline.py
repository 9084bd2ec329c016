"""Ray Data: read, decode, explain and perturb, write. One execution for all models and images of a sweep.

Before it, where a control needs other images' maps, a smaller one makes the predictions and the maps.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import ray

from cxr_ray.config import Sweep
from cxr_ray.data.entries import Source
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import Manifest
from cxr_ray.data.masks import MaskFolder, load_parts, lungs_of
from cxr_ray.data.sources import counterfactuals_of
from cxr_ray.errors import ClusterError
from cxr_ray.quiet import silent
from cxr_ray.storage import SHARDS, Store, chunks, pack

if TYPE_CHECKING:
    from cxr_ray.measure.worker import ModelRef  # imports torch, which tasks that read and write do without

# A unit of work is at most so many images and about so many forward passes: seconds on a GPU, a minute on a CPU core.
# It depends on the sweep and on the kind of device alone, so that tables do not depend on workers and batches.
SHARD_IMAGES = 16
SHARD_PASSES = {"gpu": 32768, "cpu": 1024}
LIGHT_CPUS = 0.5  # what a task that reads or writes asks for
LOCAL_SPARE_CPUS = 1  # logical CPUs for those, beside the real ones that compute
PROCESS_MEMORY = 1.25 * 2**30, 1.5 * 2**30 / 224**2  # bytes that a trial or worker takes: always, and a pixel's
SPLITS = ("val", "test")


def start_ray() -> bool:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine alone. Returns whether it started one.

    Raises:
        ClusterError: the cluster does not answer.
    """
    # Tune's tables, Data's bars and plans give way to our own lines
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    for library in ("ray.data", "ray.tune"):  # their stack traces: what ended a trial or a run is told in a line
        logging.getLogger(library).setLevel(logging.CRITICAL)
    for name, value in (
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_BACKEND_LOG_LEVEL", "fatal"),
    ):
        os.environ.setdefault(name, value)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            with silent(2):  # Ray says there that it was told to be quiet
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as e:
            reason = str(e).strip().splitlines()[0]
            raise ClusterError(
                f"RAY_ADDRESS={address}: no cluster answers ({reason}). Unset it to run locally."
            ) from None
        return False
    with silent(2):
        ray.init(address="local", num_cpus=_cores() + LOCAL_SPARE_CPUS, include_dashboard=False, **quiet)
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Resources:
    """What the cluster has and what this sweep takes of it.

    Attributes:
        line: one line for the user.
        trial: CPUs and GPUs of a trial; concurrent_trials: how many at a time.
        workers: actors; worker_gpus: GPUs of each; threads: torch threads of each, 0 for Ray's own choice.
    """

    def __init__(self, sweep: Sweep, n_trials: int, size: int, *, local: bool):
        """Asks Ray. ``n_trials``: still to be trained; ``size``: of the largest images.

        Raises:
            ClusterError: the sweep asks for more than there is.
        """
        asked, have = sweep.resources, ray.cluster_resources()
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        gpus, spare = float(have.get("GPU", 0)), LOCAL_SPARE_CPUS if local else 0
        cpus = float(have.get("CPU", 0)) - spare
        most_cpus, most_gpus = (max((float(n.get(k, 0)) for n in nodes), default=0.0) for k in ("CPU", "GPU"))
        automatic = 1.0 if gpus else 0.0

        trial_gpus = automatic if asked.gpu_per_trial == "auto" else float(asked.gpu_per_trial)
        self.worker_gpus = automatic if asked.gpu_per_worker == "auto" else float(asked.gpu_per_worker)
        for key, wanted in (("gpu_per_trial", trial_gpus if n_trials else 0), ("gpu_per_worker", self.worker_gpus)):
            if wanted > most_gpus:
                raise ClusterError(
                    f"resources.{key}: {wanted:g} came, but the largest machine has {most_gpus:g} GPUs; give at most "
                    f"that, 0 or auto (--set resources.{key}=auto)."
                )
        if n_trials and asked.cpu_per_trial > most_cpus - spare:
            raise ClusterError(
                f"resources.cpu_per_trial: {asked.cpu_per_trial:g} came, but the largest machine has "
                f"{most_cpus - spare:g} CPUs; give at most that (--set resources.cpu_per_trial={most_cpus - spare:g})."
            )
        each = PROCESS_MEMORY[0] + PROCESS_MEMORY[1] * size**2
        by_memory = max(1, sum(int(min(n.get("memory", 2**60) // each, n.get("CPU", 0))) for n in nodes))
        by_cpu = cpus // asked.cpu_per_trial
        by_gpu = _slots(nodes, trial_gpus) if trial_gpus else by_cpu
        self.concurrent_trials = max(1, int(min(by_cpu, by_gpu, by_memory, n_trials or 1)))
        alone = cpus // self.concurrent_trials if local and not trial_gpus else 0  # else CPUs would lie idle
        self.trial = {"cpu": max(asked.cpu_per_trial, alone), "gpu": trial_gpus}

        free_cpus = int(cpus) if local else int(cpus) - 1  # reading and writing need a CPU that no actor holds
        room = min(_slots(nodes, self.worker_gpus), free_cpus) if self.worker_gpus else free_cpus
        if room < 1:
            raise ClusterError(f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs; explaining needs at least 2 CPUs.")
        if asked.workers != "auto" and asked.workers > room:
            raise ClusterError(
                f"resources.workers: {asked.workers} came, but there is room for {room} (one CPU and "
                f"{self.worker_gpus:g} GPUs each); give at most that, or auto (--set resources.workers=auto)."
            )
        self.workers = min(room, by_memory) if asked.workers == "auto" else asked.workers
        self.threads = max(1, int(cpus) // self.workers) if local and not self.worker_gpus else 0
        self.batch_size = None if asked.batch_size == "auto" else asked.batch_size  # None: found on the device
        where = "this machine" if local else f"the cluster of {len(nodes)} machine{'s' * (len(nodes) != 1)}"
        device = f"GPUs {gpus:g}" if gpus else "no GPU, so on CPUs"
        self.line = (
            f"Ray on {where}: CPUs {cpus:g}, {device}. Trials at a time: up to {self.concurrent_trials}; then workers: "
            f"{self.workers}."
        )
        if self.workers < room and asked.workers == "auto":
            self.line += f" More would not fit in memory, at {each / 2**30:.1f} GiB each (resources.workers overrides)."
        self.n_nodes = len(nodes)


def _slots(nodes: list[dict[str, Any]], gpus_each: float) -> int:
    """How many pieces of ``gpus_each`` GPUs fit on the machines; a fraction never spans two GPUs."""
    have = [int(n.get("GPU", 0)) for n in nodes]
    return sum(int(g // gpus_each) if gpus_each >= 1 else g * int(1 / gpus_each + 1e-9) for g in have)


def plan_shards(
    manifest: Manifest,
    model_refs: Mapping[str, ModelRef],
    passes_per_image: Mapping[str, int],
    device: str,
    sanity: pd.DataFrame,
    sanity_passes: Mapping[str, int],
    partners: Mapping[str, str],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Units of work: trial_id to unit name to what the unit needs. Blocks of images of one split, in order.

    ``passes_per_image``: by trial_id. ``device``: cpu or gpu. A unit's name holds its size, so that a run resumed on
    another kind of device is whole. ``sanity``: images of test whose maps are compared with those of random weights, in
    units of a split of that name, at ``sanity_passes`` an image by trial_id. ``partners``: image_id to the path of the
    image that it exchanges parts with.
    """
    images = {**{split: manifest.rows(split) for split in SPLITS}, "sanity": sanity}
    rows_of = {split: rows[["image_id", "path", "label"]].to_dict("records") for split, rows in images.items()}
    for row in rows_of["test"]:
        row["partner"] = partners.get(row["image_id"])
    plan: dict[str, dict[str, dict[str, Any]]] = {}
    for trial_id, model_ref in model_refs.items():
        plan[trial_id] = {}
        passes = {"val": 1, "test": passes_per_image[trial_id], "sanity": max(1, sanity_passes[trial_id])}
        length = {split: max(1, min(SHARD_IMAGES, SHARD_PASSES[device] // n)) for split, n in passes.items()}
        for split in rows_of:
            for i, rows in enumerate(chunks(rows_of[split], length[split])):
                name = f"{trial_id}.{split}.{length[split]}.{i:05d}"
                plan[trial_id][name] = {
                    "unit": name, "trial_id": trial_id, "split": split, "size": model_ref.size,
                    "preprocess": model_ref.preprocess, "rows": rows,
                }  # fmt: skip
    return plan


class _Decode:
    """A unit's images, read and decoded; runs in tasks beside the actors."""

    def __init__(self, source: Source, lungs: MaskFolder | None, sweep: Sweep):
        self.source, self.lungs, self.fit = source, lungs, sweep.data.fit
        self.parts, self.changes = sweep.regions is not None, counterfactuals_of(sweep)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = json.loads(row["unit"])
        size, preprocess = unit["size"], unit["preprocess"]
        frame = pd.DataFrame(unit["rows"], columns=["image_id", "path", "label", "partner"])
        pixels, keep, errors = load_pixels(self.source, frame, size, self.fit, preprocess)
        unit["rows"] = [r for r, kept in zip(unit["rows"], keep, strict=True) if kept]
        rows = unit["rows"] if self.parts and unit["split"] == "test" else []
        parts = load_parts(self.source, self.lungs, rows, size, self.fit, preprocess, self.changes)
        lent = frame[keep & frame["partner"].notna() & self.parts]
        lent = lent[["image_id", "partner"]].rename(columns={"partner": "path"})
        donors, there, lost = load_pixels(self.source, lent, size, self.fit, preprocess)
        unit["partners"] = list(lent["image_id"][there])
        errors += [{**row, "stage": "patch_swap"} for row in lost]
        unit |= {
            "errors": errors + parts.errors,
            "masks": list(parts.masks),
            "counterfactuals": list(parts.counterfactuals),
        }
        return {
            "unit": json.dumps(unit),
            "pixels": pixels.tobytes(),
            "masks": b"".join(mask.tobytes() for mask in parts.masks.values()),
            "partners": donors.tobytes(),
            "counterfactuals": b"".join(rendering.tobytes() for rendering in parts.counterfactuals.values()),
        }


class _Explain:
    """The actor: a Worker that takes and gives rows of Ray Data."""

    def __init__(
        self,
        sweep: Sweep,
        model_refs: Mapping[str, ModelRef],
        batch_size: int | None,
        threads: int,
        gpus: float,
        passes: int,
        store: Store,
        first: bool,
    ):
        import torch

        from cxr_ray.measure.donors import OtherMaps
        from cxr_ray.measure.worker import Shard, Worker

        if threads:
            torch.set_num_threads(threads)
        self.block, self.first = Shard, first
        if 0 < gpus < 1:  # its share of the memory as well
            torch.cuda.set_per_process_memory_fraction(gpus)
        device = "cuda" if gpus else "cpu"
        self.worker = Worker(sweep, model_refs, device, batch_size, passes, OtherMaps(store, sweep))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = json.loads(row["unit"])
        rows, size = unit["rows"], unit["size"]

        def arrays(names: str, dtype: type, *shape: int) -> dict[str, Any]:
            stacked: Any = np.frombuffer(row[names], dtype).reshape(len(unit[names]), len(rows), *shape)
            return dict(zip(unit[names], stacked, strict=True))

        block = self.block(
            trial_id=unit["trial_id"],
            split=unit["split"],
            image_ids=[r["image_id"] for r in rows],
            paths=[r["path"] for r in rows],
            labels=[r["label"] for r in rows],
            pixels=np.frombuffer(row["pixels"], np.uint8).reshape(len(rows), 3, size, size),
            errors=unit["errors"],
            masks=arrays("masks", np.bool_, size, size),
            counterfactuals=arrays("counterfactuals", np.uint8, 3, size, size),
            partners=dict(
                zip(unit["partners"], np.frombuffer(row["partners"], np.uint8).reshape(-1, 3, size, size), strict=True)
            ),
            unit=unit["unit"],
        )
        tables = self.worker.first(block) if self.first else pack(self.worker(block))
        return {"unit": unit["unit"], "images": len(rows), "form": str(self.worker.form), "tables": tables}


class _Write:
    """Puts a unit's tables in place; only its name goes on to the driver."""

    def __init__(self, store: Store, folder: str):
        self.store, self.folder = store, folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.store.write_shard(row["unit"], row["tables"], self.folder)
        return {name: row[name] for name in ("unit", "images", "form")}


def explain_sweep(
    sweep: Sweep,
    units: list[dict[str, Any]],
    model_refs: Mapping[str, ModelRef],
    source: Source,
    store: Store,
    resources: Resources,
    passes_per_image: Mapping[str, int],
    *,
    first: str | None = None,
) -> Generator[tuple[int, str], None, None]:
    """Computes the units and writes each as a file of the run; yields (images, form of the forward pass) a unit.

    A killed actor is started again and its units are computed again under the same names. ``first``: the folder for
    predictions and maps, where these are all that is to be made.
    """
    rows = [{"unit": json.dumps(unit)} for unit in units]
    total = sum(passes_per_image[u["trial_id"]] * len(u["rows"]) for u in units if u["split"] == "test")
    passes = total // (len(model_refs) * min(resources.workers, len(rows)))  # of a model, a worker
    pool = ray.data.ActorPoolStrategy(size=min(resources.workers, len(rows)))
    # plain functions: classes would become actors of their own
    decode, write = _Decode(source, lungs_of(sweep), sweep), _Write(store, first or SHARDS)
    done = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(decode.__call__, num_cpus=LIGHT_CPUS)
        .map(
            _Explain,  # type: ignore[arg-type]
            fn_constructor_kwargs={
                "sweep": sweep, "model_refs": dict(model_refs), "batch_size": resources.batch_size,
                "threads": resources.threads, "gpus": resources.worker_gpus, "passes": passes, "store": store,
                "first": first is not None,
            },
            compute=pool,
            num_cpus=1,
            num_gpus=resources.worker_gpus or None,
        )
        .map(write.__call__, num_cpus=LIGHT_CPUS)
    )  # fmt: skip
    for row in done.iter_rows():
        yield row["images"], row["form"]


class _Total:
    """Writes the sum of rank maps that mean_map needs, of one model, explainer, target and prediction."""

    def __init__(self, sweep: Sweep, store: Store):
        self.sweep, self.store = sweep, store

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from cxr_ray.measure.donors import OtherMaps

        target = row["explainer"], row["target"]
        OtherMaps(self.store, self.sweep).write_total(row["trial_id"], target, row["predicted"], row["size"])
        return {"trial_id": row["trial_id"]}


def sum_maps(sweep: Sweep, groups: list[dict[str, Any]], store: Store) -> None:
    """Writes the sums that mean_map needs: one for each group of trial_id, explainer, target, predicted and size."""
    total = _Total(sweep, store)
    rows = ray.data.from_items(groups, override_num_blocks=len(groups)).map(total.__call__, num_cpus=1)
    for _ in rows.iter_rows():
        pass
