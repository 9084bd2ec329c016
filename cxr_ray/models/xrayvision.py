"""Networks of torchxrayvision: their range of grey values, their outputs, and such a network in memory.

The package is not imported: a network that is given brings it along.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from cxr_ray.errors import CheckpointError

RANGE = 1024  # of grey values: [-1024, 1024]
NORMALIZATION = 0.5  # mean and std, with which [0, 1] becomes [-1, 1]
OUTPUTS, PNEUMONIA = 18, 8  # of the published networks, and which of them is pneumonia
FAMILY = "torchxrayvision"


class XrayVision(nn.Module):
    """A network of the package on RGB in [-1, 1], to logits: no sigmoid, no operating thresholds."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = copy.deepcopy(network)
        if hasattr(network, "op_threshs"):
            self.network.op_threshs = None
        self.network.apply_sigmoid = False

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, outputs]."""
        logits: Tensor = self.network(images.mean(1, keepdim=True) * RANGE)
        return logits


def is_of_package(model: object) -> bool:
    """Whether a model in memory is a classifier of the package."""
    return type(model).__module__ == f"{FAMILY}.models" and hasattr(model, "apply_sigmoid")


def adapted(model: Any) -> tuple[nn.Module, tuple[tuple[int, ...], tuple[int, ...]]]:
    """A classifier of the package as a network of RGB images, and the columns of the two classes.

    Raises:
        CheckpointError: it has no output for pneumonia.
    """
    names = list(getattr(model, "pathologies", getattr(model, "targets", [])))
    wrapped = XrayVision(model).train(model.training)
    outputs = getattr(getattr(model, "classifier", None), "out_features", len(names))
    if "Pneumonia" not in names or outputs != len(names):
        raise CheckpointError(
            f"got a network of torchxrayvision with {outputs} outputs for {len(names)} labels "
            f"({', '.join(filter(None, names))}); expected one of them to be Pneumonia; wrap it in a function of "
            "images to logits that does not apply op_threshs."
        )
    return wrapped, ((), (names.index("Pneumonia"),))
