"""The explainers: one function each. A new one is a function and an entry in EXPLAINERS.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block.
Maps explain z_target. They are signed sums over channels, or absolute values where the method takes them, at the
explainer's own resolution, and are never rescaled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from captum import attr
from torch import Tensor, nn

from cxr_ray import randomness
from cxr_ray.models import Classifier

IG_STEPS = 32
OCCLUSION_BATCH = 32  # images in a pass


@dataclass(frozen=True)
class Inputs:
    """What an explainer may read.

    Attributes:
        images: model space, [B, 3, S, S].
        blurred: the same images blurred (fill blur), model space.
        black: a black pixel in model space, [3, 1, 1].
        targets: int64 [B], class whose score is explained.
        ids: image ids.
        seed: the sweep's seed, for explainers that draw random numbers.
    """

    images: Tensor
    blurred: Tensor
    black: Tensor
    targets: Tensor
    ids: Sequence[str]
    seed: int


class Explainer(Protocol):
    """Inputs to maps, float32 [B, V, V]. Leaves no hook and no gradient on the model."""

    def __call__(self, model: Classifier, inputs: Inputs) -> Tensor:
        """Explains z_target of every pair."""
        ...


@dataclass(frozen=True)
class Entry:
    """An explainer and what it costs an (image, target) pair: forward and backward passes at a given image size."""

    explain: Explainer
    passes: Callable[[int], tuple[int, int]]


def _leaf(images: Tensor) -> Tensor:
    """The images as a leaf of their own, so that gradients reach them and stay off the caller's tensor."""
    return images.detach().clone().requires_grad_()


def _last_activations(model: Classifier, images: Tensor) -> Tensor:
    """Output of the last block, [B, K, V, V]."""
    kept: list[Tensor] = []
    handle = model.cam_layer.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    return kept[0]


def _head_weights(model: Classifier, targets: Tensor) -> Tensor | None:
    """d z_target / d (pooled features), [B, K]; None where a network does not end in pooling and one linear layer."""
    pool, head = getattr(model.network, "avgpool", None), getattr(model.network, "fc", None)
    pooled = isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))
    if not pooled or not isinstance(head, nn.Linear):
        return None
    weight = head.weight.detach()
    return weight[targets] if model.meaning.outputs == 2 else weight[0] * (2 * targets[:, None] - 1)


def gradcam(model: Classifier, inputs: Inputs) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) at the last block, with its ReLU.

    Where average pooling and one linear layer follow, the gradient is that layer's weight over the number of places, so
    no backward pass is run (Grad-CAM is then CAM, Zhou et al., CVPR 2016); else captum's LayerGradCam.
    """
    weights = _head_weights(model, inputs.targets)
    if weights is None:
        cam = attr.LayerGradCam(model, model.cam_layer)
        maps = cam.attribute(_leaf(inputs.images), target=inputs.targets, relu_attributions=True)
        return maps[:, 0].detach()
    activations = _last_activations(model, inputs.images)
    places = activations.shape[2] * activations.shape[3]
    return torch.einsum("bk,bkhw->bhw", weights / places, activations).relu()


def saliency(model: Classifier, inputs: Inputs) -> Tensor:
    """|d z_target / d input|, summed over channels (Simonyan et al., 2014)."""
    return attr.Saliency(model).attribute(_leaf(inputs.images), target=inputs.targets).sum(1).detach()


def input_x_gradient(model: Classifier, inputs: Inputs) -> Tensor:
    """Input times gradient, in model space (Shrikumar et al., 2016)."""
    return attr.InputXGradient(model).attribute(_leaf(inputs.images), target=inputs.targets).sum(1).detach()


def integrated_gradients(model: Classifier, inputs: Inputs) -> Tensor:
    """Integrated gradients (Sundararajan et al., ICML 2017) from the black image, 32 Gauss-Legendre steps."""
    maps = attr.IntegratedGradients(model).attribute(
        inputs.images,
        baselines=inputs.black.expand_as(inputs.images),
        target=inputs.targets,
        n_steps=IG_STEPS,
        internal_batch_size=max(IG_STEPS, len(inputs.images)),
    )
    return maps.sum(1).float().detach()


def _window(size: int) -> tuple[int, int]:
    return max(1, size // 7), max(1, size // 14)


def occlusion(model: Classifier, inputs: Inputs) -> Tensor:
    """Occlusion (Zeiler & Fergus, ECCV 2014): window size / 7, stride size / 14, the blurred image as baseline."""
    window, stride = _window(inputs.images.shape[-1])
    with torch.no_grad():
        maps = attr.Occlusion(model).attribute(
            inputs.images,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=inputs.blurred,
            target=inputs.targets,
            perturbations_per_eval=max(1, OCCLUSION_BATCH // len(inputs.images)),
        )
    return maps.sum(1).float()


def _occlusion_passes(size: int) -> tuple[int, int]:
    window, stride = _window(size)
    windows = -(-(size - window) // stride) + 1
    return windows**2 + 1, 0


def random(model: Classifier, inputs: Inputs) -> Tensor:
    """Uniform noise on 7 x 7 places: knows nothing of model or image, and has no reason to be faithful."""
    keys = torch.tensor([randomness.key(inputs.seed, i, "random explainer") for i in inputs.ids])
    return randomness.uniform(keys.to(inputs.images.device), 49).view(-1, 7, 7)


EXPLAINERS: dict[str, Entry] = {
    "gradcam": Entry(gradcam, lambda size: (1, 0)),
    "saliency": Entry(saliency, lambda size: (1, 1)),
    "input_x_gradient": Entry(input_x_gradient, lambda size: (1, 1)),
    "integrated_gradients": Entry(integrated_gradients, lambda size: (IG_STEPS, IG_STEPS)),
    "occlusion": Entry(occlusion, _occlusion_passes),
    "random": Entry(random, lambda size: (0, 0)),
}
