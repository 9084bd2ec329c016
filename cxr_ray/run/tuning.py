"""Ray Tune: trains the trials, stops the worst early, goes on with those that were interrupted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

import ray
from pyarrow import fs as pafs
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from cxr_ray.errors import DamagedRunError
from cxr_ray.run import terminal
from cxr_ray.run.cluster import Allocation
from cxr_ray.run.context import RunContext
from cxr_ray.run.plan import TrialPlan
from cxr_ray.run.training_data import TrainingData
from cxr_ray.schemas import to_json
from cxr_ray.storage import Store

MAX_FAILURES = 2
_FOLDER = "tune"
_KEY = "plan"  # under which Tune's files keep a trial


def _asha(max_epochs: int) -> ASHAScheduler:
    """Stop the worst two thirds after 1, 3, 9, ... epochs."""
    return ASHAScheduler(
        time_attr="epoch", metric="val_auroc", mode="max", max_t=max_epochs, grace_period=1, reduction_factor=3
    )


class GroupedASHA(FIFOScheduler):
    """One ASHA for each variant and grid point, so that no variant is starved by another."""

    def __init__(self, max_epochs: dict[str, int]):
        super().__init__()
        self.groups = {group: _asha(max_t) for group, max_t in max_epochs.items()}

    def _group(self, trial: Any) -> ASHAScheduler:
        return self.groups[trial.config[_KEY]["group"]]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Ray's hook."""
        self._group(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray's hook."""
        return self._group(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ray's hook."""
        self._group(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Ray's hook."""
        self._group(trial).on_trial_remove(tune_controller, trial)

    def save(self, checkpoint_path: str) -> None:
        """Ray's hook, for resuming."""
        ASHAScheduler.save(self, checkpoint_path)  # type: ignore[arg-type]

    def restore(self, checkpoint_path: str) -> None:
        """Ray's hook, for resuming."""
        ASHAScheduler.restore(self, checkpoint_path)  # type: ignore[arg-type]


class _Progress(Callback):
    """A line for each epoch of each trial."""

    def __init__(self, total: int):
        self.total, self.finished = total, 0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "val_auroc" in result:
            plan = trial.config[_KEY]
            terminal.say(
                f"  {plan['trial_id']}  epoch {result['epoch']}/{plan['train']['epochs']}  "
                f"train loss {result['train_loss']:.3f}  val AUROC {result['val_auroc']:.3f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.finished += 1
        terminal.say(f"  {trial.config[_KEY]['trial_id']}  finished ({self.finished} of {self.total} trials)")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        terminal.say(f"  {trial.config[_KEY]['trial_id']}  failed")


def tune_sweep(
    context: RunContext, trials: Sequence[TrialPlan], data: TrainingData, allocation: Allocation
) -> list[dict[str, Any]]:
    """Run (or go on with) the trials; copy each one's best weights to ``checkpoints/<trial_id>/``.

    Returns:
        Rows of the ``trials`` table.

    Raises:
        DamagedRunError: Tune cannot read what it wrote before.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune's ends the trials and lets the run go on
    store, device = context.store, "cuda" if allocation.trial_gpus else "cpu"
    splits = {key: ray.put(split) for key, split in data.splits.items()}
    states = {key: ray.put(state) for key, state in data.states.items()}
    images_of = context.sweep.images_of

    def trainable(config: dict[str, Any]) -> None:
        from cxr_ray.run.trial import run_trial  # and no module that trials do without

        plan = TrialPlan.from_config(config[_KEY])
        state = ray.get(states[plan.model.weights, plan.model.arch])
        run_trial(plan, ray.get(splits[images_of(plan.model)]), state, device)

    resources = {"cpu": allocation.trial_cpus, "gpu": allocation.trial_gpus}
    runnable = tune.with_resources(trainable, {k: v for k, v in resources.items() if v})
    folder = store.path(_FOLDER)
    try:
        if _can_restore(store.fs, folder):
            tuner = tune.Tuner.restore(folder, trainable=runnable, restart_errored=True, storage_filesystem=store.fs)
        else:
            tuner = _new_tuner(runnable, context, trials, allocation.concurrent_trials)
        finished: Any = tuner.fit()
    except (EOFError, KeyError, pickle.PickleError) as e:  # of what it wrote, and read again
        raise DamagedRunError(
            f"got files in {folder} that Ray Tune wrote and cannot read ({type(e).__name__}: {e}): the disk was full, "
            "or they are damaged; expected whole ones; make room, or delete that folder; --resume then goes on, or "
            "trains again."
        ) from None
    by_id = {r.config[_KEY]["trial_id"]: r for r in finished if _KEY in (r.config or {})}
    return [_row(by_id[t.trial_id], t, store) for t in trials if t.trial_id in by_id]


def _new_tuner(runnable: Any, context: RunContext, trials: Sequence[TrialPlan], max_concurrent: int) -> tune.Tuner:
    """A tuner that has not begun."""

    def name(trial: Any) -> str:
        return str(trial.config[_KEY]["trial_id"])

    groups = {t.group: t.train.epochs for t in trials}
    scheduler = GroupedASHA(groups) if context.sweep.search.scheduler == "asha" else FIFOScheduler()
    return tune.Tuner(
        runnable,
        param_space={_KEY: tune.grid_search([t.to_config() for t in trials])},
        tune_config=tune.TuneConfig(
            metric="val_auroc",
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,  # a process starts longer than many a trial trains
            trial_name_creator=name,
            trial_dirname_creator=name,
        ),
        run_config=tune.RunConfig(
            name=_FOLDER,
            storage_path=context.store.path(),
            storage_filesystem=context.store.fs,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_Progress(len(trials))],
        ),
    )


def _can_restore(fs: pafs.FileSystem, folder: str) -> bool:
    """Whether Tune's state is complete: without experiment_state-*.json it would restore one trial without a config."""
    names = [i.base_name for i in fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))]
    return "tuner.pkl" in names and any(n.startswith("experiment_state") and n.endswith(".json") for n in names)


def _row(result: Any, plan: TrialPlan, store: Store) -> dict[str, Any]:
    """A row of ``trials``; copies the best weights."""
    trial_id, metrics = plan.trial_id, result.metrics or {}
    epochs = metrics.get("epoch", 0)
    if result.checkpoint is not None:
        target = store.path("checkpoints", trial_id)
        store.fs.create_dir(target, recursive=True)
        with result.checkpoint.filesystem.open_input_stream(f"{result.checkpoint.path}/model.safetensors") as f:
            store.write(f.read(), "checkpoints", trial_id, "model.safetensors")
    failed = result.error is not None or result.checkpoint is None
    status = "failed" if failed else "completed" if epochs >= plan.train.epochs else "stopped"
    error = str(result.error).strip().splitlines()[-1] if result.error is not None else None
    if error is not None and "OutOfMemoryError" in error:
        error += " Trials take a GPU each with --set resources.gpu_per_trial=1."
    return {
        "trial_id": trial_id,
        "variant": plan.variant,
        "seed": plan.train.seed,
        "config": to_json({"model": plan.model.model_dump(), "train": plan.train.model_dump()}),
        "status": status,
        "epochs": epochs,
        "best_epoch": metrics.get("best_epoch"),
        "val_auroc": metrics.get("best_auroc"),
        "checkpoint": None if result.checkpoint is None else f"checkpoints/{trial_id}/model.safetensors",
        "train_seconds": metrics.get("seconds"),
        "device": metrics.get("trained_on"),
        "error": error,
    }


def drop_checkpoints(store: Store) -> None:
    """Removes Tune's own checkpoints, once the best weights are copied; its logs stay."""
    selector = pafs.FileSelector(store.path(_FOLDER), recursive=True, allow_not_found=True)
    for info in store.fs.get_file_info(selector):
        if info.type == pafs.FileType.Directory and info.base_name.startswith("checkpoint_"):
            store.fs.delete_dir(info.path)
