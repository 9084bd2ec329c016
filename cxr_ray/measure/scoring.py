"""Scores of masked images: one stream of batches over all masks.

Shapes: B images, N rankings or masks, F fills, O orders, L levels, U units (pixels or cells), S side of an image, J
jobs (one masked image each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cxr_ray.measure.masking import Canvas, Masks, masked_images
from cxr_ray.measure.rankings import cell_of
from cxr_ray.measure.transfer import to_device


def masked_scores(
    forward: Callable[[Tensor], Tensor],
    canvas: Canvas,
    places_NU: Tensor,
    image_of_N: Tensor,
    ns: Sequence[int],
    orders: Sequence[str],
    batch_size: int,
) -> Tensor:
    """Scores of every ranking x fill x order x level, float32 [N, F, O, L].

    Args:
        forward: model-space images [b, 3, S, S] to scores [b]; the images are gone at its next call.
        canvas: images and fills.
        places_NU: rankings, int32; U is a square number.
        image_of_N: the image of each ranking.
        ns: units to perturb at each of the L levels.
        orders: of morf and lerf.
        batch_size: masked images in one pass; batches are filled across rankings, fills, orders and levels.
    """
    device, (n_rankings, units), size = places_NU.device, places_NU.shape, canvas.size
    n_levels, n_orders = len(ns), len(orders)
    bounds = [(0, n) if order == "morf" else (units - n, units) for order in orders for n in ns]
    low, high = to_device(np.array(bounds, np.int32).T, device)
    shape = (n_rankings, canvas.n_fills, n_orders, n_levels)
    if not n_rankings:  # not every form takes an empty batch
        return torch.empty(shape, device=device)
    jobs = torch.arange(n_rankings * canvas.n_fills * n_orders * n_levels, device=device)
    g, unit_of_pixel = round(units**0.5), None
    if g != size:
        cell = cell_of(size, g, device)
        unit_of_pixel = (cell[:, None] * g + cell).flatten()
    given = Masks(places_NU, image_of_N, low, high, unit_of_pixel)
    scores = []
    for number, batch in enumerate(jobs.split(batch_size)):
        scores.append(forward(masked_images(canvas, given, batch, number * batch_size)))
    return torch.cat(scores).view(shape)


def region_scores(
    forward: Callable[[Tensor], Tensor], canvas: Canvas, masks_NU: Tensor, image_of_N: Tensor, batch_size: int
) -> Tensor:
    """Scores of every mask x fill, float32 [N, F]: ``masked_scores`` for given masks, bool [N, S * S]."""
    if not len(masks_NU):
        return torch.empty(0, canvas.n_fills, device=masks_NU.device)
    jobs = torch.arange(len(masks_NU) * canvas.n_fills, device=masks_NU.device)
    scores = []
    for number, batch in enumerate(jobs.split(batch_size)):
        mask, fill = batch // canvas.n_fills, batch % canvas.n_fills
        place = np.arange(number * batch_size, number * batch_size + len(batch)) % canvas.n_fills
        scores.append(forward(canvas.filled(image_of_N[mask], fill, masks_NU.index_select(0, mask), place)))
    return torch.cat(scores).view(len(masks_NU), canvas.n_fills)
