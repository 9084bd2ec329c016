"""Methods that score altered copies of an image.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block, J altered copies of
images in a pass, N altered copies of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.measure import rankings
from cxr_ray.measure.attribution.inputs import (
    Inputs,
    copies,
    keys_of,
    z_target,
)
from cxr_ray.models.networks import Classifier

OCCLUSION_WINDOWS = 13  # along each side
RISE_MASKS, RISE_CELLS, RISE_KEPT = 1000, 7, 0.5
KERNEL_SHAP_SAMPLES, KERNEL_SHAP_CELLS = 256, 7


def occlusion(model: Classifier, inputs: Inputs) -> Tensor:
    """Occlusion (Zeiler & Fergus, ECCV 2014): the fall of z_target under a window of size / 7 of the blurred image.

    13 x 13 windows, a stride of size / 14 apart, all of them whole. A pixel gets the mean over the windows that cover
    it, so that a score that depends on every place alike gives a flat map at any size. Where strides leave a rest,
    captum's Occlusion cuts the last windows off and counts them as whole ones, which dims the right and lower edge.
    """
    inside_WS = occlusion_windows(inputs.images.shape[-1]).to(inputs.images.device)
    untouched = z_target(model, inputs.images, inputs.targets)
    lost = []
    for image, window in copies(inputs, OCCLUSION_WINDOWS**2):
        down, right = window // OCCLUSION_WINDOWS, window % OCCLUSION_WINDOWS
        covered = inside_WS[down, :, None] & inside_WS[right, None, :]
        occluded = torch.where(covered[:, None], inputs.blurred[image], inputs.images[image])
        lost.append(untouched[image] - z_target(model, occluded, inputs.targets[image]))
    lost_BWW = torch.cat(lost).view(-1, OCCLUSION_WINDOWS, OCCLUSION_WINDOWS).double()
    share_WS = inside_WS.double() / inside_WS.sum(0)
    return torch.einsum("bij,iy,jx->byx", lost_BWW, share_WS, share_WS).float()


def occlusion_windows(size: int) -> Tensor:
    """Whether a window covers a row (or column) of pixels, bool [13, size]: evenly spaced, the last at the edge."""
    length, steps = max(1, size // 7), OCCLUSION_WINDOWS - 1
    first = (torch.arange(OCCLUSION_WINDOWS) * (size - length) + steps // 2) // steps
    behind = torch.arange(size) - first[:, None]
    return (behind >= 0) & (behind < length)


def rise(model: Classifier, inputs: Inputs) -> Tensor:
    """RISE (Petsiuk et al., BMVC 2018): the mean z_target over 1000 random masks, each weighted by what it shows.

    Masks are the paper's: 7 x 7 cells, each kept with probability 1/2, stretched (bilinear) over 8 cells a side and cut
    out at a random offset. They are an image's own and multiply it in model space, as in the authors' code. The paper
    takes 4000 to 8000 masks, scores probabilities and divides a pixel's sum by its expected weight. z_target has no
    zero, so we divide by the pixel's own sum of weights: a constant added to z_target adds itself to the map alone.
    """
    size = inputs.images.shape[-1]
    weighted = torch.zeros_like(inputs.images[:, 0])
    shown, first = torch.zeros_like(weighted), torch.zeros(len(weighted), device=weighted.device)
    cells, offsets = rise_masks(inputs)
    for image, copy_ in copies(inputs, RISE_MASKS):
        masks = cut_out(cells[image, copy_].float(), offsets[image, copy_], size)
        z = z_target(model, inputs.images[image] * masks[:, None], inputs.targets[image])
        first[image[copy_ == 0]] = z[copy_ == 0]
        weighted.index_add_(
            0, image, (z - first[image])[:, None, None] * masks
        )  # so that equal scores give equal pixels
        shown.index_add_(0, image, masks)
    return first[:, None, None] + weighted / shown


def rise_masks(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The cells that are kept, bool [B, N, 7, 7], and the offsets in pixels, int64 [B, N, 2]."""
    cell = math.ceil(inputs.images.shape[-1] / RISE_CELLS)
    kept = randomness.uniform(keys_of(inputs, "rise cells"), RISE_MASKS * RISE_CELLS**2) < RISE_KEPT
    offsets = (randomness.uniform(keys_of(inputs, "rise offsets"), RISE_MASKS * 2) * cell).long()
    return kept.view(-1, RISE_MASKS, RISE_CELLS, RISE_CELLS), offsets.view(-1, RISE_MASKS, 2)


def cut_out(cells_JVV: Tensor, offsets_J2: Tensor, size: int) -> Tensor:
    """Masks [J, S, S] in [0, 1]."""
    cells = cells_JVV.shape[-1]
    large = rankings.upsample(cells_JVV, math.ceil(size / cells) * (cells + 1))
    y, x = (offsets_J2[:, axis, None] + torch.arange(size, device=large.device) for axis in (0, 1))
    return large[torch.arange(len(large), device=large.device)[:, None, None], y[:, :, None], x[:, None, :]]


def kernel_shap(model: Classifier, inputs: Inputs) -> Tensor:
    """Kernel SHAP (Lundberg & Lee, NeurIPS 2017) on 7 x 7 cells; a cell that is absent is black.

    256 coalitions an image, in pairs with their complements (Covert & Lee, AISTATS 2021), of sizes drawn by the Shapley
    kernel, so that each weighs the same in the regression; the values add up to z(image) - z(black) exactly. captum's
    KernelShap takes one image at a time and draws from the global generator.
    """
    size, device = inputs.images.shape[-1], inputs.images.device
    cell = rankings.cell_of(size, KERNEL_SHAP_CELLS, device)
    unit_of_pixel = cell[:, None] * KERNEL_SHAP_CELLS + cell
    present = coalitions(inputs)
    scores = []
    for image, copy_ in copies(inputs, present.shape[1]):
        shown = present[image, copy_][:, unit_of_pixel][:, None]
        scores.append(z_target(model, torch.where(shown, inputs.images[image], inputs.black), inputs.targets[image]))
    z = torch.cat(scores).view(present.shape[:2]).double()
    z, none, whole = z[:, :-2], z[:, -2:-1], z[:, -1:]
    player = present[:, :-2].double()
    # the last cell's value is what the others leave of whole - none
    left, right = player[:, :, :-1] - player[:, :, -1:], z - none - player[:, :, -1] * (whole - none)
    values = (torch.linalg.pinv(left) @ right[:, :, None])[:, :, 0]
    values = torch.cat([values, whole - none - values.sum(1, keepdim=True)], dim=1)
    return values.float().view(-1, KERNEL_SHAP_CELLS, KERNEL_SHAP_CELLS)


def coalitions(inputs: Inputs) -> Tensor:
    """Cells that are present, bool [B, N + 2, 49]: the sampled coalitions, then none and all."""
    cells, half = KERNEL_SHAP_CELLS**2, KERNEL_SHAP_SAMPLES // 2
    size = torch.arange(1, cells, device=inputs.images.device)
    share = (1 / (size * (cells - size))).cumsum(0)
    sizes = torch.searchsorted(share / share[-1], randomness.uniform(keys_of(inputs, "kernel_shap sizes"), half)) + 1
    order = randomness.bits(keys_of(inputs, "kernel_shap cells"), half * cells).view(-1, half, cells).argsort(2)
    chosen = order < sizes[:, :, None]
    edge = torch.zeros_like(chosen[:, :1])
    return torch.cat([chosen, ~chosen, edge, ~edge], dim=1)
