"""Parts of an image, and the same shapes elsewhere. A new one is a function and an entry in REGIONS.

Shapes: B images, D draws, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.data.sources import all_counterfactuals
from cxr_ray.measure.transfer import to_device
from cxr_ray.registry import Registry

BORDER, CORNER, CENTRE = 0.10, 0.15, 0.50
LEAST = 0.1  # where every place overlaps the region, controls come from this share of places, those that do so least


@dataclass(frozen=True)
class Region:
    """A part of an image, and what others need to know of it.

    Attributes:
        mask: the image's size and the masks that are known (lungs, marker, opacity: bool [B, S, S]) to where it is,
            bool [S, S], or [B, S, S] (nowhere: this image has none).
        matched: masks of it, bool [B, S, S], somewhere in each image, and keys int64 [B, D], to its controls, bool
            [B, D, S, S]: the same shape elsewhere, each with exactly the region's number of pixels.
        caption: where it is, in a sentence.
        needs: the known mask that it is made from; None: it is the same in every image.
        donor_swap: the shape whose pixels are swapped with donor images of both classes: the recipient's mask, or its
            union with those of the donors; None: it is not swapped.
    """

    mask: Callable[[int, Mapping[str, Tensor]], Tensor]
    matched: Callable[[Tensor, Tensor], Tensor]
    caption: str
    needs: Literal["lungs", "marker", "opacity"] | None = None
    donor_swap: Literal["recipient", "union"] | None = None


def border(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """The outer 10% on each side."""
    at = _centres(size)
    outer = (at < BORDER) | (at > 1 - BORDER)
    return outer[:, None] | outer[None, :]


def corners(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """Squares of 15%."""
    at = _centres(size)
    edge = (at < CORNER) | (at > 1 - CORNER)
    return edge[:, None] & edge[None, :]


def centre(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """The middle 50% x 50%."""
    at = _centres(size)
    middle = (at > (1 - CENTRE) / 2) & (at < (1 + CENTRE) / 2)
    return middle[:, None] & middle[None, :]


def _centres(size: int) -> Tensor:
    """Of pixels, as shares of the side."""
    return (torch.arange(size) + 0.5) / size


def lungs(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """The lungs, where they are known."""
    return known["lungs"]


def outside_lungs(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """All but the lungs, where they are known."""
    lungs = known["lungs"]
    return ~lungs & lungs.flatten(1).any(1)[:, None, None]


def marker(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """The marker of a phantom."""
    return known["marker"]


def opacity(size: int, known: Mapping[str, Tensor]) -> Tensor:
    """The opacity of a phantom."""
    return known["opacity"]


# Matched controls: as many pixels as the region has, in the same shape, elsewhere.


def frames(masks_BSS: Tensor, keys_BD: Tensor) -> Tensor:
    """A frame at another radius, the last ring in part."""
    size, device = masks_BSS.shape[-1], keys_BD.device
    at = torch.arange(size, device=device)
    to_edge = torch.minimum(at, size - 1 - at)
    ring = torch.minimum(to_edge[:, None], to_edge)  # 0: the outermost
    place = torch.empty(size * size, dtype=torch.int64, device=device)
    place[ring.flatten().argsort(stable=True)] = torch.arange(size * size, device=device)
    n = int(border(size, {}).sum())
    first = int(border(size, {})[size // 2, : size // 2].sum())  # the ring inside the border
    radii = [r for r in range(first, size // 2) if (size - 2 * r) ** 2 >= n]
    order = randomness.permutation(keys_BD[:, 0], len(radii))  # no frame twice before each was there
    draws = torch.arange(keys_BD.shape[1], device=device) % len(radii)
    start = size**2 - (size - 2 * (first + order[:, draws])) ** 2
    inside = (place >= start[..., None]) & (place < start[..., None] + n)
    return inside.unflatten(2, (size, size))


def squares(masks_BSS: Tensor, keys_BD: Tensor) -> Tensor:
    """Four squares, moved inwards alike."""
    size, device = masks_BSS.shape[-1], keys_BD.device
    room = int(corners(size, {})[0, : size // 2].sum())
    offsets = np.arange(size // 2 - room + 1)
    places = to_device(np.argwhere(np.maximum.outer(offsets, offsets) >= room), device)
    down, right = places[_chosen(keys_BD, len(places))].unbind(-1)
    at = torch.arange(size, device=device)
    to_edge = torch.minimum(at, size - 1 - at)
    rows, columns = ((to_edge >= o[..., None]) & (to_edge < o[..., None] + room) for o in (down, right))
    return rows[..., :, None] & columns[..., None, :]


def elsewhere(masks_BSS: Tensor, keys_BD: Tensor) -> Tensor:
    """The mask, turned and moved to where it stays whole and leaves the region free.

    Where there is no such place, it is rolled over the edges; where every roll meets the region, the place is one of
    the tenth that do so least.
    """
    size = masks_BSS.shape[-1]
    turned = torch.stack([torch.rot90(m, k, (1, 2)) for m in (masks_BSS, masks_BSS.flip(2)) for k in range(4)], 1)
    # overlap with the region after a roll by (down, right): a correlation, whole numbers
    spectrum = torch.fft.rfft2(masks_BSS[:, None].double()) * torch.fft.rfft2(turned.double()).conj()
    overlap = torch.fft.irfft2(spectrum, s=(size, size)).round()
    at = torch.arange(size, device=masks_BSS.device)
    whole = []
    for line in (turned.any(3), turned.any(2)):
        first, last = line.int().argmax(2), size - 1 - line.flip(2).int().argmax(2)
        whole.append((first[..., None] + at) % size + (last - first)[..., None] < size)
    free = (overlap == 0).flatten(1)
    least = overlap.flatten(1)
    few = least.kthvalue(max(1, int(LEAST * least.shape[1])), dim=1, keepdim=True).values
    good = free & (whole[0][..., None] & whole[1][..., None, :]).flatten(1)
    good = torch.where(good.any(1, keepdim=True), good, free)
    good = torch.where(good.any(1, keepdim=True), good, (least <= few) & (least < masks_BSS.sum((1, 2))[:, None]))
    count = good.cumsum(1)
    place = torch.searchsorted(count, _chosen(keys_BD, count[:, -1:]) + 1)  # the chosen one of the good places
    turn, down, right = place // size**2, place // size % size, place % size
    y, x = (at - down[..., None]) % size, (at - right[..., None]) % size
    image = torch.arange(len(masks_BSS), device=at.device)[:, None, None, None]
    return turned[image, turn[..., None, None], y[..., :, None], x[..., None, :]]


def _chosen(keys: Tensor, n: int | Tensor) -> Tensor:
    """One of 0 .. n - 1 for each key, in the keys' shape; a tensor n is broadcast to it."""
    return randomness.bits(keys.flatten(), 1)[:, 0].view(keys.shape) % n


REGIONS = Registry(
    "region",
    {
        "border": Region(border, frames, "The outer 10% on each side.", donor_swap="recipient"),
        "corners": Region(corners, squares, "The four squares of 15% in the corners.", donor_swap="recipient"),
        "centre": Region(centre, elsewhere, "The middle 50% x 50%.", donor_swap="recipient"),
        "lungs": Region(lungs, elsewhere, "The lungs.", needs="lungs", donor_swap="recipient"),
        "outside_lungs": Region(outside_lungs, elsewhere, "All but the lungs.", needs="lungs"),
        "marker": Region(
            marker,
            elsewhere,
            "The marker of a phantom.",
            needs="marker",
            donor_swap="union",
        ),
        "opacity": Region(opacity, elsewhere, "The opacity of a phantom.", needs="opacity"),
    },
)


def masks(size: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The regions that are the same in every image, bool [size, size] each."""
    return {name: r.mask(size, {}).to(device) for name, r in REGIONS.items() if r.needs is None}


def of_images(
    names: Sequence[str], known: Mapping[str, Tensor], n: int, size: int, device: torch.device
) -> dict[str, Tensor]:
    """The regions of n images, bool [n, size, size] each; nowhere: this image has none.

    ``known``: lungs, marker and opacity, as far as they are known, bool [n, size, size].
    """
    nowhere = torch.zeros(n, size, size, dtype=torch.bool, device=device)
    entries = {name: REGIONS[name] for name in names}
    return {
        name: nowhere if r.needs and r.needs not in known else r.mask(size, known).to(device).expand(n, -1, -1)
        for name, r in entries.items()
    }


def mask_of_version(version: str) -> str:
    """The known mask of what an image that is rendered again changes.

    >>> mask_of_version("glyph")
    'marker'
    """
    return next(part for part, versions in all_counterfactuals().items() if version in versions)
