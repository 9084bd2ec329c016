"""The most salient quarter of a ranking, how smooth its mask is, and random fields that are as smooth.

Shapes: N maps, P (image, target) pairs, D draws, U units (pixels or cells), G side of the grid in
units, K knots along each side.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.measure import rankings

QUARTER = 0.25  # the share at which masks are compared
FINEST, STEP = 0.25, 1.05  # units, and the step between the length scales that a field may have
REACH = 3.5  # length scales after which the kernel is cut off

Floats = NDArray[np.floating]


def quarter(places_U: Tensor) -> Tensor:
    """The mask of the most salient quarter of rankings [..., U]: exactly round(U / 4) units, bool [..., G, G]."""
    units = places_U.shape[-1]
    g = math.isqrt(units)
    return (places_U < round(QUARTER * units)).unflatten(-1, (g, g))


def overlap_of_quarters(places_PU: Tensor, control_PDU: Tensor) -> Tensor:
    """Share of the most salient quarter of rankings that the quarter of each draw covers, float32 [P, D]."""
    return rankings.overlap(places_PU, control_PDU, round(QUARTER * places_PU.shape[-1]), "morf")


def perimeter(masks_GG: Tensor) -> Tensor:
    """Edges between neighbouring units of which one is inside a mask, int64 [...], of masks bool [..., G, G].

    The border of the image is no edge: nothing lies behind it.

    >>> perimeter(torch.eye(3, dtype=torch.bool)).item()
    8
    """
    down = masks_GG[..., 1:, :] ^ masks_GG[..., :-1, :]
    right = masks_GG[..., 1:] ^ masks_GG[..., :-1]
    return down.sum((-2, -1)) + right.sum((-2, -1))


def expected_perimeter(sigma: float, g: int) -> float:
    """The mean perimeter of the highest quarter of white noise under a Gaussian filter, on a grid of g x g.

    Two neighbours of correlation r lie on different sides of the quantile u with the probability 4 T(u, sqrt((1 - r) /
    (1 + r))), T of Owen (Ann. Math. Statist. 1956). That holds for a fixed threshold. A mask takes its threshold from
    the grid itself, which raises the perimeter where the grid holds few length scales: by the factor sqrt(1 + (4 sigma
    / g)^2), found by simulation and right within 5% for g from 14, 15% for 7.

    Args:
        sigma: of the filter, in units.
        g: units along each side.
    """
    from scipy.special import ndtri, owens_t

    kernel = np.exp(-0.5 * (np.arange(-math.ceil(REACH * sigma) - 1, math.ceil(REACH * sigma) + 2) / sigma) ** 2)
    r = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    apart = 4 * owens_t(ndtri(1 - QUARTER), math.sqrt((1 - r) / (1 + r)))
    return 2 * g * (g - 1) * apart * math.hypot(1, 4 * sigma / g)


@lru_cache
def length_scales(g: int) -> tuple[Floats, Floats]:
    """The length scales that fields on g x g may have, in units, and their expected perimeters, which fall.

    They stand in steps, so that a map which another batch or device rounds apart still gets the same field.
    """
    steps = math.ceil(math.log(2 * g / FINEST, STEP))
    sigmas = FINEST * STEP ** np.arange(steps + 1)
    return sigmas, np.array([expected_perimeter(sigma, g) for sigma in sigmas])


def scale_of(perimeter_N: Floats, g: int) -> Floats:
    """The length scale whose expected perimeter is nearest in ratio, [N]; beyond either end, the end."""
    sigmas, expected = length_scales(g)
    at = np.log(np.maximum(perimeter_N, 1))[:, None] - np.log(expected)
    return sigmas[np.abs(at).argmin(1)]


def gaussian_fields(keys_N: Tensor, sigma: float, g: int) -> Tensor:
    """White noise under a Gaussian filter, a field for each key, float32 [N, G, G].

    The noise stands on knots max(1, floor(sigma)) units apart and reaches beyond the grid, so that no place is special.
    Sums are in float64, so that every device and batch rounds to the same field.
    """
    step = max(1, math.floor(sigma))
    beyond = math.ceil(REACH * sigma / step)
    knots = (torch.arange(-beyond, (g - 1) // step + 2 + beyond) * step).double()
    kernel_GK = torch.exp(-0.5 * ((torch.arange(g)[:, None] - knots) / sigma) ** 2).to(keys_N.device)
    noise = randomness.normal(keys_N, len(knots) ** 2).view(-1, len(knots), len(knots))
    return (kernel_GK @ noise.double() @ kernel_GK.T).float()
