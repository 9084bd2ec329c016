"""``fit`` against bare forward and backward passes of the same model and batch, in images a second.

The bare loop has its batch ready in model space and takes neither optimizer steps nor validation; ``fit`` decodes from
uint8, augments, normalises, steps, and validates on two images an epoch. On a GPU, ``fit`` by CUDA graph is compared
with the same loop kernel by kernel (eager): give it an epoch of real length, --batches 146; each fit records its graph.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.common import arguments, rates, ratio, show
from cxr_ray.config import Train
from cxr_ray.models import networks, training
from cxr_ray.models.networks import ModelSpec


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        batch=(int, 32, "images in a batch"),
        batches=(int, 4, "batches an epoch"),
        rounds=(int, 5, "rounds"),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = args.batch * args.batches
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 3, args.size, args.size), np.uint8)
    train = training.Split(pixels, np.arange(n) % 2)
    val = training.Split(pixels[:2], np.array([0, 1]))
    config = Train(epochs=1, batch_size=args.batch, lr=1e-4)
    spec = ModelSpec("resnet18", args.size)
    bare_model = networks.build("resnet18", spec).train()
    bare_model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ready = torch.randn(args.batch, 3, args.size, args.size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(args.batch, device=device) % 2

    def bare() -> int:
        for _ in range(args.batches):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = bare_model(ready)
            bare_model.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return n

    def fit() -> int:
        training.fit(networks.build("resnet18", spec), train, val, config, lambda epoch: None, device=device)
        return n

    def eager() -> int:
        with mock.patch.object(training, "graphed", lambda gradients, *_: gradients):
            return fit()

    forms = {"bare": bare, "fit": fit, **({"eager fit": eager} if device == "cuda" else {})}
    measured = rates(forms, args.rounds, seconds=1.0)
    compared = {"fit / bare": 0.9} if device == "cpu" else {"fit / bare": 0.9, "fit / eager fit": 3.0}
    show(
        "training",
        measured,
        {pair: ratio(measured, *pair.split(" / ")) for pair in compared},
        compared,
        unit="images/s",
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
