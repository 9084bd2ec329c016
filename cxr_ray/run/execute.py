"""The stages of a run in order: training, map pass, scoring pass, statistics, report."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from typing import Any

import ray

from cxr_ray import results
from cxr_ray.counting import telling
from cxr_ray.data import masks, sources
from cxr_ray.data.truth import truth_of
from cxr_ray.errors import UserError
from cxr_ray.measure.worker import ModelRef
from cxr_ray.models.training import device_memory
from cxr_ray.run import (
    cluster,
    explaining,
    progress,
    resume,
    second_worker,
    shared_storage,
    terminal,
    tracking,
    training_data,
    tuning,
)
from cxr_ray.run.ahead import RayAhead
from cxr_ray.run.cluster import Allocation
from cxr_ray.run.context import RunContext
from cxr_ray.run.training_data import TrainingData
from cxr_ray.run.trial_plans import TrialPlan, of_table, reachable
from cxr_ray.schemas import to_json
from cxr_ray.storage import sealed_json


def execute(context: RunContext, ahead: RayAhead) -> bool:
    """Run the sweep from its first stage, or from where it stopped, to its report. Returns whether it is finished.

    ``ahead``: Ray, which may be starting. It ends with the last stage that needs it.

    Raises:
        UserError: the cluster does not answer, has less than the sweep asks for, or no trial can be used.
        DamagedRunError: a file of the run cannot be read.
    """
    started, store = time.monotonic(), context.store
    to_train = () if store.exists("tables", "trials", "part-0.parquet") else context.trials
    try:
        ahead.start()
        training = _training_data(context, to_train)
        with progress.stage("Starting Ray"):
            allocation = allocate(context, len(to_train), ahead)
        terminal.say(allocation.line)
        resume.begin(context)
        store.write_table("images", context.manifest.table)
        errors = train(context, to_train, training, allocation)
        del training  # pixels, for which explaining has better use
        table = results.open_run(store.out).pandas("trials")
        context = replace(context, trials=of_table(context.sweep, context.trials, table))
        model_refs = explaining.chosen_models(context, table)
        if not explaining.explain(context, model_refs, allocation, errors):
            return False
    except (ray.exceptions.RayError, ray.tune.TuneError) as e:
        terminal.complain(f"Ray stopped: {reason_of(e)}\nthe same command with --resume goes on from here.")
        return False
    ahead.close()
    with progress.stage("Statistics", unit="tables") as stage:
        from cxr_ray.run import statistics  # scipy.stats, sklearn: seconds

        stage.total = statistics.N_TABLES
        statistics.write_statistics(context.sweep, store, stage.advance)
    with progress.stage("Page", unit="parts") as stage:
        from cxr_ray.report import document as report  # matplotlib

        report.write_report(store.out, stage=stage)
    tracking.conclude(context)
    resume.mark_finished(store)
    store.clean()  # of what only an unfinished run needs
    terminal.say(f"Done in {terminal.duration(time.monotonic() - started)}.\n")
    return True


def _training_data(context: RunContext, trials: tuple[TrialPlan, ...]) -> TrainingData:
    asked = reachable(context.sweep, trials)
    sizes = {context.sweep.images_of(t.model) for t in asked}
    total = len(sizes) * sum(len(context.manifest.rows(split)) for split in ("train", "val"))
    with progress.stage("Reading the training images", total or None, "images") as stage, telling(stage.advance):
        return training_data.load_training_data(context, asked)


def reason_of(error: Exception) -> str:
    """What ended it: the last line of the innermost traceback, which Ray puts first."""
    lines = str(error).split("\n\nThe above exception was")[0].splitlines()
    reason = next((line.strip() for line in reversed(lines) if any(map(str.isalpha, line))), type(error).__name__)
    if not reason.startswith("torch.OutOfMemoryError"):
        return reason
    return (
        f"{reason} Less memory is taken by a smaller batch (--set resources.batch_size=32) or by fewer workers on a "
        "GPU (--set resources.gpu_per_worker=1)."
    )


def allocate(context: RunContext, n_trials: int, ahead: RayAhead) -> Allocation:
    """Wait for Ray, and divide what it has. ``n_trials``: still to be trained.

    Raises:
        UserError: paths that not every machine sees, or a cluster that does not do.
    """
    sweep = context.sweep
    local = ahead.started()
    trials = reachable(sweep, context.trials)
    sizes = [sweep.images_of(t.model)[0] for t in trials] + [ref.size for ref in context.given.values()]
    n_train = len(context.manifest.rows("train"))
    memory = [device_memory(n_train, sweep.images_of(t.model)[0], t.train.batch_size) for t in trials]
    request = cluster.Request(sweep.resources, n_trials, max(sizes), local, max(memory, default=0.0))
    ask_gpus = n_trials > 0 and sweep.resources.gpu_per_trial == "auto"
    nodes = cluster.ray_nodes(ask_gpus)
    allocation = cluster.with_doubled(cluster.allocate(nodes, request), nodes, request)
    allocation = second_worker.allocation_of(sweep, allocation)
    folders = [masks.lungs_of(sweep), masks.marker_of(sweep), truth_of(sweep)]
    paths = [context.source.where] if sources.SOURCES[sweep.data.source].on_disk else []
    paths += [images] if (images := getattr(context.source, "images", None)) else []
    paths += [folder.path for folder in folders if folder is not None]
    paths += [of.files.path for of in context.maps.sets.values()]
    paths += [ref.checkpoint for ref in context.given.values()]
    if allocation.n_nodes > 1:
        shared_storage.check(context.store, paths)
    return allocation


def train(
    context: RunContext, trials: tuple[TrialPlan, ...], training: TrainingData, allocation: Allocation
) -> list[dict[str, Any]]:
    """Train what is not trained yet and write the table ``trials``; returns the rows of ``errors`` so far.

    Raises:
        UserError: every trial failed.
        OSError: the disk is full.
    """
    store, errors = context.store, [*context.manifest.errors, *training.errors]
    if store.exists("tables", "trials", "part-0.parquet"):
        before = resume.training_errors(store)
        return errors if before is None else before  # training's are not met again
    rows = [_given_row(ref) for ref in context.given.values()]
    if trials:
        rows = _trained_rows(context, trials, training, allocation) + rows
    store.write(sealed_json({"rows": errors}), *resume.TRAINING_ERRORS)
    store.write_table("trials", rows)
    return errors


def _trained_rows(
    context: RunContext, trials: tuple[TrialPlan, ...], training: TrainingData, allocation: Allocation
) -> list[dict[str, Any]]:
    terminal.say(f"Trials to train: {len(trials)}")
    rows = tuning.tune_sweep(context, trials, training, allocation)
    failed = [r for r in rows if r["status"] == "failed"]
    for row in failed:
        terminal.say(f"  {row['trial_id']} failed: {row['error']}")
        for number in (errno.ENOSPC, errno.EDQUOT):  # of the machine, not of the trial: --resume trains it
            if os.strerror(number) in str(row["error"]):
                raise OSError(number, f"{row['trial_id']}: {row['error']}")
    if len(failed) == len(rows):
        last = failed[-1]["error"] if failed else "no trial ran"
        raise UserError(f"got no trained network, since every trial failed; the last one with: {last}.")
    return rows


def _given_row(model_ref: ModelRef) -> dict[str, Any]:
    unknown = dict.fromkeys(("seed", "epochs", "best_epoch", "val_auroc", "train_seconds", "device", "error"))
    return {
        **unknown,
        "trial_id": model_ref.trial_id,
        "variant": model_ref.trial_id,
        "status": "given",
        "config": to_json(vars(model_ref.spec) if model_ref.spec else {}),
        "checkpoint": model_ref.checkpoint,
    }
