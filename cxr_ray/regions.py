"""Where a map's mass lies: border, corners, centre.

Shapes: N maps, S side of an image in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

BORDER, CORNER, CENTRE = 0.10, 0.15, 0.50
LOCALIZED_MASS, LOCALIZED_AREA = 0.5, 0.15


def masks(size: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """bool [size, size] each: border (outer 10% on each side), corners (squares of 15%), centre (middle 50% x 50%)."""
    at = (torch.arange(size, device=device) + 0.5) / size
    outer, edge = (at < BORDER) | (at > 1 - BORDER), (at < CORNER) | (at > 1 - CORNER)
    middle = (at > (1 - CENTRE) / 2) & (at < (1 + CENTRE) / 2)
    return {
        "border": outer[:, None] | outer[None, :],
        "corner": edge[:, None] & edge[None, :],
        "centre": middle[:, None] & middle[None, :],
    }


def describe(maps_NSS: Tensor) -> dict[str, Tensor]:
    """Shares of the positive mass by region, entropy and focus of finite maps at image size.

    Returns:
        border_share, corner_share, centre_share, entropy: float32 [N], NaN without positive mass;
        focus: int64 [N], index into FOCUS.
    """
    size = maps_NSS.shape[-1]
    mass = maps_NSS.clamp(min=0).flatten(1).double()
    total = mass.sum(1, keepdim=True)
    share = mass / total  # NaN where there is no positive mass
    out = {
        f"{name}_share": share[:, mask.flatten()].sum(1).float() for name, mask in masks(size, maps_NSS.device).items()
    }
    out["entropy"] = (torch.special.entr(share).sum(1) / torch.log(torch.tensor(float(size * size)))).float()
    top = share.sort(dim=1, descending=True).values[:, : round(LOCALIZED_AREA * size * size)].sum(1)
    border_area = masks(size)["border"].float().mean().item()
    focus = torch.where(
        out["border_share"] >= 2 * border_area,
        FOCUS.index("border"),
        torch.where(top >= LOCALIZED_MASS, FOCUS.index("localized"), FOCUS.index("diffuse")),
    )
    out["focus"] = torch.where(total[:, 0] > 0, focus, FOCUS.index("degenerate"))
    return out


FOCUS = ("border", "localized", "diffuse", "degenerate")


def tied_share(maps_NU: Tensor) -> Tensor:
    """Share of values that another value of the same map equals, float32 [N]."""
    ordered = maps_NU.sort(dim=1).values
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = torch.zeros_like(same[:, :1])
    return (torch.cat([same, edge], 1) | torch.cat([edge, same], 1)).float().mean(1)
