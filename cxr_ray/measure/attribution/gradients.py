"""Gradients, and methods that average or propagate them.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block, J altered copies of
images in a pass, N altered copies of an image.

captum is imported where it is used: it takes half a second, which a mistake in a sweep need not wait for.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.measure import rankings
from cxr_ray.measure.attribution.cam import gradcam
from cxr_ray.measure.attribution.inputs import (
    Inputs,
    combine,
    copies,
    input_gradient,
    keys_of,
    leaf,
)
from cxr_ray.models.networks import Classifier

IG_STEPS = 32
SMOOTHGRAD_SAMPLES, SMOOTHGRAD_NOISE = 16, 0.15
GRADIENT_SHAP_SAMPLES = 16


def guided_gradcam(model: Classifier, inputs: Inputs) -> Tensor:
    """Guided Grad-CAM (Selvaraju et al., ICCV 2017): guided backpropagation times Grad-CAM, bilinear at image size."""
    from captum import attr

    from cxr_ray.measure.attribution.relus import with_separate_relus

    maps = rankings.upsample(combine(*gradcam(model, inputs)), inputs.images.shape[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # captum's, on the hooks that it sets on our copy
        guided = attr.GuidedBackprop(with_separate_relus(model)).attribute(leaf(inputs.images), inputs.targets)
    return guided.sum(1).detach() * maps


def saliency(model: Classifier, inputs: Inputs) -> Tensor:
    """|d z_target / d input|, summed over channels (Simonyan et al., 2014)."""
    from captum import attr

    return attr.Saliency(model).attribute(leaf(inputs.images), target=inputs.targets).sum(1).detach()


def input_x_gradient(model: Classifier, inputs: Inputs) -> Tensor:
    """Input times gradient, in model space (Shrikumar et al., 2016)."""
    from captum import attr

    return attr.InputXGradient(model).attribute(leaf(inputs.images), target=inputs.targets).sum(1).detach()


def smoothgrad(model: Classifier, inputs: Inputs) -> Tensor:
    """SmoothGrad (Smilkov et al., 2017): |mean gradient over 16 noisy copies|, summed over channels.

    Noise is Gaussian with 0.15 of the image's range as standard deviation, in pixel space and equal in all channels.
    As in the authors' code, gradients are averaged with their sign; captum's NoiseTunnel over Saliency averages their
    absolute values, and draws its noise from the global generator, so that a map would depend on its batch.
    """
    size = inputs.images.shape[-1]
    keys = randomness.bits(keys_of(inputs, "smoothgrad"), SMOOTHGRAD_SAMPLES)  # a key for each copy
    total = torch.zeros_like(inputs.images)
    pixels = (inputs.images * model.std + model.mean).flatten(1)
    sigma = SMOOTHGRAD_NOISE * (pixels.amax(1) - pixels.amin(1))[:, None, None, None]
    for image, copy_ in copies(inputs, SMOOTHGRAD_SAMPLES):
        noise = randomness.normal(keys[image, copy_], size * size).view(-1, 1, size, size)
        gradient = input_gradient(model, inputs.images[image] + sigma[image] * noise / model.std, inputs.targets[image])
        total.index_add_(0, image, gradient)
    return (total / SMOOTHGRAD_SAMPLES).abs().sum(1)


def integrated_gradients(model: Classifier, inputs: Inputs) -> Tensor:
    """Integrated gradients (Sundararajan et al., ICML 2017) from the black image, 32 Gauss-Legendre steps."""
    from captum import attr

    maps = attr.IntegratedGradients(model).attribute(
        inputs.images,
        baselines=inputs.black.expand_as(inputs.images),
        target=inputs.targets,
        n_steps=IG_STEPS,
        internal_batch_size=max(inputs.in_a_pass, len(inputs.images)),
    )
    return maps.sum(1).float().detach()


def grey_levels(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Gradient SHAP's baselines, grey levels in (0, 1), and the places on the way from there to the image, [B, N]."""
    numbers = randomness.uniform(keys_of(inputs, "gradient_shap"), 2 * GRADIENT_SHAP_SAMPLES)
    return numbers[:, ::2], numbers[:, 1::2]


def gradient_shap(model: Classifier, inputs: Inputs) -> Tensor:
    """Gradient SHAP (Lundberg & Lee, NeurIPS 2017; Erion et al., 2021): expected gradients over 16 random baselines.

    The mean of (image - baseline) times the gradient at a uniformly drawn point between them. A baseline is an image of
    one grey level, uniform between black and white, so that no brightness counts as absent, as black does in integrated
    gradients. captum's GradientShap draws from the global generator, so that a map would depend on its batch.
    """
    levels, ways = grey_levels(inputs)
    total = torch.zeros_like(inputs.images)
    for image, copy_ in copies(inputs, GRADIENT_SHAP_SAMPLES):
        baseline = model.normalize(levels[image, copy_][:, None, None, None])
        difference = inputs.images[image] - baseline
        way = ways[image, copy_][:, None, None, None]
        total.index_add_(
            0, image, difference * input_gradient(model, baseline + way * difference, inputs.targets[image])
        )
    return (total / GRADIENT_SHAP_SAMPLES).sum(1)


def deeplift(model: Classifier, inputs: Inputs) -> Tensor:
    """DeepLIFT (Shrikumar et al., ICML 2017) by its rescale rule, from the black image: complete up to rounding.

    Max pooling is taken apart into ReLUs, since captum's rule for it drops all but one of the overlapping windows that
    share a maximum. Products of activations (squeeze and excite) have no rule and follow the gradient: not complete.
    """
    from captum import attr

    from cxr_ray.measure.attribution.relus import with_separate_relus

    lift, maps = attr.DeepLift(with_separate_relus(model, pools=True)), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # captum's, on the hooks that it sets on our copy
        n = inputs.in_a_pass // 2  # an image and its baseline
        for images, targets in zip(inputs.images.split(n), inputs.targets.split(n), strict=True):
            black = inputs.black.expand_as(images)
            maps.append(lift.attribute(leaf(images), baselines=black, target=targets).sum(1).detach())
    return torch.cat(maps)
