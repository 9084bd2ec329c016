"""Metrics of curves: areas and drops. A new one is a function and an entry in METRICS.

Shapes: L levels asked for. Curves stand over the levels 0, asked for, 1: [..., L + 2].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.registry import Registry

Array = NDArray[np.floating]
Curves = Mapping[str, Array]  # direction (morf, lerf) to scores [..., L + 2]


@dataclass(frozen=True)
class Metric:
    """A number for each curve, and what others need to know of it.

    Attributes:
        measure: curves and the shares perturbed, [L + 2] from 0 to 1, to values [...]; of a leveled one, [..., L].
        directions: those whose curves it reads.
        higher_is_faithful: whether a higher value is more faithful.
        label: its name in print.
        caption: what it is, in a sentence.
        leveled: it has a value for each level that is asked for; else it is an area, over all of them.
    """

    measure: Callable[[Curves, Array], Any]
    directions: tuple[str, ...]
    higher_is_faithful: bool
    label: str
    caption: str
    leveled: bool = False


def deletion_auc(curves: Curves, done: Array) -> Any:
    """Area under the deletion curve, by the trapezoid rule."""
    return np.trapezoid(curves["morf"], done, axis=-1)


def insertion_auc(curves: Curves, done: Array) -> Any:
    """Area under the insertion curve: to insert a share k is lerf at 1 - k with the same fill."""
    return np.trapezoid(curves["lerf"], done, axis=-1)


def abpc(curves: Curves, done: Array) -> Any:
    """Area between the perturbation curves."""
    return insertion_auc(curves, done) - deletion_auc(curves, done)


def drop(curves: Curves, done: Array) -> Any:
    """Score at level 0 minus score at the level."""
    return curves["morf"][..., :1] - curves["morf"][..., 1:-1]


METRICS = Registry(
    "metric",
    {
        "deletion_auc": Metric(
            deletion_auc,
            directions=("morf",),
            higher_is_faithful=False,
            label="deletion area",
            caption="Area under the deletion curve: score against the share filled, most salient first (MoRF; Samek et "
            "al., IEEE TNNLS 2017; Petsiuk et al., BMVC 2018). Lower is more faithful.",
        ),
        "insertion_auc": Metric(
            insertion_auc,
            directions=("lerf",),
            higher_is_faithful=True,
            label="insertion area",
            caption="Area under the insertion curve: score against the share restored, most salient first (LeRF, "
            "reversed; Petsiuk et al., BMVC 2018). Higher is more faithful.",
        ),
        "abpc": Metric(
            abpc,
            directions=("morf", "lerf"),
            higher_is_faithful=True,
            label="area between perturbation curves (ABPC)",
            caption="Area between perturbation curves (ABPC): insertion area minus deletion area. Higher is more "
            "faithful.",
        ),
        "drop": Metric(
            drop,
            directions=("morf",),
            higher_is_faithful=True,
            label="drop",
            caption="Score of the untouched image minus score at a level, most salient first (MoRF). Higher is more "
            "faithful.",
            leveled=True,
        ),
    },
)


def measured(directions: Iterable[str]) -> list[str]:
    """The metrics whose curves are there.

    >>> measured(["lerf"])
    ['insertion_auc']
    """
    have = set(directions)
    return [name for name, metric in METRICS.items() if have.issuperset(metric.directions)]


def evaluate(
    curves: Mapping[str, Array], levels: Sequence[float], levels_done: Array
) -> tuple[list[tuple[str, float]], Array]:
    """Every metric whose directions are there.

    Args:
        curves: order (morf, lerf) to scores [..., L + 2].
        levels: the L levels asked for.
        levels_done: shares perturbed, [L + 2], from 0 to 1.

    Returns:
        (metric, level) names, level NaN for areas, and values [..., M].
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


def areas() -> list[str]:
    """The metrics that integrate over all levels."""
    return [name for name, metric in METRICS.items() if not metric.leveled]


def primary(directions: Iterable[str]) -> str:
    """The area that is tested: the one that reads most of the directions that are measured.

    >>> primary(["morf", "lerf"]), primary(["morf"])
    ('abpc', 'deletion_auc')
    """
    found = [name for name in measured(directions) if not METRICS[name].leveled]
    return max(found, key=lambda name: len(METRICS[name].directions))
