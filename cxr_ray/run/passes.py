"""How many forward passes this machine does in a second."""

from __future__ import annotations

import time

import torch

from cxr_ray.models import backends, networks
from cxr_ray.models.networks import ModelSpec


def forward_rate(size: int) -> float:
    """Forward passes of a ResNet-18 a second on this machine, measured for about a second."""
    backends.full_float32()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = networks.build("resnet18", ModelSpec("resnet18", size)).to(device)
    batch = torch.zeros(max(1, 256 * 224**2 // size**2) if device == "cuda" else 8, 3, size, size, device=device)
    with torch.inference_mode():
        float(model.log_odds(batch).sum())
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < 1:
            float(model.log_odds(batch).sum())
            n += len(batch)
    return n / (time.perf_counter() - start)
