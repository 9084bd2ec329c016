"""How a map compares with its controls: advantages, win rates, p-values, and the rows that hold them.

Shapes: N maps (P where they are (image, target) pairs), D draws, F fills, M metrics.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

from cxr_ray.measure.batch import Pairs
from cxr_ray.measure.curves import Curves
from cxr_ray.measure.metrics import METRICS, place
from cxr_ray.measure.sequential import SequentialResult, p_value
from cxr_ray.measure.shards import take
from cxr_ray.schemas import FAITHFULNESS

Array = NDArray[np.floating]
SCALES = ("prob", "logodds")
VALID_BASELINE = 1.0  # log-odds between the untouched and the filled image


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


def faithfulness_rows(
    pairs: Pairs,
    outcome_P: Sequence[str],
    curves: Mapping[str, Curves],
    tests: Mapping[str, SequentialResult],
) -> pa.Table:
    """Rows of ``faithfulness`` on one grid.

    Args:
        pairs: those that the maps explain.
        outcome_P: TP, FP, TN or FN of each pair's image.
        curves: "none" (the map) and each control to its curves.
        tests: control to its sequential test.
    """
    own = curves["none"]
    valid_PF = own.logit_untouched - own.logit_full >= VALID_BASELINE
    parts: list[dict[str, NDArray[Any]]] = []  # texts as their places among those of their column
    for fill, (s, scale) in itertools.product(range(len(own.axes.fills)), enumerate(SCALES)):
        names, values = own.metrics(fill, scale)
        value_PM, full = values[:, 0], own.logit_full[:, fill]
        pair, metric = (i.ravel() for i in np.indices(value_PM.shape))
        same = {
            "pair": pair,
            "fill": np.full_like(pair, fill),
            "metric": metric,
            "scale": np.full_like(pair, s),
            "value": value_PM.ravel(),
            "score_full": (full if scale == "logodds" else expit(full))[pair],
            "baseline_valid": valid_PF[pair, fill],
        }
        for c, (control, of_control) in enumerate(curves.items()):
            compared = _not_compared(value_PM.shape)
            if control != "none":
                higher = np.array([METRICS[name].higher_is_faithful for name, _ in names])
                compared = compare(value_PM, of_control.metrics(fill, scale)[1], higher)
            compared |= _tested(compared, scale == "logodds")
            compared["overlap"] = np.where(np.isnan(value_PM), np.nan, _mean_overlap(of_control)[:, None])
            if scale == "logodds" and control in tests:
                tested = place(names, own.axes.primary)
                compared["p_value"][:, tested] = tests[control].p_value[:, fill]
                compared["p_draws"][:, tested] = tests[control].n_draws[:, fill]
            compared["p_draws"] = np.where(np.isnan(compared["p_value"]), np.nan, compared["p_draws"])
            of_control_alone = {name: column.ravel() for name, column in compared.items()}
            parts.append({**same, "control": np.full_like(pair, c), **of_control_alone})
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pair, metric = every.pop("pair"), every["metric"]
    texts = {"fill": own.axes.fills, "metric": [name for name, _ in names], "scale": SCALES, "control": list(curves)}
    columns: dict[str, Any] = {
        **every,
        **{name: take(of_column, every[name]) for name, of_column in texts.items()},
        "image_id": take(pairs.ids, pair),
        "target": pairs.target[pair],
        "grid": take([own.axes.grid], np.zeros_like(pair)),
        "level": np.array([level for _, level in names])[metric],
        "outcome": take(outcome_P, pair),
    }
    return FAITHFULNESS.build(columns)


def _mean_overlap(curves: Curves) -> Array:
    """Mean over the draws of the share of the map's most salient quarter that the draw's covers, [P]; NaN for none."""
    if curves.quarters is None:
        return np.full(len(curves.drawn), np.nan)
    n = curves.drawn.sum(1)
    return np.where(n > 0, np.where(curves.drawn, curves.quarters.array(), 0.0).sum(1) / np.maximum(n, 1), np.nan)


def _not_compared(shape: tuple[int, ...]) -> dict[str, Array]:
    """Of the map itself, as ``compare``."""
    nothing = ("control_mean", "control_sd", "gap", "win_rate", "n_as_extreme")
    return {name: np.full(shape, np.nan) for name in nothing} | {"n_draws": np.zeros(shape)}


def _tested(compared: Mapping[str, Array], in_logodds: bool) -> dict[str, Array]:
    """p-values of the fixed draws and the draws behind them, in log-odds alone."""
    p_draws = compared["n_draws"] * in_logodds
    return {"p_value": p_value(compared["n_as_extreme"], p_draws), "p_draws": p_draws}
