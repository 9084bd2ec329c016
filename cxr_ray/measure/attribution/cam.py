"""Class activation maps at the last block.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block, J altered copies of
images in a pass, N altered copies of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_ray.measure import rankings
from cxr_ray.measure.attribution.inputs import (
    Inputs,
    copies,
    z_target,
)
from cxr_ray.models import structure
from cxr_ray.models.networks import Classifier


def _last_block(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Activations of the last block and the gradient of z_target with respect to them, both [B, K, V, V].

    Where average pooling and one linear layer follow, the gradient is that layer's weight over the number of places;
    else it is autograd's, through what follows the block alone.
    """
    features, weights = model.features, head_weights(model, inputs.targets)
    if weights is None:

        def z_target(outputs: Tensor) -> Tensor:
            return model.logits(outputs).gather(1, inputs.targets[:, None]).sum()

        return structure.gradients(model.network, inputs.images, features, z_target)
    activations = structure.feature_maps(model.network, inputs.images, features)
    places = activations.shape[2] * activations.shape[3]
    return activations, (weights / places)[:, :, None, None].expand_as(activations)


def head_weights(model: Classifier, targets: Tensor) -> Tensor | None:
    """d z_target / d (pooled features), [B, K]; None where a network does not end in pooling and one linear layer."""
    found = model.structure
    columns = model.spec.columns
    is_sum = columns is not None and max(map(len, columns)) > 1  # of probabilities, which is not linear
    if not found.is_linear or found.head is None or is_sum:
        return None
    weight = model.network.get_submodule(found.head).weight.detach()
    return model.logits(weight.T)[:, targets].T


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


def scorecam(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Score-CAM (Wang et al., CVPR Workshops 2020) at the last block, with a mask for every one of its channels.

    A mask is the channel, bilinear at the image's size, scaled to [0, 1] (zero where the channel is constant) and
    multiplied in model space, so that what it hides becomes the normalisation's mean. A channel's weight is the softmax
    over channels of z_target; the paper's baseline score is the same for every channel and falls out.
    """
    activations = structure.feature_maps(model.network, inputs.images, model.features)
    scores = []
    for image, channel in copies(inputs, activations.shape[1]):
        mask = rankings.upsample(activations[image, channel], inputs.images.shape[-1])
        low, high = mask.amin((1, 2), keepdim=True), mask.amax((1, 2), keepdim=True)
        mask = torch.where(high > low, (mask - low) / (high - low), 0.0)
        scores.append(z_target(model, inputs.images[image] * mask[:, None], inputs.targets[image]))
    return torch.cat(scores).view(activations.shape[:2]).softmax(1), activations
