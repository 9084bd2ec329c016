"""Curves to areas, drops and gaps to controls.

Shapes: N maps, D draws, L levels asked for, M metrics. Curves stand over the levels 0, asked for, 1 ([..., L + 2]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.measure.metrics import METRICS, measured

Array = NDArray[np.floating]
MIN_DRAWS_FOR_P = 19
VALID_BASELINE = 1.0  # log-odds between the untouched and the filled image


def metrics(
    curves: Mapping[str, Array], levels: Sequence[float], levels_done: Array
) -> tuple[list[tuple[str, float]], Array]:
    """Areas and drops of curves.

    Args:
        curves: order (morf, lerf) to scores [..., L + 2].
        levels: the L levels asked for.
        levels_done: shares perturbed, [L + 2], from 0 to 1.

    Returns:
        (metric, level) names, level NaN for areas, and values [..., M], of every metric in METRICS whose directions
        are there.
    """
    names: list[tuple[str, float]] = []
    values: list[Any] = []
    for name in measured(curves):
        metric = METRICS[name]
        made = metric.measure(curves, levels_done)
        if metric.leveled:
            names += [(name, float(level)) for level in levels]
            values += [made[..., i] for i in range(len(levels))]
        else:
            names.append((name, np.nan))
            values.append(made)
    return names, np.stack(values, axis=-1)


def compare(value_NM: Array, control_NDM: Array, higher: NDArray[np.bool_]) -> dict[str, Array]:
    """A map's metrics against its control's draws.

    Args:
        value_NM: of the map.
        control_NDM: of the draws; NaN where there is none.
        higher: bool [M], whether a higher value is more faithful.

    Returns:
        [N, M] each: control_mean, control_sd (NaN for one draw), gap (positive: the map is more faithful), win_rate in
        [0, 1] (share of draws that the map beats, ties half; 0.5 is chance), n_as_extreme (draws as faithful or more),
        all NaN where the map has no value or no draw; and n_draws.
    """
    sign = np.where(higher, 1.0, -1.0)
    drawn = ~np.isnan(control_NDM)
    ahead = sign * (value_NM[:, None] - control_NDM)
    n = drawn.sum(1)
    missing = np.isnan(value_NM) | (n == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(drawn, control_NDM, 0.0).sum(1) / n
        squares = np.where(drawn, control_NDM - mean[:, None], 0.0) ** 2
        out = {
            "control_mean": mean,
            "control_sd": np.where(n > 1, np.sqrt(squares.sum(1) / (n - 1)), np.nan),
            "gap": sign * (value_NM - mean),
            "win_rate": ((ahead > 0) + 0.5 * (ahead == 0)).sum(1) / n,
            "n_as_extreme": (ahead <= 0).sum(1).astype(float),
        }
    return {name: np.where(missing, np.nan, column) for name, column in out.items()} | {"n_draws": n.astype(float)}


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
