"""What explainers read and give, and what several of them share.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block, J altered copies of
images in a pass, N altered copies of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.models.networks import Classifier

PASS = 32  # images in a pass on a CPU, from which on the rate is flat
MOST = 512  # on a GPU, which that many fill
ACTIVATIONS = 100  # bytes that a backward pass holds for each byte of its images: a ResNet-18's 60, and a margin


def images_in_a_pass(device: torch.device, size: int) -> int:
    """Images of size x size that an explainer alters and scores together: as many as fill the device and fit.

    On GPUs the most, in steps of PASS, whose backward pass takes half of the free memory.
    """
    if device.type == "cpu":
        return PASS
    image = 3 * size * size * 4 * ACTIVATIONS
    free = torch.cuda.mem_get_info(device)[0] // 2
    return max(PASS, min(MOST, free // image // PASS * PASS))


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
        in_a_pass: images that are altered and scored together; maps do not depend on it but for rounding.
    """

    images: Tensor
    blurred: Tensor
    black: Tensor
    targets: Tensor
    ids: Sequence[str]
    seed: int
    in_a_pass: int = PASS


class Explain(Protocol):
    """Inputs to maps, float32 [B, V, V]. Leaves no hook and no gradient on the model."""

    def __call__(self, model: Classifier, inputs: Inputs) -> Tensor:
        """Explains z_target of every pair."""
        ...


Cam = Callable[[Classifier, Inputs], tuple[Tensor, Tensor]]
"""A class activation map in parts: weights [B, K] or [B, K, V, V] and activations [B, K, V, V], to be combined."""


@dataclass(frozen=True)
class Explainer:
    """An explainer, and what others need to know of it.

    Attributes:
        explain: the function.
        passes: forward and backward passes through the network for an (image, target) pair, at a given image size.
        caption: what it is, in a sentence with its source.
        model_free: model-independent, so that randomising the model says nothing about it.
        cam: for class activation maps, the parts that ``explain`` combines.
        needs: keys of ``needs.NEEDS``: what a network must have for it.
        passes_of_channel: more forward passes, for each channel of the feature maps.
    """

    explain: Explain
    passes: Callable[[int], tuple[int, int]]
    caption: str
    model_free: bool = False
    cam: Cam | None = None
    needs: tuple[str, ...] = ()
    passes_of_channel: int = 0

    def cost(self, size: int, channels: int) -> tuple[int, int]:
        """Forward and backward passes for an (image, target) pair of a network with so many feature maps."""
        forward, backward = self.passes(size)
        return forward + channels * self.passes_of_channel, backward


def combine(weights: Tensor, activations: Tensor) -> Tensor:
    """The class activation map relu(sum over K of weights * activations), [B, V, V]; weights [B, K] or [B, K, V, V]."""
    if weights.ndim == 2:
        return torch.einsum("bk,bkhw->bhw", weights, activations).relu()
    return (weights * activations).sum(1).relu()


def leaf(images: Tensor) -> Tensor:
    """The images as a leaf of their own, so that gradients reach them and stay off the caller's tensor."""
    return images.detach().clone().requires_grad_()


def keys_of(inputs: Inputs, purpose: str) -> Tensor:
    """A key for each pair's random numbers: the same for both targets of an image. int64 [B]."""
    keys = [randomness.key(inputs.seed, i, purpose) for i in inputs.ids]
    return torch.tensor(keys, device=inputs.images.device)


def copies(inputs: Inputs, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """N copies of every image, a pass at a time: the copies' images and their numbers under N, both int64 [J]."""
    for job in torch.arange(len(inputs.images) * n, device=inputs.images.device).split(inputs.in_a_pass):
        yield job // n, job % n


def z_target(model: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """z_target, [J]."""
    with torch.no_grad():
        return model(images).gather(1, targets[:, None])[:, 0].float()


def input_gradient(model: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """d z_target / d input, [J, 3, S, S]."""
    from captum import attr

    return attr.Saliency(model).attribute(leaf(images), target=targets, abs=False).detach()
