"""Curves to areas, drops and gaps to controls.

Shapes: N maps, D draws, L levels asked for, M metrics. Curves stand over the levels 0, asked for, 1 ([..., L + 2]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
MIN_DRAWS_FOR_P = 19
VALID_BASELINE = 1.0  # log-odds between the untouched and the filled image
HIGHER_IS_FAITHFUL = {"deletion_auc": False, "insertion_auc": True, "abpc": True, "drop": True}


def metrics(
    curves: Mapping[str, Array], levels: Sequence[float], levels_done: Array
) -> tuple[list[tuple[str, float]], Array]:
    """Areas and drops of curves.

    Args:
        curves: order (morf, lerf) to scores [..., L + 2].
        levels: the L levels asked for.
        levels_done: shares perturbed, [L + 2], from 0 to 1.

    Returns:
        (metric, level) names, level NaN for areas, and values [..., M]. deletion_auc is the trapezoid under morf;
        insertion_auc that under lerf, since inserting a share k is lerf at 1 - k with the same fill; abpc their
        difference; drop the score at level 0 minus that at the level, morf.
    """
    names: list[tuple[str, float]] = []
    values: list[Any] = []
    if "morf" in curves:
        names.append(("deletion_auc", np.nan))
        values.append(np.trapezoid(curves["morf"], levels_done, axis=-1))
    if "lerf" in curves:
        names.append(("insertion_auc", np.nan))
        values.append(np.trapezoid(curves["lerf"], levels_done, axis=-1))
    if len(values) == 2:
        names.append(("abpc", np.nan))
        values.append(values[1] - values[0])
    if "morf" in curves:
        names += [("drop", float(level)) for level in levels]
        drops = curves["morf"][..., :1] - curves["morf"][..., 1:-1]
        values += [drops[..., i] for i in range(len(levels))]
    return names, np.stack(values, axis=-1)


def compare(value_NM: Array, control_NDM: Array, higher: NDArray[np.bool_]) -> dict[str, Array]:
    """A map's metrics against its control's draws.

    Args:
        value_NM: of the map.
        control_NDM: of the draws.
        higher: bool [M], whether a higher value is more faithful.

    Returns:
        [N, M] each: control_mean, control_sd (NaN for one draw), gap (positive: the map is more faithful), u in
        [-1/2, 1/2] (share of draws that the map beats, ties half, minus 1/2), n_as_extreme (draws as faithful or more).
        All NaN where the map's value is.
    """
    draws = control_NDM.shape[1]
    sign = np.where(higher, 1.0, -1.0)
    ahead = sign * (value_NM[:, None] - control_NDM)
    missing = np.isnan(value_NM) | np.isnan(control_NDM).any(1)
    out = {
        "control_mean": control_NDM.mean(1),
        "control_sd": control_NDM.std(1, ddof=1) if draws > 1 else np.full(value_NM.shape, np.nan),
        "gap": ahead.mean(1),
        "u": ((ahead > 0) + 0.5 * (ahead == 0)).mean(1) - 0.5,
        "n_as_extreme": (ahead <= 0).sum(1).astype(float),
    }
    return {name: np.where(missing, np.nan, column) for name, column in out.items()}


def p_value(n_as_extreme: Array, draws: int) -> Array:
    """One-sided Monte Carlo p-value (1 + as extreme) / (1 + draws) (Davison & Hinkley, 1997); NaN under 19 draws."""
    if draws < MIN_DRAWS_FOR_P:
        return np.full(n_as_extreme.shape, np.nan)
    return (1 + n_as_extreme) / (1 + draws)
