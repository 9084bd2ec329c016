"""Lung enrichment of maps: the share of their positive mass in the lungs over the lungs' share of the image.

A control has no mass of its own. It gets the map's: the map's positive values, in the order of the control's ranking.
For `shifted` that is the map rolled and turned; for random rankings the enrichment is 1 on average.

Shapes: N maps, D draws, U pixels, M masks, S side of an image in pixels.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_ray.measure.batch import Batch
from cxr_ray.measure.map_rankings import MapRankings
from cxr_ray.schemas import LUNGS

MASKS = ("given", "dilated", "eroded")
RIM = 4 / 224  # share of the side by which masks are dilated and eroded
_PORTION = 8  # draws at a time


def lung_masks(lungs_NSS: Tensor) -> Tensor:
    """The masks as given, dilated and eroded by a disk of RIM, bool [N, M, S, S]; what lies outside counts as neither.

    >>> point = torch.zeros(1, 112, 112, dtype=torch.bool)
    >>> point[0, 50, 50] = True
    >>> lung_masks(point).sum((2, 3)).tolist()  # a disk of radius 2
    [[1, 13, 0]]
    """
    radius = max(1, round(RIM * lungs_NSS.shape[-1]))
    at = torch.arange(-radius, radius + 1, device=lungs_NSS.device)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).float()[None, None]

    def dilated(mask: Tensor) -> Tensor:
        return F.conv2d(mask[:, None].float(), disk, padding=radius)[:, 0] > 0.5

    return torch.stack([lungs_NSS, dilated(lungs_NSS), ~dilated(~lungs_NSS)], 1)


def mass_shares(values_NU: Tensor, places_NDU: Tensor, masks_NMU: Tensor) -> Tensor:
    """Share of the positive values in each mask when they stand in the order of each ranking, float64 [N, D, M].

    Args:
        values_NU: the map's pixels.
        places_NDU: rankings of the pixels, 0 for the most salient.
        masks_NMU: bool.

    Returns:
        NaN where no value is positive.
    """
    ordered_NU = values_NU.double().clamp(min=0).sort(dim=1, descending=True).values
    total_N11 = ordered_NU.sum(1)[:, None, None]
    masks_NUM = masks_NMU.double().transpose(1, 2)
    shares = [  # draw by draw: the values of all at once would take much memory
        ordered_NU.gather(1, places_NDU[:, d].long())[:, None] @ masks_NUM for d in range(places_NDU.shape[1])
    ]
    inside_NDM = torch.cat(shares, 1)
    return torch.where(total_N11 > 0, inside_NDM / total_N11, torch.nan)


def lung_rows(batch: Batch, map_rankings: MapRankings) -> pa.Table | None:
    """Rows of ``lungs`` for the maps and each control made from or for them; None where no image has a mask."""
    pairs = batch.pairs
    lungs_PSS = batch.masks["lungs"][pairs.image]
    which = np.flatnonzero(lungs_PSS.flatten(1).any(1).cpu().numpy())
    if not len(which):
        return None
    masks = lung_masks(lungs_PSS[which]).flatten(2)
    area = masks.double().mean(2).cpu().numpy()
    values = map_rankings.full[which].flatten(1)
    missing = map_rankings.missing[which]
    tables = []
    for control, draws in {"none": 1, **map_rankings.controls}.items():
        total, count = np.zeros((len(which), len(MASKS))), np.zeros(len(which), dtype=np.int64)
        for start in range(0, draws, _PORTION):
            numbers = range(start, min(draws, start + _PORTION))
            if control == "none":
                places, drawn = map_rankings.own("pixel")[which][:, None], np.ones((len(which), 1), dtype=bool)
            else:
                places, drawn = map_rankings.draws(control, "pixel", which, numbers)
            shares = mass_shares(values, places, masks).cpu().numpy()
            total += np.where(drawn[:, :, None], shares, 0.0).sum(1)
            count += drawn.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(missing[:, None], np.nan, total / count[:, None])
            enrichment = np.where(area > 0, share / area, np.nan)
        rows = {
            "image_id": np.repeat([pairs.ids[i] for i in which], len(MASKS)),
            "target": np.repeat(pairs.target[which], len(MASKS)),
            "control": [control] * share.size,
            "mask": [*MASKS] * len(which),
            "draws": np.repeat(count, len(MASKS)),
            "share": share.flatten(),
            "area": area.flatten(),
            "enrichment": enrichment.flatten(),
        }
        tables.append(LUNGS.build(rows))
    return pa.concat_tables(tables)
