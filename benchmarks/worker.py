"""A worker's forward passes a second over plain passes of the same network in the same form, in one run.

The worker takes decoded shards and gives the tables' rows: it makes maps, rankings, controls, masked images and Arrow
tables. Passes of explainers count, a backward pass as two. ``few`` is Grad-CAM against 27 draws of a control on one
grid, 400 passes an image; ``many`` is three explainers, both targets, two grids and three fills, 5,300 passes a map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.common import arguments, phantoms, pixels, rates, ratio, show
from benchmarks.plain import PRECISION, Plain, device, done
from cxr_ray.measure.cost import passes_to_explain
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models.backends import Form, Forward, layout_of
from cxr_ray.sweepfile import resolve

FEW: dict[str, Any] = {
    "explain": {"explainers": ["gradcam"]},
    "perturb": {"grids": ["pixel"], "fills": ["mean"]},
}
MANY: dict[str, Any] = {
    "explain": {"explainers": ["gradcam", "integrated_gradients", "occlusion"], "targets": ["pneumonia", "predicted"]},
    "perturb": {"grids": ["pixel", "14"], "fills": ["mean", "blur", "grey"]},
}


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        images=(int, 16, "images in a shard"),
        rounds=(int, 3, "rounds"),
        seconds=(float, 3.0, "seconds a form and round"),
        few=(int, 27, "draws of the control in few"),
        many=(int, 20, "draws of the control in many"),
        precision=PRECISION,
    )
    plain = Plain.of(args.size, args.precision)
    drawn = pixels(phantoms(args.images, args.size, 0))
    forms: dict[str, Callable[[], int]] = {"plain": plain.passes(plain.forward, 4)}
    for name, sections, draws in (("few", FEW, args.few), ("many", MANY, args.many)):
        forms[f"worker, {name}"] = _shard(plain, {**sections, "controls": {"shifted": draws}}, drawn, args.precision)
    measured = rates(forms, args.rounds, args.seconds)
    targets = {"worker, few / plain": 0.9, "worker, many / plain": 0.85} if device().type == "cuda" else {}
    ratios = {f"worker, {name} / plain": ratio(measured, f"worker, {name}", "plain") for name in ("few", "many")}
    show("worker", measured, ratios, targets, unit="passes/s", as_json=args.json, chosen=str(plain.form))


def _shard(plain: Plain, sections: dict[str, Any], drawn: np.ndarray, precision: str) -> Callable[[], int]:
    """A worker on one shard, over and over; its passes are counted."""
    size, n = plain.model.spec.size, len(drawn)
    given = {"checkpoints": {"m": {"path": "none"}}, "regions": None, "sanity": None, "data": {"size": size}}
    asked = {**sections["perturb"], "precision": precision}
    sweep = resolve({**given, **sections, "perturb": asked})
    ids, labels = [f"{i:016x}" for i in range(n)], [i % 2 for i in range(n)]
    shard = Shard("m", "test", ids, [f"{i}.png" for i in ids], labels, drawn)
    worker = Worker(sweep, {"m": ModelRef("m", "none", None, size)}, device().type, plain.batch_size)
    passes = [0]

    def counted(images: Tensor) -> Tensor:
        passes[0] += len(images)
        return plain.forward(images)

    forward: Forward = Form(counted, layout_of(plain.forward))
    worker.model, worker.forward = lambda trial_id: plain.model, lambda trial_id: forward
    decided = worker.decide(shard)
    worker.precision_of = lambda trial_id: decided

    def run() -> int:
        passes[0] = 0
        tables = worker(shard)
        done()
        maps = tables["saliency", sweep.explain.explainers[0]].num_rows
        return passes[0] + maps * passes_to_explain(sweep, size)

    return run


if __name__ == "__main__":
    main()
