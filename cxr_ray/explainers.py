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


Cam = Callable[[Classifier, Inputs], tuple[Tensor, Tensor]]
"""A class activation map in parts: weights [B, K] or [B, K, V, V] and activations [B, K, V, V], to be combined."""


@dataclass(frozen=True)
class Entry:
    """An explainer and what it costs an (image, target) pair.

    Attributes:
        explain: the function.
        passes: forward and backward passes through the network at a given image size.
        model_free: it knows nothing of the model, so that randomising the model says nothing about it.
        cam: for class activation maps, the parts that ``explain`` combines.
    """

    explain: Explainer
    passes: Callable[[int], tuple[int, int]]
    model_free: bool = False
    cam: Cam | None = None


def combine(weights: Tensor, activations: Tensor) -> Tensor:
    """The class activation map relu(sum over K of weights * activations), [B, V, V]; weights [B, K] or [B, K, V, V]."""
    if weights.ndim == 2:
        return torch.einsum("bk,bkhw->bhw", weights, activations).relu()
    return (weights * activations).sum(1).relu()


def _leaf(images: Tensor) -> Tensor:
    """The images as a leaf of their own, so that gradients reach them and stay off the caller's tensor."""
    return images.detach().clone().requires_grad_()


def _last_block(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Activations of the last block and the gradient of z_target with respect to them, both [B, K, V, V].

    Where average pooling and one linear layer follow, as in every network of ``models.ARCHS``, the gradient is that
    layer's weight over the number of places, so no backward pass is run; else it is autograd's.
    """
    weights = _head_weights(model, inputs.targets)
    kept: list[Tensor] = []
    handle = model.cam_layer.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        with torch.set_grad_enabled(weights is None):
            z = model(inputs.images if weights is not None else _leaf(inputs.images))
    finally:
        handle.remove()
    activations = kept[0]
    if weights is None:
        chosen = z.gather(1, inputs.targets[:, None]).sum()
        return activations.detach(), torch.autograd.grad(chosen, activations)[0]
    places = activations.shape[2] * activations.shape[3]
    return activations, (weights / places)[:, :, None, None].expand_as(activations)


def _head_weights(model: Classifier, targets: Tensor) -> Tensor | None:
    """d z_target / d (pooled features), [B, K]; None where a network does not end in pooling and one linear layer."""
    network = model.network
    pool, head = getattr(network, "avgpool", getattr(network, "global_pool", None)), getattr(network, "fc", None)
    pooled = isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))
    timms = getattr(pool, "pool_type", None) == "avg"
    if not (pooled or timms) or not isinstance(head, nn.Linear):
        return None
    weight = head.weight.detach()
    return weight[targets] if model.meaning.outputs == 2 else weight[0] * (2 * targets[:, None] - 1)


def gradcam(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Grad-CAM (Selvaraju et al., ICCV 2017) at the last block: a channel's weight is its mean gradient.

    With pooling and one linear layer behind that block it is CAM (Zhou et al., CVPR 2016), up to a factor.
    """
    activations, gradients = _last_block(model, inputs)
    return gradients.mean((2, 3)), activations


def gradcam_plus_plus(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): a channel's weight is the sum of alpha relu(g) over its places.

    alpha = g^2 / (2 g^2 + sum(A) g^3), so alpha relu(g) = relu(g) / (2 + sum(A) relu(g)): no small number is needed in
    the denominator, which in other code outweighs g^2. The paper scores exp(z); its factor exp(z) of the whole map is
    left out.
    """
    activations, gradients = _last_block(model, inputs)
    g = gradients.relu()
    return (g / (2 + activations.sum((2, 3), keepdim=True) * g)).sum((2, 3)), activations


def layercam(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """LayerCAM (Jiang et al., TIP 2021) at the last block: each place has its own weight, relu of its gradient."""
    activations, gradients = _last_block(model, inputs)
    return gradients.relu(), activations


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


def _cam_entry(cam: Cam, passes: Callable[[int], tuple[int, int]]) -> Entry:
    return Entry(lambda model, inputs: combine(*cam(model, inputs)), passes, cam=cam)


EXPLAINERS: dict[str, Entry] = {
    "gradcam": _cam_entry(gradcam, lambda size: (1, 0)),
    "gradcam_plus_plus": _cam_entry(gradcam_plus_plus, lambda size: (1, 0)),
    "layercam": _cam_entry(layercam, lambda size: (1, 0)),
    "saliency": Entry(saliency, lambda size: (1, 1)),
    "input_x_gradient": Entry(input_x_gradient, lambda size: (1, 1)),
    "integrated_gradients": Entry(integrated_gradients, lambda size: (IG_STEPS, IG_STEPS)),
    "occlusion": Entry(occlusion, _occlusion_passes),
    "random": Entry(random, lambda size: (0, 0), model_free=True),
}
