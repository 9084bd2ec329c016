"""What all figures share: colours, points with intervals, axes of labelled rows, legends, PNG.

Colours are Okabe & Ito's, and never the only mark: shape, fill or position shows the same.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cxr_ray.report.figures.layout import PAD, arrange, lines_high

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^vp*"
SCALES = {"logodds": "log-odds", "prob": "probability"}
WIDTH = 9.6  # inches
LEGEND_ROW = 13.0  # points


def colour(i: int) -> str:
    """The colour of the i-th kind; they repeat after the last."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """The marker of the i-th kind."""
    return MARKERS[i % len(MARKERS)]


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; few colours, so a palette makes it a third as large. It keeps also those of few pixels."""
    figure.set_dpi(120)
    canvas, sink = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(sink, "PNG")
    return sink.getvalue()


def panels(n: int, columns: int, height: float, room: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, ``columns`` in a row at most, a row ``height`` inches; ``room``: for title and legend."""
    columns = min(columns, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(WIDTH, room + height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for spare in axes[n:]:
        spare.set_axis_off()
    return figure, axes[:n]


def point(ax: Axes, y: float, bounds: Sequence[float], colour: str, marker: str = "o", hollow: bool = False) -> None:
    """mean, lower, upper as a point and a line; without an interval a cross, upright where hollow."""
    mean, lower, upper = bounds
    if pd.isna(mean):
        return
    if pd.isna(lower):
        ax.plot(mean, y, "+" if hollow else "x", ms=5, color=colour)
        return
    look: dict[str, Any] = {"color": colour, "mfc": "white" if hollow else colour}
    ax.plot([lower, mean, upper], [y] * 3, f"{marker}-", markevery=[1], ms=5, lw=1.5, solid_capstyle="butt", **look)


def rows_axis(ax: Axes, labels: Sequence[str], groups: Sequence[Any] = ()) -> None:
    """One labelled row each, the first on top; a line between groups."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(labelsize=8)
    ax.grid(axis="x", color="0.93")
    ax.set_axisbelow(True)
    for y in range(1, len(groups)):
        if groups[y] != groups[y - 1]:
            ax.axhline(y - 0.5, color="0.8", lw=0.8)


def zero(ax: Axes) -> None:
    """A line at 0 of the axis across."""
    ax.axvline(0, color="0.3", lw=0.8)


def finish(
    figure: Figure, title: str, marks: dict[Any, Any] | None = None, columns: int = 4, label: str = ""
) -> Figure:
    """Adds the title and, below the panels, ``label`` of all and a legend of ``marks`` (label to handle)."""
    footer = LEGEND_ROW * -(-len(marks) // columns) + 6 if marks else 0.0
    height = 72 * figure.get_figheight()
    if marks:
        figure.legend(
            list(marks.values()),
            list(marks),
            loc="lower center",
            ncols=min(columns, len(marks)),
            fontsize=8,
            frameon=False,
        )
    if label:
        figure.supxlabel(label, fontsize=9, y=(footer + PAD) / height)
        footer += lines_high(label, 9) + 2 * PAD
    figure.suptitle(title, fontsize=10, y=1 - PAD / height)
    arrange(figure, lines_high(title, 10) + 2 * PAD, footer)
    return figure


def marks_of(*axes: Axes) -> dict[Any, Any]:
    """Label to handle of all that was drawn with a label, each label once."""
    found: dict[Any, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        for label, handle in zip(labels, handles, strict=True):
            found.setdefault(label, handle)
    return found
