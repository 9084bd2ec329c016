"""Where a map's mass lies: shares by region, spatial concentration, and the rows of ``saliency``.

Shapes: N maps (P where they are of (image, target) pairs), U pixels, V side of a map, S side of an image in pixels.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from cxr_ray.measure import regions
from cxr_ray.measure.batch import Batch
from cxr_ray.schemas import SALIENCY

CONCENTRATIONS = ("compact", "diffuse", "scattered", "border", "degenerate")
COMPACT_AREA, MANY_COMPONENTS = 0.25, 4  # share of the image; more components are scattered
EIGHT_NEIGHBOURS = ((1, 1, 1), (1, 1, 1), (1, 1, 1))
MAX_MAP_SIDE = 56  # of maps that are kept


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
    fixed = regions.masks(size, maps_NSS.device)
    out = {
        f"{name}_share": share[:, fixed[region].flatten()].sum(1).float()
        for name, region in (("border", "border"), ("corner", "corners"), ("centre", "centre"))
    }
    lungs = lungs_NSS.flatten(1)
    out["lung_share"] = torch.where(lungs.any(1), (share * lungs).sum(1), torch.nan).float()
    out["entropy"] = (torch.special.entr(share).sum(1) / torch.log(torch.tensor(float(size * size)))).float()
    half, n_half = _half_mass_area(share)
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


def _half_mass_area(share_NU: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest area that holds half of each map's mass, bool [N, U], and its pixels, int64 [N]."""
    ordered, order = share_NU.sort(dim=1, descending=True, stable=True)
    n_half = (ordered.cumsum(1) < 0.5).sum(1) + 1
    half = torch.zeros_like(share_NU, dtype=torch.bool)
    return half.scatter_(1, order, torch.arange(share_NU.shape[1], device=share_NU.device) < n_half[:, None]), n_half


def tied_share(maps_NU: Tensor) -> Tensor:
    """Share of values that another value of the same map equals, float32 [N]."""
    ordered = maps_NU.sort(dim=1).values
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = torch.zeros_like(same[:, :1])
    return (torch.cat([same, edge], 1) | torch.cat([edge, same], 1)).float().mean(1)


def saliency_rows(batch: Batch, maps_PVV: Tensor, full_PSS: Tensor) -> pa.Table:
    """Rows of ``saliency``.

    Args:
        batch: the images.
        maps_PVV: at the explainer's own resolution.
        full_PSS: at image size; those that are not finite are zero.
    """
    flat = maps_PVV.flatten(1)
    missing = ~torch.isfinite(flat).all(1).cpu().numpy()
    degenerate = (flat.amax(1) == flat.amin(1)).cpu().numpy() & ~missing
    lungs = batch.masks["lungs"][batch.pairs.image]
    described = {name: column.cpu().numpy() for name, column in describe(full_PSS, lungs).items()}
    kind = np.where(degenerate, CONCENTRATIONS.index("degenerate"), described.pop("concentration"))
    components = described.pop("components")
    described["tied"] = tied_share(full_PSS.flatten(1)).cpu().numpy()
    side = min(maps_PVV.shape[-1], MAX_MAP_SIDE)
    if side < maps_PVV.shape[-1]:
        maps_PVV = F.adaptive_avg_pool2d(maps_PVV[:, None], side)[:, 0]
    count = len(missing)
    columns = {
        "image_id": batch.pairs.ids,
        "target": batch.pairs.target,
        "map": list(maps_PVV.flatten(1).cpu().numpy()) if batch.sweep.explain.keep_maps else [None] * count,
        "map_height": np.full(count, side),
        "map_width": np.full(count, side),
        "degenerate": degenerate,
        "components": [None if lost else int(n) for lost, n in zip(missing, components, strict=True)],
        "concentration": [None if lost else CONCENTRATIONS[k] for lost, k in zip(missing, kind, strict=True)],
    }
    return SALIENCY.build(columns | {name: np.where(missing, np.nan, c) for name, c in described.items()})
