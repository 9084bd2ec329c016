"""Localisation of maps: how well they agree with where experts see the finding, beside their controls.

A control has no mass of its own. As in lung enrichment it gets the map's: the map's positive values, in the order of
the control's ranking. A new metric is a function and an entry in LOCALISATION.

Shapes: N maps, D draws, U pixels, M metrics, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray import schemas
from cxr_ray.data.truth import BOXES, TRUTH
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.faithfulness import compare, p_value
from cxr_ray.measure.lung_enrichment import mass_shares
from cxr_ray.measure.map_rankings import MapRankings
from cxr_ray.measure.shards import take
from cxr_ray.measure.transfer import to_device, to_host
from cxr_ray.registry import Registry

POINTING, PRIMARY = "pointing", "rank"  # the metric of yes or no; the one that figures show
_PORTION = 8  # draws at a time


@dataclass(frozen=True)
class Located:
    """Rankings of maps, or of a control's draws, and the expert truth.

    Attributes:
        values_NU: the maps' pixels.
        places_NDU: rankings of the pixels, 0 for the most salient.
        truth_NU: bool, where the finding is; somewhere in each image.
        boxes_NU: bool, the bounding boxes of its parts.
    """

    values_NU: Tensor
    places_NDU: Tensor
    truth_NU: Tensor
    boxes_NU: Tensor

    @cached_property
    def shares_ND2(self) -> Tensor:
        """Share of the positive values in the truth and in its boxes, float64; NaN where no value is positive."""
        return mass_shares(self.values_NU, self.places_NDU, torch.stack([self.truth_NU, self.boxes_NU], 1))

    @cached_property
    def found_ND(self) -> Tensor:
        """Share of the truth that the most salient pixels cover, as many as the truth has: float64."""
        pixels_N1 = self.truth_NU.sum(1)[:, None]
        top_NDU = self.places_NDU < pixels_N1[:, :, None]
        return (top_NDU & self.truth_NU[:, None]).sum(2).double() / pixels_N1


def pointing(located: Located) -> Tensor:
    """1 where the most salient pixel lies in the truth, else 0."""
    first_ND = located.places_NDU.argmin(2)
    return located.truth_NU.double().gather(1, first_ND)


def mass(located: Located) -> Tensor:
    """Share of the positive values in the truth."""
    return located.shares_ND2[:, :, 0]


def rank(located: Located) -> Tensor:
    """Share of the truth among as many most salient pixels."""
    return located.found_ND


def iou(located: Located) -> Tensor:
    """Intersection over union of the truth and as many most salient pixels."""
    return located.found_ND / (2 - located.found_ND)


def energy(located: Located) -> Tensor:
    """Share of the positive values in the bounding boxes of the truth's parts."""
    return located.shares_ND2[:, :, 1]


@dataclass(frozen=True)
class Localisation:
    """One metric of localisation; higher is better.

    Attributes:
        measure: its values [N, D], 0 to 1, NaN where there is none.
        caption: what it is, with its source.
        label: its name in print.
    """

    measure: Callable[[Located], Tensor]
    caption: str
    label: str


LOCALISATION = Registry(
    "metric of localisation",
    {
        POINTING: Localisation(
            pointing,
            "Pointing game (Zhang et al., IJCV 2018), without tolerance: 1 where the map's most salient pixel lies in "
            "the expert truth, else 0. A uniform map: the truth's share of the image.",
            "pointing game",
        ),
        "mass": Localisation(
            mass,
            "Relevance mass accuracy (Arras et al., Information Fusion 2022): share of the map's positive mass in the "
            "expert truth. A uniform map: the truth's share of the image.",
            "relevance mass accuracy",
        ),
        "rank": Localisation(
            rank,
            "Relevance rank accuracy (Arras et al., Information Fusion 2022): of K pixels of the expert truth, the "
            "share among the K most salient ones. A random ranking: the truth's share of the image.",
            "relevance rank accuracy",
        ),
        "iou": Localisation(
            iou,
            "Intersection over union of the expert truth and the most salient area of the same size: "
            "rank / (2 - rank).",
            "IoU at the truth's area",
        ),
        "energy": Localisation(
            energy,
            "Energy-based pointing game (Wang et al., CVPR workshops 2020): share of the map's positive mass in the "
            "bounding boxes of the expert truth's parts; equal to mass where the truth is boxes that do not touch.",
            "energy-based pointing game",
        ),
    },
)


def measured(located: Located) -> Tensor:
    """Every metric, float64 [N, D, M], in the order of LOCALISATION."""
    return torch.stack([entry.measure(located) for entry in LOCALISATION.values()], 2)


def localisation_rows(batch: Batch, map_rankings: MapRankings) -> pa.Table | None:
    """Rows of ``localisation`` for the maps and every control; None where no image has an expert truth."""
    if TRUTH not in batch.masks:
        return None
    truth_PU = batch.masks[TRUTH][batch.image_of_pair].flatten(1)
    which = np.flatnonzero(to_host(truth_PU.any(1)))
    if not len(which):
        return None
    at = to_device(which, batch.device)
    values, truth = map_rankings.full[at].flatten(1), truth_PU[at]
    boxes = batch.masks[BOXES][batch.image_of_pair[at]].flatten(1)

    def metrics(places_NDU: Tensor, drawn_ND: NDArray[np.bool_]) -> NDArray[np.floating]:
        found = to_host(measured(Located(values, places_NDU, truth, boxes)))
        return np.where(drawn_ND[:, :, None], found, np.nan)

    own = metrics(map_rankings.own("pixel")[at][:, None], np.ones((len(which), 1), dtype=bool))[:, 0]
    own[map_rankings.missing[which]] = np.nan
    area = to_host(truth.double().mean(1))
    tables = [_rows(batch, which, area, own, "none", None)]
    for control, draws in map_rankings.every_control("pixel").items():
        portions = (range(first, min(draws, first + _PORTION)) for first in range(0, draws, _PORTION))
        parts = [metrics(*map_rankings.draws(control, "pixel", which, numbers)) for numbers in portions]
        tables.append(_rows(batch, which, area, own, control, np.concatenate(parts, 1)))
    return pa.concat_tables(tables)


def _rows(
    batch: Batch,
    which: NDArray[np.integer],
    area_N: NDArray[np.floating],
    value_NM: NDArray[np.floating],
    control: str,
    control_NDM: NDArray[np.floating] | None,
) -> pa.Table:
    """Rows of the map alone, or against one control."""
    pairs, names = batch.pairs, list(LOCALISATION)
    n, m = value_NM.shape
    compared = {name: np.full((n, m), np.nan) for name in ("control_mean", "gap", "win_rate", "p_value")}
    compared["n_draws"] = np.zeros((n, m))
    if control_NDM is not None:
        found = compare(value_NM, control_NDM, np.ones(m, dtype=bool))
        compared |= {name: found[name] for name in ("control_mean", "gap", "win_rate", "n_draws")}
        compared["p_value"] = p_value(found["n_as_extreme"], found["n_draws"])
    pair = np.repeat(which, m)
    columns = {
        "image_id": take(pairs.ids, pair),
        "target": pairs.target[pair],
        "metric": names * n,
        "control": [control] * (n * m),
        "outcome": batch.outcome[pairs.image[pair]].tolist(),
        "area": np.repeat(area_N, m),
        "value": value_NM.ravel(),
        **{name: column.ravel() for name, column in compared.items()},
    }
    return schemas.LOCALISATION.build(columns)
