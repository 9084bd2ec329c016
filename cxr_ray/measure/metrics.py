"""Metrics of curves: areas and drops. A new one is a function and an entry in METRICS.

Shapes: L levels asked for. Curves stand over the levels 0, asked for, 1: [..., L + 2].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.config import Perturb
from cxr_ray.registry import Registry

Array = NDArray[np.floating]
Curves = Mapping[str, Array]  # direction (morf, lerf) to scores [..., L + 2]
Key = tuple[str, float]  # a metric and its level, NaN for areas

WIDEST_STEP = 0.3  # of levels, that the trapezoid rule may bridge
ORIGINAL_LEVEL = 0.25  # share of pixels that the original Grad-CAM findings study deleted
ROUNDING = 1e-9  # 0.9 - 0.6 is above 0.3 in floating point


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


def widest_step(levels: Iterable[float]) -> float:
    """The widest step between levels, the ends 0 and 1 among them.

    >>> widest_step([0.1, 0.25, 0.5])
    0.5
    """
    return float(np.diff([0.0, *sorted(levels), 1.0]).max())


def has_areas(levels: Iterable[float]) -> bool:
    """Whether areas are measured at these levels: no step is wider than 0.3.

    Beyond it most of an area may be one chord to the wholly filled image, which says little of the map. The levels
    asked for decide, so that all grids of a sweep have the same metrics; on grid 7 those done lie within 0.011 of them.

    >>> has_areas([0.3, 0.6, 0.9]), has_areas([0.1, 0.25, 0.5])
    (True, False)
    """
    return widest_step(levels) <= WIDEST_STEP + ROUNDING


def with_areas(levels: Iterable[float]) -> list[float]:
    """The levels, and between them the fewest at equal distances that make areas measured.

    >>> with_areas([0.1, 0.25, 0.5])
    [0.1, 0.25, 0.5, 0.75]
    """
    ends = [0.0, *sorted(levels), 1.0]
    steps = [max(1, math.ceil((b - a - ROUNDING) / WIDEST_STEP)) for a, b in itertools.pairwise(ends)]
    parts = [np.linspace(a, b, n + 1)[:-1] for (a, b), n in zip(itertools.pairwise(ends), steps, strict=True)]
    return [float(f"{level:.6g}") for level in np.concatenate(parts)[1:]]


def in_words(levels: Sequence[float]) -> str:
    """Levels for a sentence: all, or the first and last of many.

    >>> in_words([0.25, 0.5]), in_words([0.01 * i for i in range(1, 100)])
    ('0.25, 0.5', '0.01, 0.02, 0.03, ... (99 in all), 0.99')
    """
    if len(levels) <= 20:
        return ", ".join(f"{level:g}" for level in levels)
    return f"{', '.join(f'{level:g}' for level in levels[:3])}, ... ({len(levels)} in all), {levels[-1]:g}"


def no_areas(levels: Iterable[float]) -> str:
    """Why there are no areas at these levels, and which would do, in a sentence."""
    asked, better = map(in_words, (sorted(levels), with_areas(levels)))
    return (
        f"Areas are not measured, drops only: the widest step between the levels {asked} (0 and 1 included) is "
        f"{widest_step(levels):g}, over {WIDEST_STEP:g}. The primary metric is the drop at level "
        f"{nearest_level(levels):g}. Levels that do: {better}."
    )


def measured(directions: Iterable[str], levels: Iterable[float]) -> list[str]:
    """The metrics of a sweep: those whose curves are there, areas among them where levels are near enough.

    >>> measured(["lerf"], [0.25, 0.5, 0.75]), measured(["morf", "lerf"], [0.25])
    (['insertion_auc'], ['drop'])
    """
    have, areas_too = set(directions), has_areas(levels)
    return [n for n, m in METRICS.items() if have.issuperset(m.directions) and (m.leveled or areas_too)]


def evaluate(curves: Mapping[str, Array], levels: Sequence[float], levels_done: Array) -> tuple[list[Key], Array]:
    """Every metric that is ``measured``.

    Args:
        curves: order (morf, lerf) to scores [..., L + 2].
        levels: the L levels asked for.
        levels_done: shares perturbed, [L + 2], from 0 to 1.

    Returns:
        (metric, level) names, level NaN for areas, and values [..., M].
    """
    names: list[Key] = []
    values: list[Any] = []
    for name in measured(curves, levels):
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


def nearest_level(levels: Iterable[float]) -> float:
    """The level nearest to the original study's; the smaller of two equally near.

    >>> nearest_level([0.1, 0.3, 0.5])
    0.3
    """
    return min(sorted(levels), key=lambda level: abs(level - ORIGINAL_LEVEL))


def primary(directions: Iterable[str], levels: Iterable[float]) -> Key:
    """The metric that is tested: the area that reads most directions; where there is none, the drop at one level.

    >>> primary(["morf", "lerf"], [0.25, 0.5, 0.75])[0], primary(["morf"], [0.25, 0.5, 0.75])[0]
    ('abpc', 'deletion_auc')
    >>> primary(["morf", "lerf"], [0.1, 0.25, 0.5])
    ('drop', 0.25)
    """
    levels = list(levels)
    found = measured(directions, levels) or measured(directions, with_areas(levels))  # insertion alone, of older runs
    name = max(found, key=lambda name: (not METRICS[name].leveled, len(METRICS[name].directions)))
    return name, nearest_level(levels) if METRICS[name].leveled else math.nan


@dataclass(frozen=True)
class Tested:
    """What sequential draws and randomised maps are tested with.

    Attributes:
        key: the primary metric, and its level.
        fill: the primary one.
    """

    key: Key
    fill: str


def tested(perturb: Perturb) -> Tested:
    """What a sweep tests where nothing was chosen on the validation split."""
    return Tested(primary(perturb.orders, perturb.levels), perturb.fills[0])


def place(names: Sequence[Key], key: Key) -> int:
    """Where a metric and level stand among those that ``evaluate`` names.

    >>> place([("abpc", math.nan), ("drop", 0.25)], ("abpc", math.nan))
    0
    """
    metric, level = key
    return next(i for i, (m, at) in enumerate(names) if m == metric and (at == level or math.isnan(level)))
