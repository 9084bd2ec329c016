"""Ray Tune: trains the trials, stops the worst early, goes on with those that were interrupted.

Tune's own state is pickled, so it lies in no run's folder, and is never read: whoever can write into a run's folder
could run code. A run goes on from the files of its trials (``trial_files``), whose metrics are told to a new scheduler.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from cxr_ray.credentials import redacted
from cxr_ray.run import deaths, progress, terminal, tracking
from cxr_ray.run.cluster import Allocation
from cxr_ray.run.context import RunContext
from cxr_ray.run.searching import OptunaSearches, known_trials
from cxr_ray.run.training_data import TrainingData
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.run.trial_plans import TrialPlan
from cxr_ray.schemas import to_json

MAX_FAILURES = 2
_KEY = "plan"  # under which Tune keeps a trial
History = list[dict[str, Any]]  # the metrics of each epoch


def _asha(max_epochs: int) -> ASHAScheduler:
    """Stop the worst two thirds after 1, 3, 9, ... epochs."""
    return ASHAScheduler(
        time_attr="epoch", metric="val_auroc", mode="max", max_t=max_epochs, grace_period=1, reduction_factor=3
    )


class GroupedASHA(FIFOScheduler):
    """One ASHA for each variant and grid point, so that no variant is starved by another.

    Args:
        trials: those that are known; others are added as they begin, in groups that are known.
        files_of: trial_id to the files of a trial; notes there which ones it stops.
        histories: metrics of the epochs that are behind, by trial: they count as if they were reported now.
    """

    def __init__(
        self, trials: Sequence[TrialPlan], files_of: Callable[[str], TrialFiles], histories: Mapping[str, History]
    ) -> None:
        super().__init__()
        self.files_of = files_of
        self.groups = {t.group: _asha(t.train.epochs) for t in trials}
        self.added: set[str] = set()
        for trial in trials:
            named = self._add(trial.group, trial.trial_id)
            for metrics in histories.get(trial.trial_id, ()):
                asha: Any = self.groups[trial.group]
                asha.on_trial_result(None, named, metrics)

    def _add(self, group: str, trial_id: str) -> Any:
        named: Any = SimpleNamespace(trial_id=trial_id)  # all that ASHA reads of a trial
        if trial_id not in self.added:
            asha: Any = self.groups[group]
            asha.on_trial_add(None, named)
            self.added.add(trial_id)
        return named

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Ray's hook."""
        self._add(trial.config[_KEY]["group"], trial.config[_KEY]["trial_id"])

    def _of(self, trial: Any) -> tuple[ASHAScheduler, Any]:
        """A trial's ASHA, and the trial under the name that a run keeps; Tune's changes when a run goes on."""
        plan = trial.config[_KEY]
        return self.groups[plan["group"]], SimpleNamespace(trial_id=plan["trial_id"])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray's hook."""
        asha, named = self._of(trial)
        decision = asha.on_trial_result(tune_controller, named, result)
        if decision == self.STOP and result["epoch"] < trial.config[_KEY]["train"]["epochs"]:
            self.files_of(named.trial_id).stop(result["epoch"])
        return decision


class _Progress(Callback):
    """A line for each epoch of each trial, and how many epochs are behind, those of trials that were stopped too."""

    def __init__(self, total: int, finished: int, stage: progress.Stage):
        self.total, self.finished, self.stage = total, finished, stage
        self.epochs: dict[str, int] = {}

    def _advance(self, plan: dict[str, Any], epoch: int) -> None:
        self.stage.advance(epoch - self.epochs.get(plan["trial_id"], 0))
        self.epochs[plan["trial_id"]] = epoch

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "val_auroc" in result:
            plan = trial.config[_KEY]
            self._advance(plan, result["epoch"])
            terminal.say(
                f"  {plan['trial_id']}  epoch {result['epoch']}/{plan['train']['epochs']}  "
                f"train loss {result['train_loss']:.3f}  val AUROC {result['val_auroc']:.3f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.finished += 1
        self._advance(trial.config[_KEY], trial.config[_KEY]["train"]["epochs"])
        terminal.say(f"  {trial.config[_KEY]['trial_id']}  finished ({self.finished} of {self.total} trials)")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        terminal.say(f"  {trial.config[_KEY]['trial_id']}  failed")


def tune_sweep(
    context: RunContext, trials: Sequence[TrialPlan], data: TrainingData, allocation: Allocation
) -> list[dict[str, Any]]:
    """Run (or go on with) the trials; copy each one's best weights and metrics to ``checkpoints/<trial_id>/``.

    Returns:
        Rows of the ``trials`` table.

    Raises:
        DamagedRunError: what an earlier run kept of a trial cannot be read.
    """
    store, files_of = context.store, partial(TrialFiles, context.store)
    searches = OptunaSearches(context.sweep, store, _KEY) if context.sweep.search.searcher == "optuna" else None
    known = trials if searches is None else searches.plans
    histories = {t.trial_id: files_of(t.trial_id).history() for t in known}
    for trial in known:
        if history := histories[trial.trial_id]:  # before others train for hours
            kept = files_of(trial.trial_id)
            kept.check(goes_on=not _is_over(trial, history, kept))
    left = [t for t in known if not _is_over(t, histories[t.trial_id], files_of(t.trial_id))]
    over = [t for t in known if t not in left]
    errors: dict[str, str] = {}
    if left or (searches is not None and searches.n_left):
        if over:
            terminal.say(f"  {len(over)} of {len(trials)} were trained before")
        scheduler = FIFOScheduler()
        if context.sweep.search.scheduler == "asha":
            scheduler = GroupedASHA([*trials, *known], files_of, histories)
        total, hint = sum(t.train.epochs for t in trials) - sum(t.train.epochs for t in over), "processes start"
        with progress.stage("Training", total, "epochs", hint=hint) as stage:
            callback = _Progress(len(trials), len(over), stage)
            callback.epochs = {t.trial_id: len(histories[t.trial_id]) for t in left}
            stage.total = total - sum(callback.epochs.values())
            with tracking.following(context, histories) as trackers:
                errors = _train(context, searches or left, data, allocation, scheduler, [callback, *trackers])
    trained = trials if searches is None else [kept.plan for kept in known_trials(context.sweep, store)]
    return [_row(t, files_of(t.trial_id), errors.get(t.trial_id)) for t in trained]


def _is_over(trial: TrialPlan, history: History, files: TrialFiles) -> bool:
    return bool(history) and (history[-1]["epoch"] >= trial.train.epochs or files.is_stopped())


def _train(
    context: RunContext,
    trials: Sequence[TrialPlan] | OptunaSearches,
    data: TrainingData,
    allocation: Allocation,
    scheduler: FIFOScheduler,
    callbacks: list[Callback],
) -> dict[str, str]:
    """Train the trials in processes of Tune. Returns the reasons of those that failed."""
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune's ends the trials and lets the run go on
    store, device = context.store, "cuda" if allocation.trial_gpus else "cpu"
    splits = {key: ray.put(split) for key, split in data.splits.items()}
    states = {key: ray.put(state) for key, state in data.states.items()}
    images_of = context.sweep.images_of

    def trainable(config: dict[str, Any]) -> None:
        from cxr_ray.run.trial import run_trial  # and no module that trials do without

        plan = TrialPlan.from_config(config[_KEY])
        state = ray.get(states[plan.model.weights, plan.model.arch])
        run_trial(plan, ray.get(splits[images_of(plan.model)]), state, TrialFiles(store, plan.trial_id), device)

    def name(trial: Any) -> str:
        return str(trial.config[_KEY]["trial_id"])

    searches = trials if isinstance(trials, OptunaSearches) else None
    known = [] if isinstance(trials, OptunaSearches) else [t.to_config() for t in trials]
    resources = {"cpu": allocation.trial_cpus, "gpu": allocation.trial_gpus}
    tune_config = tune.TuneConfig(
        metric="val_auroc",
        mode="max",
        scheduler=scheduler,
        max_concurrent_trials=allocation.concurrent_trials,
        reuse_actors=True,  # a process starts longer than many a trial trains
        trial_name_creator=name,
        trial_dirname_creator=name,
        search_alg=searches,
        num_samples=1 if searches is None else searches.n_left,
    )
    with tempfile.TemporaryDirectory(prefix="cxr_ray-tune-") as folder:  # Tune's files are pickles: in no run's folder
        tuner = tune.Tuner(
            tune.with_resources(trainable, {k: v for k, v in resources.items() if v}),
            param_space={_KEY: tune.grid_search(known)} if known else {},
            tune_config=tune_config,
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=callbacks,
            ),
        )
        finished: Any = tuner.fit()
    failed = [r for r in finished if r.error is not None]
    ids = {r.config[_KEY]["trial_id"]: r.error for r in failed if _KEY in (r.config or {})}
    return {trial_id: _reason(error, TrialFiles(store, trial_id).hangs()) for trial_id, error in ids.items()}


def _reason(error: Exception, hangs: Sequence[float]) -> str:
    """What ended a trial. ``hangs``: of its processes, after how many seconds each was ended."""
    if isinstance(error, deaths.DEATHS):
        reason = deaths.hung(hangs[-1]) if hangs else deaths.reason_of(error)
        return f"its process ended {MAX_FAILURES + 1} times: {reason}"
    reason = redacted(str(error).strip().splitlines()[-1])
    if "OutOfMemoryError" in reason:
        reason += " Trials take a GPU each with --set resources.gpu_per_trial=1."
    return reason


def _row(plan: TrialPlan, files: TrialFiles, error: str | None) -> dict[str, Any]:
    """A row of ``trials``; copies the best weights, and the metrics of each epoch."""
    trial_id, store, history = plan.trial_id, files.store, files.history()
    metrics = history[-1] if history else {}
    best = files.best(metrics["best_epoch"]) if history else None
    if best is not None:
        store.write(best, "checkpoints", trial_id, "model.safetensors")
        store.write_json(history, "checkpoints", trial_id, "epochs.json")
    epochs = metrics.get("epoch", 0)
    failed = error is not None or best is None
    return {
        "trial_id": trial_id,
        "variant": plan.variant,
        "seed": plan.train.seed,
        "config": to_json({"model": plan.model.model_dump(), "train": plan.train.model_dump()}),
        "status": "failed" if failed else "completed" if epochs >= plan.train.epochs else "stopped",
        "epochs": epochs,
        "best_epoch": metrics.get("best_epoch"),
        "val_auroc": metrics.get("best_auroc"),
        "checkpoint": None if best is None else f"checkpoints/{trial_id}/model.safetensors",
        "train_seconds": metrics.get("seconds"),
        "device": metrics.get("trained_on"),
        "error": error,
    }
