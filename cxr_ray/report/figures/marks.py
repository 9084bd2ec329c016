"""What all figures share: colours, marks, and figures of a number of panels.

Colours are Okabe & Ito's, darker where they would not stand out against white. They are never the only mark: shape,
fill or position shows the same. A control has its own colour in every figure, which its entry in CONTROLS declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cxr_ray.measure.controls import CONTROLS, Control
from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.drawing import Item
from cxr_ray.report.figures.layout import Figure

COLOURS = ("#1478B5", "#D55E00", "#009E73", "#C0679A", "#B98300", "#3A96CC", "#808080")
MARKERS = "osD^vp*"
DASHES = ("", "6 3", "6 2 1.5 2", "1.5 2.5")
SCALES = {"logodds": "log-odds", "prob": "probability"}


def colour(i: int) -> str:
    """The colour of the i-th kind; they repeat after the last."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """The marker of the i-th kind."""
    return MARKERS[i % len(MARKERS)]


def control_colour(name: str) -> str:
    """A control's colour, the same in every figure."""
    return CONTROLS[name].colour if name in CONTROLS else Control.colour


def control_place(name: str) -> int:
    """A control's place among all, from which its marker and dash follow; after the last of one that is not known."""
    return list(CONTROLS).index(name) if name in CONTROLS else len(CONTROLS)


def grid_of(axes: Sequence[Axes], columns: int, height: float, **around: Any) -> Figure:
    """A figure of panels of one height, ``columns`` in a row at most."""
    columns = min(columns, len(axes))
    return Figure(axes, columns, [height] * -(-len(axes) // columns), **around)


def legend_of(*axes: Axes) -> dict[str, Callable[[float, float], list[Item]]]:
    """The entries of all panels, each name once."""
    found: dict[str, Callable[[float, float], list[Item]]] = {}
    for panel in axes:
        for name, sample in panel.legend.items():
            found.setdefault(name, sample)
    return found
