"""Trials of a few images that train in this process, without Ray."""

from pathlib import Path

import numpy as np
from ray import tune

from cxr_ray.config import Model, Train
from cxr_ray.models.training import Split
from cxr_ray.run.trial import run_trial
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.run.trial_plans import TrialPlan
from cxr_ray.storage import Store

SMALL = "factory:tests.builders.networks:Small"


class Killed(Exception):
    """As good as a process that is killed after an epoch was kept."""


def train(monkeypatch, plan: TrialPlan, data: dict[str, Split], out: Path, killed_after: int = 0) -> TrialFiles:
    def report(metrics) -> None:
        if metrics["epoch"] == killed_after:
            raise Killed

    monkeypatch.setattr(tune, "report", report)
    files = TrialFiles(Store(str(out), {}), plan.trial_id)
    run_trial(plan, data, None, files, "cpu")
    return files


def kept(files: TrialFiles) -> tuple[bytes | None, list[dict]]:
    """The best weights, and the metrics of every epoch but for seconds."""
    history = files.history()
    return files.best(history[-1]["best_epoch"]), [{**epoch, "seconds": None} for epoch in history]


def images() -> dict[str, Split]:
    rng = np.random.default_rng(0)
    data = {
        n: Split(rng.integers(0, 256, (k, 3, 32, 32), np.uint8), np.arange(k) % 2)
        for n, k in (("train", 16), ("val", 8))
    }
    for split in data.values():
        split.pixels.setflags(write=False)  # as they lie in Ray's object store
    return data


def trial(**train) -> TrialPlan:
    config = Train(**{"epochs": 2, "batch_size": 8, "lr": 1e-3, **train})
    return TrialPlan("plain-0", "plain", "0", Model(arch=SMALL, weights="none", size=32), config)
