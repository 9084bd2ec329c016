"""One trial: trains a network in a process of Ray Tune, which may have trained another before."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import tune

from cxr_ray.data.pixel_cache import PixelCache
from cxr_ray.models import checkpoints, networks, training
from cxr_ray.models.training import Epoch, Split
from cxr_ray.run import deaths
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.run.trial_plans import TrialPlan
from cxr_ray.run.watchdog import Watchdog, watched


@dataclass(frozen=True)
class StoredSplit:
    """Images of one split that lie on disk: each machine opens a cache of its own, and fills it where it has none."""

    cache: PixelCache
    labels: NDArray[np.int64]

    def open(self) -> Split:
        """The split, its pixels memory-mapped."""
        return Split(self.cache.open().images_NCHW, self.labels)


Splits = Mapping[str, Split | StoredSplit]


def opened(splits: Splits) -> dict[str, Split]:
    """The splits with their pixels, in the process of a trial."""
    return {name: split.open() if isinstance(split, StoredSplit) else split for name, split in splits.items()}


def run_trial(plan: TrialPlan, data: Splits, state: Any, files: TrialFiles, device: str) -> None:
    """Train one network, or go on, keeping its state and reporting after every epoch; runs in a process of Tune.

    The process ends where training hangs: Tune tries again, from the last epoch.

    Args:
        plan: the trial.
        data: train and val.
        state: the state dict to start from, or None.
        files: where its state is kept.
        device: cpu or cuda.
    """
    history = files.history()
    if history and history[-1]["epoch"] >= plan.train.epochs:
        return
    if device == "cuda":  # what the trial before took, which others on the GPU may need
        gc.collect()
        torch.cuda.empty_cache()
    torch.manual_seed(plan.train.seed)
    splits = opened(data)
    size = splits["train"].pixels.shape[-1]
    model = networks.build(plan.model.arch, plan.spec(size))
    if state is not None:
        checkpoints.start_from(model, state, f"model.weights={plan.model.weights}")
    if plan.model.freeze == "backbone":
        training.freeze_backbone(model)
    resume = files.state() if history else None
    earlier = history[-1]["seconds"] if history else 0.0
    start = time.monotonic()
    dog = Watchdog(partial(deaths.allowed_seconds, deaths=min(len(files.hangs()), deaths.MOST)), files.hang)

    def report(epoch: Epoch) -> None:
        metrics = {
            "epoch": epoch.epoch,
            "train_loss": epoch.train_loss,
            "val_loss": epoch.val_loss,
            "val_auroc": epoch.val_auroc,
            "best_epoch": epoch.best_epoch,
            "best_auroc": epoch.best_auroc,
            "seconds": earlier + time.monotonic() - start,
            "trained_on": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }
        best = checkpoints.to_bytes(model) if epoch.improved or not history else None
        history.append(metrics)
        files.save(history, epoch.state() if epoch.epoch < plan.train.epochs else {}, best)
        with dog.rest():
            tune.report(metrics)

    with watched(model.network, dog):
        training.fit(model, splits["train"], splits["val"], plan.train, report, device=device, resume=resume)
