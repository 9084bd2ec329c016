"""A panel of labelled means with their intervals, the labels above them, so that it can be read on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxr_ray.report.figures.drawing import Disc, Drawing, Label, Path, width_of
from cxr_ray.report.figures.ticks import nice
from cxr_ray.report.page import interval

PANEL = 440.0  # pixels wide
ROW, HEAD, FOOT, EDGE = 46.0, 34.0, 46.0, 14.0
Ends = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A mean with its interval.

    Attributes:
        name: what it is of, on the left.
        said: what it shows, beside the name.
        mean, lower, upper: NaN where there is none.
        colour: of line and disc.
        strong: bold, and the disc filled.
        sign: whether a plus is written.
    """

    name: str
    said: str
    mean: float
    lower: float
    upper: float
    colour: str
    strong: bool = True
    sign: bool = True

    @property
    def text(self) -> str:
        """The numbers."""
        return interval(self.mean, self.lower, self.upper, sign=self.sign)


def ends_of(marks: Iterable[Mark]) -> Ends:
    """The axis across that holds every interval and 0."""
    known = np.array([0.0, *(v for m in marks for v in (m.mean, m.lower, m.upper))], dtype=float)
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    room = 0.04 * ((high - low) or 1.0)
    return low - room, high + room


def height(marks: Sequence[Mark]) -> float:
    """Pixels that a panel takes."""
    return HEAD + ROW * len(marks) + FOOT


def panel(subject: str, marks: Sequence[Mark], ends: Ends, label: str) -> Drawing:
    """The marks below each other on an axis from ends[0] to ends[1], which ``label`` names."""
    drawing, (low, high) = Drawing(PANEL, height(marks)), ends
    first, last, bottom = EDGE, PANEL - EDGE, HEAD + ROW * len(marks)

    def across(value: float) -> float:
        return first + (value - low) / (high - low) * (last - first)

    drawing.add(Label(first, 18, subject, 13, bold=True))
    for tick, text in nice(low, high, 6):
        drawing.add(Label(across(tick), bottom + 15, text, 11, "middle", "muted", tick=True))
    for i, mark in enumerate(marks):
        top = HEAD + ROW * i  # lines stand beside the intervals, not behind the texts
        for tick, _ in nice(low, high, 6):
            drawing.add(Path([(across(tick), top + 20), (across(tick), top + 39)], "grid"))
        drawing.add(Path([(across(0), top + 20), (across(0), top + 39)], "axis", width=1.5))
        _row(drawing, mark, top, (first, last), across)
    drawing.add(Path([(first, bottom), (last, bottom)], "axis"))
    drawing.add(Label((first + last) / 2, bottom + 34, label, 11, "middle", "muted"))
    return drawing


def _row(drawing: Drawing, mark: Mark, top: float, sides: Ends, across: Callable[[float], float]) -> None:
    drawing.add(Label(sides[0], top + 14, mark.name, 12, bold=mark.strong))
    after = sides[0] + width_of(mark.name, 12) * (1.08 if mark.strong else 1.0) + 8
    drawing.add(Label(after, top + 14, mark.said, 11, ink="muted"))
    drawing.add(Label(sides[1], top + 14, mark.text, 11, "end", "muted"))
    if pd.isna(mark.mean):
        return
    y = top + 29
    if not pd.isna(mark.lower):
        drawing.add(Path([(across(mark.lower), y), (across(mark.upper), y)], mark.colour, width=2.5))
    drawing.add(Disc(across(mark.mean), y, 5.5, mark.colour, mark.colour if mark.strong else "paper"))
