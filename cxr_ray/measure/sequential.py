"""p-values of a map against the draws of a control: the fixed ones, and sequential ones until each test is decided.

Shapes: N maps (P: of all pairs), F fills, D draws, T draws so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.config import Sweep
from cxr_ray.measure.controls import CONTROLS, draws_at_most
from cxr_ray.measure.curves import Array, Curves, overlaps, primary_metric, score_rankings, with_equal_masks
from cxr_ray.measure.map_rankings import MapRankings
from cxr_ray.measure.metrics import METRICS
from cxr_ray.measure.shared import SharedControls
from cxr_ray.measure.transfer import to_device, to_host

MIN_DRAWS_FOR_P = 19


def p_value(n_as_extreme: Array, n_draws: Array) -> Array:
    """One-sided Monte Carlo p-value (1 + as extreme) / (1 + draws) (Davison & Hinkley, 1997); NaN under 19 draws."""
    return np.where(n_draws < MIN_DRAWS_FOR_P, np.nan, (1 + n_as_extreme) / (1 + n_draws))


def sequential_p(
    value_N: Array, control_NT: Array, higher: bool, extreme: int
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """One-sided p-values of draws that stop once ``extreme`` of them are as faithful as the map.

    The rule is applied draw by draw, so that what was drawn beyond the stop changes nothing. It is valid for any number
    of draws: P(p <= a) <= a where map and draws are exchangeable (Besag & Clifford, Biometrika 1991).

    Args:
        value_N: of the maps.
        control_NT: of the draws in their order; NaN behind the last.
        higher: whether a higher value is more faithful.
        extreme: draws as faithful or more at which to stop.

    Returns:
        [N] each: p, ``extreme`` / draws where it stopped, otherwise as ``p_value``; the draws behind it; whether it
        stopped. p is NaN where the map has no value.
    """
    sign = 1.0 if higher else -1.0
    as_extreme = (sign * (value_N[:, None] - control_NT) <= 0).cumsum(1)
    stopped = as_extreme[:, -1] >= extreme
    draws = np.where(stopped, (as_extreme < extreme).sum(1) + 1.0, (~np.isnan(control_NT)).sum(1))
    p = np.where(stopped, extreme / np.maximum(draws, 1), p_value(as_extreme[:, -1].astype(float), draws))
    return np.where(np.isnan(value_N), np.nan, p), draws, stopped


@dataclass(frozen=True)
class SequentialResult:
    """The test of one control by sequential draws.

    Attributes:
        p_value: of the primary metric, [P, F].
        n_draws: draws behind it, [P, F].
    """

    p_value: Array
    n_draws: Array


def tested_sequentially(sweep: Sweep, control: str) -> bool:
    """Whether a control's draws go on beyond the fixed ones."""
    return sweep.sequential is not None and control != "none" and CONTROLS[control].sequential


def sequential_test(
    maps: MapRankings, shared: SharedControls, control: str, curves: dict[str, Curves]
) -> SequentialResult:
    """Draw more of a control on one grid until each test of the primary metric is decided.

    Args:
        maps: the rankings of the maps.
        shared: the controls made from nothing.
        control: the one that is drawn.
        curves: of the map ("none") and of the control's fixed draws.
    """
    batch, axes = maps.batch, curves["none"].axes
    rule = batch.sweep.sequential
    assert rule is not None  # else nothing is tested sequentially
    most = draws_at_most(control, batch.sweep.controls[control], rule)
    higher = METRICS[axes.primary[0]].higher_is_faithful
    value_PF = curves["none"].primary[:, 0]
    seen_PFD = curves[control].primary.swapaxes(1, 2)
    shape = value_PF.shape
    while True:
        n = seen_PFD.shape[2]
        p_values, draws, stopped = sequential_p(value_PF.ravel(), seen_PFD.reshape(-1, n), higher, rule.extreme)
        # a control without a next draw has run out
        going = ~stopped.reshape(shape) & ~np.isnan(value_PF) & ~np.isnan(seen_PFD[:, :, -1])
        if n >= most or not going.any():
            return SequentialResult(p_values.reshape(shape), draws.reshape(shape))
        jobs = int(going.sum()) * len(axes.directions) * len(axes.levels)
        numbers = range(n, min(most, n + max(1, batch.network.batch_size // jobs)))
        seen_PFD = np.pad(seen_PFD, ((0, 0), (0, 0), (0, len(numbers))), constant_values=np.nan)
        for fill in np.flatnonzero(going.any(0)).tolist():
            pairs = np.flatnonzero(going[:, fill])
            if CONTROLS[control].family == "nothing":
                logit: Array = shared.further(control, axes, fill, pairs, numbers) * _signs(maps, pairs)
            else:
                logit = _further(maps, control, curves["none"], fill, (pairs, numbers))
            seen_PFD[pairs, fill, n:] = primary_metric(axes, logit)[:, :, 0]


def _signs(maps: MapRankings, pairs: NDArray[np.integer]) -> Array:
    return maps.batch.pairs.sign[pairs].reshape(-1, 1, 1, 1, 1)


def _further(
    maps: MapRankings, control: str, own: Curves, fill: int, asked: tuple[NDArray[np.integer], range]
) -> Array:
    """Log-odds of the target of further draws for some pairs, [N, D, 1, O, L + 2]."""
    pairs, numbers = asked
    places, drawn = maps.draws(control, own.axes.grid, pairs, numbers)
    image = maps.batch.pairs.image[pairs]
    logit = score_rankings(maps.batch, own.axes, places, image, fill, drawn)
    there = to_device(drawn, maps.batch.device)
    equal = maps.like_the_map(own.axes.grid, places, pairs) & there
    own_places = maps.own(own.axes.grid)[to_device(pairs, maps.batch.device)]
    own_NFOL = to_device(
        (own.logit[pairs, 0, fill : fill + 1] * _signs(maps, pairs)[:, 0]).astype(np.float32), maps.batch.device
    )
    logit = torch.where(equal[:, :, None, None, None], own_NFOL[:, None], logit)
    logit = with_equal_masks(logit, own_NFOL, overlaps(own.axes, own_places, places), there)
    return to_host(logit).astype(np.float64) * _signs(maps, pairs)
