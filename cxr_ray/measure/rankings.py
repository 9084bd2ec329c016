"""Rankings of pixels or cells: grids, smooth fields, ranks and how ties are broken.

Shapes: N maps, P (image, target) pairs, D draws, U units (pixels or cells), S side of an image in pixels, G side of the
grid in units, V side of a map.

A ranking holds for each unit its place, 0 for the most salient. Perturbing a share f in order morf fills the units
whose place is under n = round(f U), in order lerf those whose place is at least U - n: one is the exact reverse of the
other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_ray import randomness
from cxr_ray.measure.transfer import to_device
from cxr_ray.randomness import key

GRIDS = ("pixel", "7", "14", "28")  # that a sweep may ask for; divisors of 224, so that cells are equal
KNOTS = 7  # of a smooth field, along each side


def side(grid: str, size: int) -> int:
    """Units along one side: the image's size for grid pixel, else the number in the grid's name.

    >>> side("pixel", 224), side("14", 224)
    (224, 14)
    """
    return size if grid == "pixel" else int(grid)


def counts(levels: Sequence[float], units: int) -> list[int]:
    """Units perturbed at each level: exactly round(level * units).

    >>> counts([0.05, 0.5], 49)
    [2, 24]
    """
    return [round(level * units) for level in levels]


def cell_of(size: int, g: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [size]: pixel y lies in cell floor(y g / size)."""
    return torch.arange(size, device=device) * g // size


def cell_means(maps_NSS: Tensor, g: int) -> Tensor:
    """Means over the cells of a g x g grid, [N, g, g]; the maps themselves where g is their size."""
    size = maps_NSS.shape[-1]
    if g == size:
        return maps_NSS
    member = F.one_hot(cell_of(size, g, maps_NSS.device), g).to(maps_NSS.dtype)
    member = member / member.sum(0)
    return torch.einsum("nyx,yg,xh->ngh", maps_NSS, member, member)


def upsample(maps_NVV: Tensor, size: int) -> Tensor:
    """Bilinear (align_corners false) to [N, size, size]; antialiased where that is smaller."""
    side = maps_NVV.shape[-1]
    if side == size:
        return maps_NVV
    maps = maps_NVV[:, None]
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False, antialias=side > size)[:, 0]


def smooth_field(keys_N: Tensor, size: int) -> Tensor:
    """A uniform random 7 x 7 field, bilinear to [N, size, size]."""
    return upsample(randomness.uniform(keys_N, KNOTS * KNOTS).view(-1, KNOTS, KNOTS), size)


def rank(maps_NU: Tensor, ties_NU: Tensor) -> Tensor:
    """Places, int32 [N, U], highest value first; equal values in the order of ``ties_NU``, highest first."""
    keys = _keys(maps_NU, ties_NU).neg_()  # one sort by both
    if keys.device.type == "cpu":  # torch sorts whole numbers by radix where they are one row, and twice as fast
        return places_of(torch.stack([row.sort(stable=True).indices for row in keys]))
    return places_of(keys.argsort(dim=1, stable=True))


def first(maps_NU: Tensor, ties_NU: Tensor, n: int) -> Tensor:
    """The units whose place in ``rank`` is under n, bool [N, U], without sorting them all.

    >>> first(torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[0.2, 0.1, 0.7]]), 2).tolist()
    [[False, True, True]]
    """
    keys_NU = _keys(maps_NU, ties_NU)
    if not 0 < n < keys_NU.shape[1]:
        return torch.full_like(keys_NU, n > 0, dtype=torch.bool)
    last_N1 = torch.stack([keys.kthvalue(keys.numel() - n + 1).values for keys in keys_NU])[:, None]
    lacking_N1 = n - (keys_NU > last_N1).sum(1, keepdim=True)
    level = keys_NU == last_N1  # equal in both: in their order
    return (keys_NU > last_N1) | level & (level.cumsum(1) <= lacking_N1)


def _keys(maps_NU: Tensor, ties_NU: Tensor) -> Tensor:
    """int64 [N, U], in the order of the maps, and of the ties where those are equal."""
    return _ordinal(maps_NU).long().mul_(2**32).add_(_ordinal(ties_NU))


def _ordinal(values: Tensor) -> Tensor:
    """int32, in the order of finite float32 values, whose bits are a sign and a magnitude."""
    bits = (values.float() + 0.0).view(torch.int32)  # adding 0 makes -0 one with 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def rank_on(maps_NSS: Tensor, ties_NSS: Tensor, g: int) -> Tensor:
    """Places of the cells of a g x g grid by the maps' means over them, int32 [N, g * g]."""
    return rank(*units(maps_NSS, ties_NSS, g))


def units(maps_NSS: Tensor, ties_NSS: Tensor, g: int) -> tuple[Tensor, Tensor]:
    """Values and ties of the cells of a g x g grid, each [N, g * g], as ``rank`` and ``first`` take them."""
    means = cell_means(maps_NSS, g)
    means = means if g == maps_NSS.shape[-1] else _rounded(means)
    return means.flatten(1), cell_means(ties_NSS, g).flatten(1)


def _rounded(maps_NVV: Tensor) -> Tensor:
    """To 2^-16 of each map's largest magnitude: cells equal but for the order of a sum tie, on every batch alike.

    Not for pixels: so many values would tie that are apart, and a pair of pixels in the other order changes little.
    """
    step = maps_NVV.abs().amax((1, 2), keepdim=True) * 2.0**-16
    return torch.where(step > 0, torch.round(maps_NVV / step) * step, 0.0)


def tie_fields(ids: Sequence[str], seed: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The smooth field that breaks each image's ties, [N, size, size]."""
    return smooth_field(to_device(np.array([key(seed, i, "ties") for i in ids]), torch.device(device)), size)


def at_size(maps_NVV: Tensor, size: int) -> Tensor:
    """Maps at image size, [N, size, size]; a constant one is zero, since upsampling may round it apart."""
    flat = maps_NVV.flatten(1)
    constant = flat.amax(1) == flat.amin(1)
    return torch.where(constant[:, None, None], 0.0, upsample(maps_NVV, size))


def places_of(order_NU: Tensor) -> Tensor:
    """Places, int32 [N, U], of units that are listed in their order.

    >>> places_of(torch.tensor([[2, 0, 1]])).tolist()
    [[1, 2, 0]]
    """
    places = torch.arange(order_NU.shape[1], dtype=torch.int32, device=order_NU.device).expand_as(order_NU)
    return torch.empty_like(order_NU, dtype=torch.int32).scatter_(1, order_NU, places)


def overlap(places_PU: Tensor, control_PDU: Tensor, n: int, order: str) -> Tensor:
    """Share of the map's own perturbed units that the control perturbs too, float32 [P, D]; NaN where n is 0.

    >>> own, control = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[[1, 0, 3, 2], [3, 2, 1, 0]]])
    >>> overlap(own, control, 2, "morf").tolist()
    [[1.0, 0.0]]
    """
    units = places_PU.shape[1]
    if order == "morf":
        both = (torch.maximum(places_PU[:, None], control_PDU) < n).sum(2)
    else:
        both = (torch.minimum(places_PU[:, None], control_PDU) >= units - n).sum(2)
    return both.float() / n
