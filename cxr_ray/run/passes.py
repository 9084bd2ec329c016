"""How many forward passes a sweep needs, and how many this machine does in a second."""

from __future__ import annotations

import time

import torch

from cxr_ray.config import Sweep
from cxr_ray.measure import regions
from cxr_ray.measure.controls import CONTROLS, draws_at_most
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import backends, networks
from cxr_ray.models.networks import ModelSpec


def to_explain(sweep: Sweep, size: int) -> int:
    """Passes that all explainers together take for one image and target; a backward pass counts two."""
    return sum(f + 2 * b for f, b in (EXPLAINERS[e].passes(size) for e in sweep.explain.explainers))


def passes_per_image(sweep: Sweep, size: int) -> tuple[int, str]:
    """Forward passes (a backward pass counts two) for one test image and one target, and the formula as text.

    Exact but for draws that need not be scored, where it is the most: sequential ones, those of an image with fewer
    donors, those that rank as the map does.
    """
    p = sweep.perturb
    curve = len(p.fills) * len(p.orders) * len(p.levels)
    explain = to_explain(sweep, size)
    maps, shared, own, extra = len(sweep.explain.explainers), 0, 0, 0
    for control, draws in sweep.controls.items():
        entry = CONTROLS[control]
        grids = len(entry.grids(p.grids))
        cams = sum(EXPLAINERS[e].cam is not None for e in sweep.explain.explainers)
        compared = cams if entry.family == "class weights" else maps
        more = grids * (draws_at_most(control, draws, sweep.sequential) - draws)
        if entry.family == "nothing":
            shared += grids * draws
            extra += more
        else:
            own += grids * compared * draws
            extra += compared * more
    parts = regions.passes(sweep)
    total = 1 + len(p.fills) + curve * (shared + maps * len(p.grids) + own + extra) + parts + explain
    text = (
        f"1 untouched + {len(p.fills)} filled + {curve} (fills x orders x levels) x ({shared} shared rankings + "
        f"{maps * len(p.grids)} maps on grids + {own} controls made for them"
        + (f" + at most {extra} sequential draws" if sweep.sequential else "")
        + f") + {parts} of regions and edits + {explain} to explain (a backward pass counts as two)"
    )
    return total, text


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
