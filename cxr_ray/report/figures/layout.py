"""Places a figure's panels in one step, from the texts around them.

matplotlib's constrained layout measures every artist of every panel twice, which took longer than to draw the figure.
Here a margin follows from the number of lines, the font's size and the widest tick label. Lengths are in points, 72 an
inch.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import ImageFont

LINE = 1.25  # height of a line, in sizes of its font
TICK = 7.0  # from an axis to its tick labels
PAD = 4.0  # from tick labels to the axis' label, and around titles
GAP = 9.0  # between panels, and at the right
MEASURED = 100  # size at which texts are measured


def arrange(figure: Figure, header: float = 0.0, footer: float = 0.0) -> None:
    """Give every panel of a grid its place, and its title and labels theirs.

    Args:
        figure: with panels made by ``Figure.subplots``, whole but for these places.
        header, footer: room for title and legend, above and below the panels.
    """
    axes = figure.axes
    specs = [spec for ax in axes if (spec := ax.get_subplotspec()) is not None]
    grid, places = specs[0].get_gridspec(), [(spec.rowspan.start, spec.colspan.start) for spec in specs]
    width, height = (72 * float(inches) for inches in figure.get_size_inches())
    bottoms = [_ticks_below(ax) if ax.axison else 0.0 for ax in axes]
    top_R, bottom_R, left_C = np.zeros(grid.nrows), np.zeros(grid.nrows), np.zeros(grid.ncols)
    for ax, (row, _), bottom in zip(axes, places, bottoms, strict=True):
        top_R[row] = max(top_R[row], _high(ax.title))
        bottom_R[row] = max(bottom_R[row], bottom + _high(ax.xaxis.label))
    free = max(height - header - footer - (top_R + bottom_R).sum() - GAP * grid.nrows, 1.0)
    height_R = free * np.array(grid.get_height_ratios()) / np.sum(grid.get_height_ratios())
    y_R = height - header - np.cumsum(top_R + height_R) - np.concatenate([[0], np.cumsum(bottom_R + GAP)[:-1]])

    lefts = []
    for ax, (row, column) in zip(axes, places, strict=True):
        ax.set_position((0, y_R[row] / height, 1, height_R[row] / height))  # how many ticks there are follows from it
        lefts.append(_ticks_left(ax) if ax.axison else 0.0)
        left_C[column] = max(left_C[column], lefts[-1] + _high(ax.yaxis.label))
    across = max((width - left_C.sum() - GAP * (grid.ncols + 1)) / grid.ncols, 1.0)
    x_C = np.cumsum(left_C) + (across + GAP) * np.arange(grid.ncols) + GAP / 2
    for ax, (row, column), left, bottom in zip(axes, places, lefts, bottoms, strict=True):
        ax.set_position((x_C[column] / width, y_R[row] / height, across / width, height_R[row] / height))
        # Given places spare matplotlib the search for them, tick by tick, at every draw.
        ax.set_title(ax.get_title(), fontsize=ax.title.get_fontsize(), y=1.0)
        ax.xaxis.set_label_coords(0.5, -(bottom + PAD / 2) / height_R[row])
        ax.yaxis.set_label_coords(-(left + PAD / 2) / across, 0.5)


def lines_high(text: str, size: float) -> float:
    """Height of a text of a font's size; 0 of none."""
    return LINE * size * (text.count("\n") + 1) if text else 0.0


def _high(text: Text) -> float:
    """Height of a title or label with the room around it; 0 of none."""
    return lines_high(text.get_text(), float(text.get_fontsize())) + PAD if text.get_text() else 0.0


def _ticks_left(ax: Axes) -> float:
    labels, size = _tick_labels(ax.yaxis, "labelleft")
    return TICK + max((_width(label, size) for label in labels), default=0.0)


def _ticks_below(ax: Axes) -> float:
    labels, size = _tick_labels(ax.xaxis, "labelbottom")
    return TICK + max((lines_high(label, size) for label in labels), default=0.0)


def _tick_labels(axis: Any, side: str) -> tuple[list[str], float]:
    """The labels within the axis' limits, none where they are not shown, and their size."""
    shown = axis.get_tick_params()
    if not shown.get(side, True):
        return [], 0.0
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
    labels = [label for label in axis.get_major_formatter().format_ticks(ticks) if label]
    return labels, float(shown.get("labelsize", 10.0))


def _width(text: str, size: float) -> float:
    return max(_font().getlength(line) for line in text.split("\n")) * size / MEASURED


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), MEASURED)
