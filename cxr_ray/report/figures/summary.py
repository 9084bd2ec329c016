"""The figure of the answer: each control's advantage with its interval, the hardest at the bottom, a panel a model.

Labels stand above their intervals, so that a panel can be read on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.answers import Answer, phrase, standing
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report.figures.drawing import Disc, Drawing, Label, Path, width_of
from cxr_ray.report.figures.ticks import nice
from cxr_ray.report.page import mean, rows_of

PANEL = 440.0  # pixels wide
ROW, HEAD, FOOT, EDGE = 46.0, 34.0, 46.0, 14.0
SAID = {  # of the map, against the control of a row
    "beaten": "map better",
    "on average": "map better on average",
    "often": "map better more often",
    "open": "not shown",
    "worse": "map worse",
}
ACROSS = "advantage, log-odds (right of 0: the map is more faithful)"


def limits(answers: Sequence[Answer]) -> tuple[float, float]:
    """The axis across of all panels: every interval and 0."""
    ends = [pd.concat([a.rows[c] for c in ("mean", "lower", "upper")]).to_numpy(float) for a in answers]
    known = np.concatenate([np.zeros(1), *ends])
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    room = 0.04 * ((high - low) or 1.0)
    return low - room, high + room


def panel(answer: Answer, ends: tuple[float, float]) -> Drawing:
    """One model's panel on an axis from ends[0] to ends[1]."""
    drawing, (low, high) = Drawing(PANEL, _height(answer)), ends
    first, last, bottom = EDGE, PANEL - EDGE, HEAD + ROW * len(answer.rows)

    def across(value: float) -> float:
        return first + (value - low) / (high - low) * (last - first)

    drawing.add(Label(first, 18, answer.subject, 13, bold=True))
    for tick, text in nice(low, high, 6):
        drawing.add(Label(across(tick), bottom + 15, text, 11, "middle", "muted", tick=True))
    for i, r in enumerate(rows_of(answer.rows)):
        top = HEAD + ROW * i  # lines stand beside the intervals, not behind the texts
        for tick, _ in nice(low, high, 6):
            drawing.add(Path([(across(tick), top + 20), (across(tick), top + 39)], "grid"))
        drawing.add(Path([(across(0), top + 20), (across(0), top + 39)], "axis", width=1.5))
        _row(drawing, r, top, (first, last), across)
    drawing.add(Path([(first, bottom), (last, bottom)], "axis"))
    drawing.add(Label((first + last) / 2, bottom + 34, ACROSS, 11, "middle", "muted"))
    return drawing


def poster(answers: Sequence[Answer]) -> Drawing:
    """All panels in one picture, three in a row, for a paper."""
    columns = min(3, len(answers))
    rows = [answers[i : i + columns] for i in range(0, len(answers), columns)]
    drawing = Drawing(PANEL * columns, sum(max(map(_height, row)) for row in rows))
    top, ends = 0.0, limits(answers)
    for row in rows:
        for i, answer in enumerate(row):
            part = panel(answer, ends)
            drawing.add(*part.moved(PANEL * i, top))
        top += max(map(_height, row))
    return drawing


def _height(answer: Answer) -> float:
    return HEAD + ROW * len(answer.rows) + FOOT


def _row(drawing: Drawing, r: Any, top: float, sides: tuple[float, float], across: Any) -> None:
    control = CONTROLS.get(r.control)
    colour, strong = (control.colour, control.strong) if control else ("#808080", False)
    name = phrase(r.control)
    place = standing(r)
    drawing.add(Label(sides[0], top + 14, name, 12, bold=strong))
    after = sides[0] + width_of(name, 12) * (1.08 if strong else 1.0) + 8
    drawing.add(Label(after, top + 14, "" if place is None else SAID[place], 11, ink="muted"))
    drawing.add(Label(sides[1], top + 14, mean(r), 11, "end", "muted"))
    if pd.isna(r.mean):
        return
    y = top + 29
    if not pd.isna(r.lower):
        drawing.add(Path([(across(r.lower), y), (across(r.upper), y)], colour, width=2.5))
    drawing.add(Disc(across(r.mean), y, 5.5, colour, colour if strong else "paper"))
