"""Infidelity: does a map say how much the score falls when a square of the image is filled? (Yeh et al., On the
(in)fidelity and sensitivity of explanations, NeurIPS 2019).

The map is read as an attribution: what it foretells of a square is its sum over the square, times one factor a map. The
squares and their effects are an image's, the same for every explainer, target and control.

Shapes: B images, N maps, K squares, S side of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_ray import randomness
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.scoring import region_scores
from cxr_ray.measure.transfer import to_device
from cxr_ray.randomness import key

SIDES = (14, 2)  # of the image's side: the smallest square is a 14th, the largest half of it
MAX_PIXELS = 2**26  # of masks in memory at a time


def squares(ids: Sequence[str], seed: int, size: int, n: int) -> Tensor:
    """Squares inside an image, int64 [B, K, 4]: top, left, bottom, right; the last two are the first pixels outside.

    Their sides are uniform between a 14th and half of the image's, their places uniform inside it.
    """
    keys = torch.tensor([key(seed, i, "infidelity") for i in ids], dtype=torch.int64)
    numbers = randomness.bits(keys, 3 * n).view(-1, n, 3)
    low, high = (max(1, size // share) for share in SIDES)
    side = low + numbers[..., 0] % (high - low + 1)
    top, left = (numbers[..., i] % (size - side + 1) for i in (1, 2))
    return torch.stack([top, left, top + side, left + side], -1)


def effects(batch: Batch, squares_BK4: Tensor) -> Tensor:
    """The fall of the log-odds of PNEUMONIA when each square is filled with the batch's first fill, float32 [B, K]."""
    n_squares, size = squares_BK4.shape[1], batch.size
    at = torch.arange(size, device=batch.device)
    canvas, found = batch.canvas.only(0), []
    for images in torch.arange(len(squares_BK4)).split(max(1, MAX_PIXELS // (n_squares * size**2))):
        top, left, bottom, right = squares_BK4[images].to(batch.device).flatten(0, 1)[:, :, None].unbind(1)
        rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
        inside = (rows[:, :, None] & columns[:, None, :]).flatten(1)
        of_image = to_device(np.repeat(images.numpy(), n_squares), batch.device)
        scores = region_scores(batch.network.forward, canvas, inside, of_image, batch.network.batch_size)
        found.append(scores[:, 0].view(len(images), n_squares))
    return batch.logit_on_device[:, None] - torch.cat(found)


def sums(maps_NSS: Tensor, squares_NK4: Tensor) -> Tensor:
    """Sums of maps over their image's squares, float64 [N, K].

    >>> sums(torch.ones(1, 4, 4), torch.tensor([[[0, 0, 2, 2], [1, 1, 4, 4]]])).tolist()
    [[4.0, 9.0]]
    """
    above_left = F.pad(maps_NSS.double().cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)  # sums of a corner's pixels
    top, left, bottom, right = squares_NK4.to(maps_NSS.device).unbind(2)

    def of(row: Tensor, column: Tensor) -> Tensor:
        return above_left.gather(1, row * (maps_NSS.shape[-1] + 1) + column)

    return of(bottom, right) - of(top, right) - of(bottom, left) + of(top, left)


def infidelity(foretold_NK: Tensor, effects_NK: Tensor) -> tuple[Tensor, Tensor]:
    """How far what maps foretell lies from the effects.

    A map's factor is the best that is not below 0: maps of any unit can be compared, and one that foretells the
    opposite is worth no more than none.

    Returns:
        float64 [N] each: infidelity, the mean squared difference in log-odds squared, lower is more faithful; and
        unexplained, the same over the mean squared effect, in [0, 1]: 1 is a map that says nothing, NaN where no square
        has an effect.
    """
    effects_NK = effects_NK.double()
    of_maps, together = (foretold_NK**2).mean(1), (foretold_NK * effects_NK).mean(1)
    factor = torch.where(of_maps > 0, together.clamp(min=0) / of_maps, 0.0)
    found, every = (factor[:, None] * foretold_NK - effects_NK).square().mean(1), effects_NK.square().mean(1)
    return found, torch.where(every > 0, found / every, torch.nan)
