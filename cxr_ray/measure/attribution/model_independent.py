"""Model-independent explainers: what needs no model, as a reference.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block, J altered copies of
images in a pass, N altered copies of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_ray import randomness
from cxr_ray.measure.attribution.inputs import (
    Inputs,
    keys_of,
)
from cxr_ray.models.networks import Classifier


def random(model: Classifier, inputs: Inputs) -> Tensor:
    """Uniform noise on 7 x 7 places: knows nothing of model or image, and has no reason to be faithful."""
    return randomness.uniform(keys_of(inputs, "random explainer"), 49).view(-1, 7, 7)


def _grey(model: Classifier, inputs: Inputs) -> Tensor:
    """The images in pixel space, mean of their channels, [B, S, S]."""
    return (inputs.images * model.std + model.mean).mean(1)


def centre(model: Classifier, inputs: Inputs) -> Tensor:
    """Minus the distance from the image's centre in pixels: what a centre prior alone achieves."""
    size = inputs.images.shape[-1]
    y = torch.arange(size, device=inputs.images.device) - (size - 1) / 2
    return -torch.hypot(y[:, None], y).expand(len(inputs.images), size, size)


def edges(model: Classifier, inputs: Inputs) -> Tensor:
    """Magnitude of the Sobel gradient of the grey image, mirrored at its edge (Adebayo et al., NeurIPS 2018)."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=inputs.images.device)
    grey = F.pad(_grey(model, inputs)[:, None], (1, 1, 1, 1), mode="replicate")
    across, down = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None]).unbind(1)
    return torch.hypot(across, down)


def intensity(model: Classifier, inputs: Inputs) -> Tensor:
    """The grey image itself: bright is salient."""
    return _grey(model, inputs)


def unavailable(model: Classifier, inputs: Inputs) -> Tensor:
    """Refuse: maps from outside are read, never made.

    Raises:
        ValueError: always.
    """
    raise ValueError("got a shard without the maps from outside; expected them; give them.")
