"""The figure of the answer: each control's advantage with its interval, the smallest at the bottom, a panel a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cxr_ray.analysis.answers import Answer, phrase, standing
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report.figures import intervals
from cxr_ray.report.figures.drawing import Drawing
from cxr_ray.report.figures.intervals import PANEL, Ends, Mark
from cxr_ray.report.figures.marks import control_colour
from cxr_ray.report.page import rows_of

SAID = {  # of the map, against the control of a row
    "beaten": "map better",
    "on average": "map better on average",
    "often": "map better more often",
    "open": "not shown",
    "worse": "map worse",
}
ACROSS = "advantage, log-odds (right of 0: the map is more faithful)"


def limits(answers: Sequence[Answer]) -> Ends:
    """The axis across of all panels: every interval and 0."""
    return intervals.ends_of(mark for a in answers for mark in _marks(a))


def panel(answer: Answer, ends: Ends) -> Drawing:
    """One model's panel on an axis from ends[0] to ends[1]."""
    return intervals.panel(answer.subject, _marks(answer), ends, ACROSS)


def poster(answers: Sequence[Answer]) -> Drawing:
    """All panels in one picture, three in a row, for a paper."""
    columns = min(3, len(answers))
    rows = [[panel(a, limits(answers)) for a in answers[i : i + columns]] for i in range(0, len(answers), columns)]
    heights = [max(part.height for part in row) for row in rows]
    drawing = Drawing(PANEL * columns, sum(heights))
    for n, row in enumerate(rows):
        for i, part in enumerate(row):
            drawing.add(*part.moved(PANEL * i, sum(heights[:n])))
    return drawing


def _marks(answer: Answer) -> list[Mark]:
    return [_mark(r) for r in rows_of(answer.rows)]


def _mark(r: Any) -> Mark:
    place = standing(r)
    strong = r.control in CONTROLS and CONTROLS[r.control].strong
    said = "" if place is None else SAID[place]
    return Mark(phrase(r.control), said, r.mean, r.lower, r.upper, control_colour(r.control), strong)
