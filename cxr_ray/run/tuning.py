"""Ray Tune: the sweep's search space to trials, and the trial that trains one model."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from pyarrow import fs as pafs
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.sample import Domain

from cxr_ray.config import SPACES, Sweep, concrete
from cxr_ray.errors import DamagedRunError
from cxr_ray.models import checkpoints, networks, training
from cxr_ray.models.networks import ModelSpec
from cxr_ray.models.training import Epoch, Split
from cxr_ray.schemas import to_json
from cxr_ray.storage import Store

MAX_FAILURES = 2
_FOLDER = "tune"


def trial_specs(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial of the sweep, sampled with Tune's distributions, seeded by (sweep seed, variant, grid point, sample).

    Returns:
        One mapping a trial: trial_id, variant, group (its variant and grid point), model, train.
    """
    specs: dict[str, dict[str, Any]] = {}
    for variant, model, train in sweep.trial_points():
        point = to_json({"variant": variant, "model": model, "train": train})
        group = hashlib.sha256(f"{sweep.seed}:{point}".encode())
        random_state = np.random.RandomState(int.from_bytes(group.digest()[:4], "little"))
        spaces = any(_is_space(v) for v in [*model.values(), *train.values()])
        for _ in range(sweep.search.num_samples if spaces else 1):
            sampled = {
                name: {k: _sample(v, random_state) for k, v in section.items()}
                for name, section in (("model", model), ("train", train))
            }
            digest = hashlib.sha256(to_json(sampled).encode()).hexdigest()[:8]
            trial_id = f"{variant}-{digest}"  # equal samples are one trial
            specs[trial_id] = {"trial_id": trial_id, "variant": variant, "group": group.hexdigest()[:8], **sampled}
    return list(specs.values())


def _is_space(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in SPACES


def _sample(value: Any, random_state: np.random.RandomState) -> Any:
    if not _is_space(value):
        return copy.deepcopy(value)
    kind, arguments = next(iter(value.items()))
    domain: Domain = tune.choice(arguments) if kind == "choice" else getattr(tune, kind)(*arguments)
    drawn = domain.sample(random_state=random_state)
    return drawn.item() if isinstance(drawn, np.generic) else drawn


class GroupedASHA(FIFOScheduler):
    """One ASHA for each variant and grid point, so that no variant is starved by another."""

    def __init__(self, max_epochs: dict[str, int]):
        super().__init__()
        self.groups = {
            group: ASHAScheduler(time_attr="epoch", metric="val_auroc", mode="max", max_t=max_t, grace_period=1,
                                 reduction_factor=3)
            for group, max_t in max_epochs.items()
        }  # fmt: skip

    def _of(self, trial: Any) -> ASHAScheduler:
        return self.groups[trial.config["spec"]["group"]]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Ray's hook."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray's hook."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ray's hook."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Ray's hook."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def save(self, checkpoint_path: str) -> None:
        """Ray's hook, for resuming."""
        ASHAScheduler.save(self, checkpoint_path)  # type: ignore[arg-type]

    def restore(self, checkpoint_path: str) -> None:
        """Ray's hook, for resuming."""
        ASHAScheduler.restore(self, checkpoint_path)  # type: ignore[arg-type]


class _Progress(Callback):
    def __init__(self, say: Callable[[str], None], total: int):
        self.say, self.total, self.finished = say, total, 0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "val_auroc" in result:
            spec = trial.config["spec"]
            self.say(
                f"  {spec['trial_id']}  epoch {result['epoch']}/{spec['train']['epochs']}  "
                f"train loss {result['train_loss']:.3f}  val AUROC {result['val_auroc']:.3f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.finished += 1
        self.say(f"  {trial.config['spec']['trial_id']}  finished ({self.finished} of {self.total} trials)")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.say(f"  {trial.config['spec']['trial_id']}  failed")


def run_trial(config: dict[str, Any], data: dict[str, Split], state: Any, device: str) -> None:
    """The trainable: one trial, reporting and keeping its best weights after every epoch."""
    spec = config["spec"]
    model_config, train_config = concrete(spec["model"], spec["train"])
    torch.manual_seed(train_config.seed)
    model_spec = ModelSpec(
        model_config.arch, data["train"].pixels.shape[-1], variant=spec["variant"], preprocess=model_config.preprocess
    )
    model = networks.build(model_config.arch, model_spec)
    if state is not None:
        checkpoints.start_from(model, state, f"model.weights: {model_config.weights}")
    if model_config.freeze == "backbone":
        training.freeze_backbone(model)
    best, resume, earlier = b"", None, 0.0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            best = Path(folder, "model.safetensors").read_bytes()
            resume = torch.load(Path(folder, "state.pt"), map_location="cpu", weights_only=True)
            earlier = resume["seconds"]
    start = time.monotonic()

    def report(epoch: Epoch) -> None:
        nonlocal best
        if epoch.improved or not best:
            best = checkpoints.to_bytes(model)
        seconds = earlier + time.monotonic() - start
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.safetensors").write_bytes(best)
            if epoch.epoch < train_config.epochs:
                torch.save({**epoch.state(), "seconds": seconds}, Path(folder, "state.pt"))
            metrics = {
                "epoch": epoch.epoch, "train_loss": epoch.train_loss, "val_loss": epoch.val_loss,
                "val_auroc": epoch.val_auroc, "best_epoch": epoch.best_epoch, "best_auroc": epoch.best_auroc,
                "seconds": seconds, "trained_on": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            }  # fmt: skip
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    if resume is not None and resume["epoch"] >= train_config.epochs:
        return
    training.fit(model, data["train"], data["val"], train_config, report, device=device, resume=resume)


def tune_sweep(
    sweep: Sweep,
    specs: list[dict[str, Any]],
    data: dict[tuple[int, str], dict[str, Split]],
    states: dict[tuple[str, str], Any],
    store: Store,
    *,
    resources: dict[str, float],
    max_concurrent: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Runs (or goes on with) the trials; copies each one's best weights to ``checkpoints/<trial_id>/``.

    Args:
        sweep: the resolved sweep.
        specs: from ``trial_specs``.
        data: splits train and val, by size and preprocessing.
        states: by weights and arch, the state dict to start from, or None.
        store: the run folder.
        resources: CPUs and GPUs of a trial.
        max_concurrent: trials at a time.
        say: prints a line of progress.

    Returns:
        Rows of the ``trials`` table.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune's ends the trials and lets the run go on
    device = "cuda" if resources["gpu"] else "cpu"
    data_refs, state_refs = ({key: ray.put(value) for key, value in by.items()} for by in (data, states))

    def trainable(config: dict[str, Any]) -> None:
        model = config["spec"]["model"]
        state = ray.get(state_refs[model["weights"], model["arch"]])
        run_trial(config, ray.get(data_refs[sweep.images_of(model)]), state, device)

    runnable = tune.with_resources(trainable, {k: v for k, v in resources.items() if v})
    folder, fs = store.path(_FOLDER), store.fs
    try:
        if _can_restore(fs, folder):
            tuner = tune.Tuner.restore(folder, trainable=runnable, restart_errored=True, storage_filesystem=fs)
        else:
            groups = {s["group"]: s["train"]["epochs"] for s in specs}
            scheduler = GroupedASHA(groups) if sweep.search.scheduler == "asha" else FIFOScheduler()
            tuner = tune.Tuner(
                runnable,
                param_space={"spec": tune.grid_search(specs)},
                tune_config=tune.TuneConfig(
                    metric="val_auroc", mode="max", scheduler=scheduler, max_concurrent_trials=max_concurrent,
                    trial_name_creator=lambda trial: trial.config["spec"]["trial_id"],
                    trial_dirname_creator=lambda trial: trial.config["spec"]["trial_id"],
                ),
                run_config=tune.RunConfig(
                    name=_FOLDER, storage_path=store.path(), storage_filesystem=fs, verbose=0,
                    failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                    callbacks=[_Progress(say, len(specs))],
                ),
            )  # fmt: skip
        results = tuner.fit()
    except (EOFError, KeyError, pickle.PickleError) as e:  # of what it wrote, and read again
        raise DamagedRunError(
            f"Ray Tune cannot read its own files in {folder} ({type(e).__name__}: {e}): the disk was full, or they are "
            "damaged. Make room, or delete that folder; --resume then goes on, or trains again."
        ) from None
    return [_row(result, store) for result in _by_spec(results, specs)]


def _can_restore(fs: pafs.FileSystem, folder: str) -> bool:
    """Whether Tune's state is complete: without experiment_state-*.json it would restore one trial without a config."""
    names = [i.base_name for i in fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))]
    return "tuner.pkl" in names and any(n.startswith("experiment_state") and n.endswith(".json") for n in names)


def _by_spec(results: Any, specs: list[dict[str, Any]]) -> list[Any]:
    by_id = {r.config["spec"]["trial_id"]: r for r in results if "spec" in (r.config or {})}
    return [by_id[s["trial_id"]] for s in specs if s["trial_id"] in by_id]


def _row(result: Any, store: Store) -> dict[str, Any]:
    spec, metrics = result.config["spec"], result.metrics or {}
    trial_id, epochs = spec["trial_id"], metrics.get("epoch", 0)
    if result.checkpoint is not None:
        target = store.path("checkpoints", trial_id)
        store.fs.create_dir(target, recursive=True)
        with result.checkpoint.filesystem.open_input_stream(f"{result.checkpoint.path}/model.safetensors") as f:
            store.write(f.read(), "checkpoints", trial_id, "model.safetensors")
    failed = result.error is not None or result.checkpoint is None
    status = "failed" if failed else "completed" if epochs >= spec["train"]["epochs"] else "stopped"
    error = str(result.error).strip().splitlines()[-1] if result.error is not None else None
    return {
        "trial_id": trial_id,
        "variant": spec["variant"],
        "seed": spec["train"]["seed"],
        "config": to_json({"model": spec["model"], "train": spec["train"]}),
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
