"""One trial after another in one process, without Ray."""

from pathlib import Path

import numpy as np
import torch
from ray import tune

from cxr_ray.config import Model, Train
from cxr_ray.models.training import Split
from cxr_ray.run.plan import TrialPlan
from cxr_ray.run.trial import run_trial


def reported(monkeypatch, plan: TrialPlan, data: dict[str, Split]) -> tuple[bytes, dict]:
    """The best weights and the metrics of the last epoch, but for seconds."""
    kept: list[tuple[bytes, dict]] = []

    def report(metrics, checkpoint) -> None:
        with checkpoint.as_directory() as folder:
            kept.append((Path(folder, "model.safetensors").read_bytes(), {**metrics, "seconds": None}))

    monkeypatch.setattr(tune, "report", report)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    run_trial(plan, data, None, "cpu")
    return kept[-1]


def trial(**train) -> TrialPlan:
    config = Train(**{"epochs": 2, "batch_size": 8, "lr": 1e-3, **train})
    return TrialPlan("plain-0", "plain", "0", Model(weights="none", size=32), config)


def test_a_trial_gives_the_same_weights_whatever_its_process_trained_before(monkeypatch):
    rng = np.random.default_rng(0)
    data = {
        n: Split(rng.integers(0, 256, (k, 3, 32, 32), np.uint8), np.arange(k) % 2)
        for n, k in (("train", 16), ("val", 8))
    }
    for split in data.values():
        split.pixels.setflags(write=False)  # as they lie in Ray's object store
    torch.manual_seed(123)
    fresh = reported(monkeypatch, trial(), data)
    other = reported(monkeypatch, trial(seed=1, loss="focal", sampler="balanced", labels="shuffled"), data)
    again = reported(monkeypatch, trial(), data)
    assert other[0] != fresh[0]
    assert again == fresh
