"""Parts of an image: where a map's mass lies, what is removed or exchanged, and the same shapes elsewhere.

Shapes: N maps, B images, D draws, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from cxr_ray import randomness
from cxr_ray.config import SEGMENTER, Sweep
from cxr_ray.data.sources import SOURCES, all_counterfactuals
from cxr_ray.errors import WeightsError
from cxr_ray.registry import Registry

BORDER, CORNER, CENTRE = 0.10, 0.15, 0.50
COMPACT_AREA, MANY_COMPONENTS = 0.25, 4  # share of the image; more components are scattered
LEAST = 0.1  # where every place overlaps the region, controls come from this share of places, those that do so least
SEGMENTER_SIDE = 512


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
        family: edge: what the hypothesis of shortcuts at the image's edge is judged by.
    """

    mask: Callable[[int, Mapping[str, Tensor]], Tensor]
    matched: Callable[[Tensor, Tensor], Tensor]
    caption: str
    needs: Literal["lungs", "marker", "opacity"] | None = None
    family: Literal["edge"] | None = None


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


def describe(maps_NSS: Tensor, lungs_NSS: Tensor) -> dict[str, Tensor]:
    """Shares of the positive mass by region, entropy and spatial concentration of finite maps at image size.

    Args:
        maps_NSS: the maps.
        lungs_NSS: bool, where the lungs are; nowhere: unknown.

    Returns:
        border_share, corner_share, centre_share, lung_share, entropy, half_mass_area (share of the image's area in the
        smallest area that holds half of the mass): float32 [N], NaN without positive mass (and lung_share without a
        mask); components: int64 [N], of that area, 0 without positive mass; concentration: int64 [N], index into
        CONCENTRATIONS.
    """
    size = maps_NSS.shape[-1]
    mass = maps_NSS.clamp(min=0).flatten(1).double()
    total = mass.sum(1, keepdim=True)
    share = mass / total  # NaN where there is no positive mass
    fixed = masks(size, maps_NSS.device)
    out = {
        f"{name}_share": share[:, fixed[region].flatten()].sum(1).float()
        for name, region in (("border", "border"), ("corner", "corners"), ("centre", "centre"))
    }
    lungs = lungs_NSS.flatten(1)
    out["lung_share"] = torch.where(lungs.any(1), (share * lungs).sum(1), torch.nan).float()
    out["entropy"] = (torch.special.entr(share).sum(1) / torch.log(torch.tensor(float(size * size)))).float()
    ordered, order = share.sort(dim=1, descending=True, stable=True)
    n_half = (ordered.cumsum(1) < 0.5).sum(1) + 1  # pixels of the smallest area that holds half of the mass
    half = torch.zeros_like(share, dtype=torch.bool)
    half.scatter_(1, order, torch.arange(size * size, device=share.device) < n_half[:, None])
    empty = total[:, 0] <= 0
    components = [ndimage.label(area, EIGHT_NEIGHBOURS)[1] for area in half.view(-1, size, size).cpu().numpy()]
    out["half_mass_area"] = torch.where(empty, torch.nan, n_half / size**2).float()
    out["components"] = torch.where(empty, 0, torch.tensor(components, device=share.device))
    kind = torch.full_like(n_half, CONCENTRATIONS.index("diffuse"))
    kind[(out["components"] == 1) & (out["half_mass_area"] <= COMPACT_AREA)] = CONCENTRATIONS.index("compact")
    kind[out["components"] > MANY_COMPONENTS] = CONCENTRATIONS.index("scattered")
    kind[out["border_share"] >= 2 * fixed["border"].float().mean().item()] = CONCENTRATIONS.index("border")
    kind[empty] = CONCENTRATIONS.index("degenerate")
    out["concentration"] = kind
    return out


CONCENTRATIONS = ("compact", "diffuse", "scattered", "border", "degenerate")
EIGHT_NEIGHBOURS = ((1, 1, 1), (1, 1, 1), (1, 1, 1))


def tied_share(maps_NU: Tensor) -> Tensor:
    """Share of values that another value of the same map equals, float32 [N]."""
    ordered = maps_NU.sort(dim=1).values
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = torch.zeros_like(same[:, :1])
    return (torch.cat([same, edge], 1) | torch.cat([edge, same], 1)).float().mean(1)


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
    offsets = torch.arange(size // 2 - room + 1, device=device)
    places = torch.cartesian_prod(offsets, offsets)
    places = places[(places >= room).any(1)]
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
        "border": Region(border, frames, "The outer 10% on each side.", family="edge"),
        "corners": Region(corners, squares, "The four squares of 15% in the corners.", family="edge"),
        "centre": Region(centre, elsewhere, "The middle 50% x 50%."),
        "outside_lungs": Region(outside_lungs, elsewhere, "All but the lungs.", needs="lungs"),
        "marker": Region(
            marker,
            elsewhere,
            "The marker of a phantom.",
            needs="marker",
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


# The fill exchange: what another patient's NORMAL image shows in the same place.


def partners(test: pd.DataFrame, val: pd.DataFrame, seed: int) -> dict[str, str]:
    """image_id to the path of the NORMAL image of another patient that it exchanges parts with, where there is one.

    They come from validation, which is NORMAL as the model learned it, markers and frames included; from test, where
    validation has none.

    Args:
        test, val: images with image_id, path, label and patient_id.
        seed: of the choice.
    """
    normal = next((n for rows in (val, test) if len(n := rows[rows["label"] == 0])), test.iloc[:0])
    normal = normal.sort_values("image_id")
    paths, patients = normal["path"].to_numpy(), normal["patient_id"].to_numpy()
    chosen = {}
    for image_id, patient in zip(test["image_id"], test["patient_id"], strict=True):
        others = paths[patients != patient]
        if len(others):
            chosen[image_id] = str(others[randomness.key(seed, image_id, "exchange") % len(others)])
    return chosen


def exposed_alike(donors_BCSS: Tensor, images_BCSS: Tensor) -> Tensor:
    """Donors scaled to the mean of the images that they lend to, at most 1; what is black stays black.

    Else a part of another exposure would stand out by its brightness.
    """
    own, mean = (x.mean((1, 2, 3), keepdim=True) for x in (images_BCSS, donors_BCSS))
    return (donors_BCSS * own / mean.clamp(min=1e-6)).clamp(max=1)


# Lungs by torchxrayvision's segmenter.

Segmenter = Callable[[Tensor], Tensor]


def wants_segmenter(sweep: Sweep) -> bool:
    """Whether the sweep's lung masks come from a network; a source may bring its own."""
    known = SOURCES[sweep.data.source].masks
    return sweep.regions is not None and sweep.regions.lungs == SEGMENTER and "lungs" not in known


def segmenter(device: torch.device | str = "cpu") -> Segmenter:
    """Uint8 images [B, 3, S, S] to lungs, bool [B, S, S]: PSPNet of torchxrayvision (Lian et al., IEEE TMI 2021).

    Raises:
        WeightsError: the package is missing, or its weights cannot be had.
    """
    remedy = "Give a folder of masks (regions.lungs), or none (regions.lungs=null, without outside_lungs)."
    try:
        from torchxrayvision.baseline_models.chestx_det import PSPNet
    except ImportError:
        raise WeightsError(
            f"regions.lungs: {SEGMENTER} needs a package that is not installed: pip install 'cxr-ray[lungs]'. {remedy}"
        ) from None
    try:
        network = PSPNet().eval().to(device)
    except Exception as e:  # its download raises whatever requests, the system and torch raise
        reason = (str(e).splitlines() or [type(e).__name__])[0].rstrip(".")
        raise WeightsError(
            f"regions.lungs: the weights of {SEGMENTER}'s PSPNet cannot be had ({reason[:200]}). With network access "
            f"try again. {remedy}"
        ) from None
    lungs = [i for i, name in enumerate(network.targets) if name in ("Left Lung", "Right Lung")]

    def segment(pixels_BCSS: Tensor) -> Tensor:
        size = pixels_BCSS.shape[-1]
        grey = pixels_BCSS.float().mean(1, keepdim=True) / 255
        large = F.interpolate(grey, (SEGMENTER_SIDE,) * 2, mode="bilinear", align_corners=False)
        logits = network(large * 2048 - 1024)[:, lungs].amax(1, keepdim=True)
        return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)[:, 0] > 0

    return segment
