"""Perturbation curves: log-odds over levels, with named axes.

Shapes: N or P rankings (of images, or of (image, target) pairs), D draws, F fills, O directions, L levels asked for, U
units. Curves stand over the levels 0, asked for, 1: [N, D, F, O, L + 2].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from cxr_ray.measure import rankings
from cxr_ray.measure.batch import Batch, Pairs
from cxr_ray.measure.capacity import PLACES
from cxr_ray.measure.metrics import Key, evaluate, place
from cxr_ray.measure.scoring import masked_scores
from cxr_ray.measure.shards import take
from cxr_ray.measure.transfer import Result, to_device
from cxr_ray.schemas import CURVES

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Axes:
    """What is measured on one grid: the axes of its curves.

    Attributes:
        grid, units: its name, and how many pixels or cells it has.
        fills, directions: names, in the order of the axes.
        levels: those asked for.
        primary: the metric that is tested, and its level.
        places: of rankings in memory at a time.
    """

    grid: str
    units: int
    fills: list[str]
    directions: list[str]
    levels: list[float]
    primary: Key
    places: int = PLACES

    @classmethod
    def of(cls, batch: Batch, grid: str) -> Axes:
        """The axes of a batch's curves on one of its grids."""
        perturb, units = batch.sweep.perturb, rankings.side(grid, batch.size) ** 2
        fills, directions = [*map(str, perturb.fills)], [*map(str, perturb.orders)]
        return cls(grid, units, fills, directions, list(perturb.levels), batch.tested.key, batch.network.places)

    @cached_property
    def counts(self) -> list[int]:
        """Units perturbed at the levels 0, asked for, 1."""
        return [0, *rankings.counts(self.levels, self.units), self.units]

    @cached_property
    def done(self) -> Array:
        """Shares perturbed at the levels 0, asked for, 1."""
        return np.array(self.counts) / self.units

    def portions(self, draws: int, n_rankings: int) -> list[range]:
        """The numbers of the draws, so many at a time as memory is meant to hold with ``n_rankings`` in each draw."""
        n = max(1, self.places // (n_rankings * self.units))
        return [range(first, min(first + n, draws)) for first in range(0, draws, n)]


@dataclass(frozen=True)
class Curves:
    """Log-odds of the target, for the draws of a control or (one draw) for the map itself.

    Attributes:
        axes: fills, directions and levels.
        made: the log-odds, [P, D, F, O, L + 2]; NaN where there is no such draw, or the map is not finite.
        drawn: whether there is such a draw, bool [P, D].
        overlaps: share of the map's own perturbed units that the control perturbs too, [P, D, O, L + 2]; None: not
            measured, for controls made from nothing.
        quarters: the same of the most salient quarter, [P, D], whatever the levels; None: not measured.
    """

    axes: Axes
    made: Result
    drawn: NDArray[np.bool_]
    overlaps: Result | None = None
    quarters: Result | None = None

    @cached_property
    def logit(self) -> Array:
        """``made`` on the host, float64."""
        return self.made.array().astype(np.float64)

    @property
    def logit_full(self) -> Array:
        """Log-odds of the fully filled image, [P, F]."""
        return self.logit[:, 0, :, 0, -1]

    @property
    def logit_untouched(self) -> Array:
        """Log-odds of the untouched image, [P, F]."""
        return self.logit[:, 0, :, 0, 0]

    def metrics(self, fill: int, scale: str) -> tuple[list[Key], Array]:
        """(metric, level) names and values [P, D, M] under one fill, on the scale logodds or prob."""
        scores = self.logit[:, :, fill] if scale == "logodds" else expit(self.logit[:, :, fill])
        by_direction = {name: scores[:, :, o] for o, name in enumerate(self.axes.directions)}
        return evaluate(by_direction, self.axes.levels, self.axes.done)

    @property
    def primary(self) -> Array:
        """The metric that is tested, in log-odds, [P, D, F]."""
        return primary_metric(self.axes, self.logit)

    def rows(self, control: str, pairs: Pairs) -> pa.Table:
        """Rows of ``curves``, for the draws that there are."""
        axes, shape = self.axes, self.logit.shape
        kept = np.broadcast_to(self.drawn[:, :, None, None, None], shape)
        pair, draw, fill, direction, level = np.nonzero(kept)
        logit = self.logit[kept]
        overlap = np.full(logit.shape, np.nan)
        if self.overlaps is not None:
            overlap = np.broadcast_to(self.overlaps.array()[:, :, None], shape)[kept]
        columns = {
            "image_id": take(pairs.ids, pair),
            "target": pairs.target[pair],
            "control": take([control], np.zeros_like(pair)),
            "draw": draw,
            "grid": take([axes.grid], np.zeros_like(pair)),
            "fill": take(axes.fills, fill),
            "direction": take(axes.directions, direction),
            "level": np.array([0.0, *axes.levels, 1.0])[level],
            "level_done": axes.done[level],
            "n_perturbed": np.array(axes.counts)[level],
            "prob_target": expit(logit),
            "logit_target": logit,
            "overlap": overlap,
        }
        return CURVES.build(columns)


def primary_metric(axes: Axes, logit_NDFOL: Array) -> Array:
    """The metric that is tested, [N, D, F]."""
    by_direction = {name: logit_NDFOL[..., o, :] for o, name in enumerate(axes.directions)}
    names, values = evaluate(by_direction, axes.levels, axes.done)
    return values[..., place(names, axes.primary)]


def score_rankings(
    batch: Batch,
    axes: Axes,
    places_NDU: Tensor,
    image_N: NDArray[np.integer],
    fill: int | None = None,
    scored_ND: NDArray[np.bool_] | None = None,
) -> Tensor:
    """Log-odds of PNEUMONIA along the curves of rankings: float32 [N, D, F, O, L + 2], NaN if not scored or not finite.

    Args:
        batch: the images.
        axes: what is measured.
        places_NDU: rankings, int32.
        image_N: each ranking's image.
        fill: the only one, so that F is 1; None: all.
        scored_ND: the rankings that are scored; None: all.
    """
    n, draws, _ = places_NDU.shape
    image_ND, places = np.repeat(image_N, draws), places_NDU.flatten(0, 1)
    chosen = None if scored_ND is None or scored_ND.all() else to_device(np.flatnonzero(scored_ND), batch.device)
    if scored_ND is not None and chosen is not None:
        image_ND, places = image_ND[scored_ND.ravel()], places[chosen]
    image = to_device(image_ND, batch.device)
    scores = masked_scores(
        batch.network.forward,
        batch.canvas if fill is None else batch.canvas.only(fill),
        places,
        image,
        axes.counts[1:-1],
        axes.directions,
        batch.network.batch_size,
    )
    filled_BF = batch.filled_on_device if fill is None else batch.filled_on_device[:, fill, None]
    ends = (*scores.shape[:-1], 1)
    untouched = batch.logit_on_device[image][:, None, None, None].expand(ends)
    filled = filled_BF[image][:, :, None, None].expand(ends)
    curves = torch.cat([untouched, scores, filled], -1)
    curves = torch.where(torch.isfinite(curves), curves, torch.nan)  # infinite ones would tie, and win
    if chosen is not None:
        every = curves.new_full((n * draws, *curves.shape[1:]), torch.nan)
        curves = every.index_copy_(0, chosen, curves)
    return curves.unflatten(0, (n, draws))


def overlaps(axes: Axes, places_PU: Tensor, control_PDU: Tensor) -> Tensor:
    """Share of the map's own perturbed units that controls perturb too, [P, D, O, L + 2]; NaN at level 0."""
    shares = [
        torch.stack([rankings.overlap(places_PU, control_PDU, n, direction) for n in axes.counts], -1)
        for direction in axes.directions
    ]
    return torch.stack(shares, 2)


def with_equal_masks(logit_PDFOL: Tensor, own_PFOL: Tensor, overlap_PDOL: Tensor, drawn_PD: Tensor) -> Tensor:
    """The log-odds of draws, with the map's own where a draw perturbs the same units in another order.

    It is the same masked image, and in another batch its score may round apart: a tie would look like a win.
    """
    equal = (overlap_PDOL == 1) & drawn_PD[:, :, None, None]
    return torch.where(equal[:, :, None], own_PFOL[:, None], logit_PDFOL)
