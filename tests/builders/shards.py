"""Sweeps, shards of images and workers that are small enough to check by hand."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from cxr_ray.config import Sweep
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.sweepfile import resolve

SIZE = 28


def sweep(**changes) -> Sweep:
    base = {
        "data": {"size": SIZE + 4},
        "explain": {"explainers": ["input_x_gradient", "saliency"], "targets": ["pneumonia", "predicted"]},
        "perturb": {"grids": ["pixel", "7"], "fills": ["mean", "black"], "levels": [0.3, 0.5, 0.75]},
        "controls": {"pixel_random": 2, "cell_random": 3, "smooth_random": 1, "shifted": 20},
    }
    return resolve({**base, **changes})


def linear_model(size: int = SIZE) -> Classifier:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 2))
    return Classifier(network, ModelSpec("resnet18", size)).eval().requires_grad_(False)


def shard(n: int = 5, size: int = SIZE, split: str = "test") -> Shard:
    rng = np.random.default_rng(0)
    ids = [f"{i:016x}" for i in range(n)]
    pixels = rng.integers(0, 256, (n, 3, size, size), np.uint8)
    donors = dict(zip(ids, pixels[::-1], strict=True))
    return Shard(
        "m", split, ids, [f"{i}.png" for i in range(n)], [i % 2 for i in range(n)], pixels, donor_images=donors
    )


def worker(config: Sweep, model: Classifier, batch_size: int = 16) -> Worker:
    w = Worker(config, {"m": ModelRef("m", "none", None, SIZE)}, batch_size=batch_size)
    w.model = lambda trial_id: model
    return w


def frames(tables) -> dict[str, pd.DataFrame]:
    """Tables by name, with a column explainer."""
    out: dict[str, list[pd.DataFrame]] = {}
    for (name, explainer), table in tables.items():
        frame = table.to_pandas()
        out.setdefault(name, []).append(frame.assign(explainer=explainer) if explainer else frame)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in out.items()}
