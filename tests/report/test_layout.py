"""Panels and the texts around them lie within the figure and beside each other, and marks where their numbers say."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report.figures import curves, marks
from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.drawing import INKS, Disc, Drawing, Label, Path, height_of, width_of
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.ticks import nice

DARK, LIGHT = INKS["paper"][1], INKS["paper"][0]


def made(n, columns, label, shared):
    axes = []
    for i in range(n):
        ax = Axes(title=f"panel {i}\nof {n}", across="across\nin two lines", up="up")
        ax.line([0, 1], [-1e-4 * i, 1.5e3 * (i + 1)], "#1478B5", f"kind {i}")
        if label == "rows":
            ax.rows(["a", "a label of some length, n = 12"])
        axes.append(ax)
    legend = marks.legend_of(*axes)
    return marks.grid_of(axes, columns, 140, title="a title\nof two lines", label="of all", legend=legend, **shared)


def box(label):
    wide = width_of(label.text, label.size)
    left = label.x - {"start": 0, "middle": wide / 2, "end": wide}[label.anchor]
    if label.turned:
        return label.x - label.size, label.x, label.y - wide / 2, label.y + wide / 2
    return left, left + wide, label.y - 0.8 * label.size, label.y + 0.2 * label.size


@pytest.mark.parametrize(("n", "columns"), [(1, 3), (5, 2)])
@pytest.mark.parametrize("label", ["rows", "numbers"])
@pytest.mark.parametrize("shared", [{}, {"share_x": True, "share_y": True}])
def test_texts_lie_within_the_figure_and_overlap_nowhere(n, columns, label, shared):
    drawing = made(n, columns, label, shared).drawing()
    boxes = [box(item) for item in drawing.items if isinstance(item, Label) and item.text]
    assert len(boxes) > 6 * n
    for left, right, top, bottom in boxes:
        assert left > -2
        assert right < drawing.width + 12  # the last number of an axis ends in the margin
        assert right <= drawing.width or right - left < 60
        assert top > -2
        assert bottom < drawing.height + 2
    for one, other in itertools.combinations(boxes, 2):
        across = min(one[1], other[1]) - max(one[0], other[0])
        up = min(one[3], other[3]) - max(one[2], other[2])
        assert min(across, up) < 2.5  # pixels


def test_a_mark_stands_where_its_numbers_say():
    ax = Axes(x_limits=(0.0, 10.0), y_limits=(0.0, 1.0))
    ax.marks([2.5, 10.0], [0.25, 1.0], "o", "ink")
    drawing = Figure([ax], 1, [200.0]).drawing()
    frame = next(i for i in drawing.items if isinstance(i, Path) and i.stroke == "axis")
    (left, top), (_, bottom), (right, _) = frame.points
    first, last = (i for i in drawing.items if isinstance(i, Disc))
    np.testing.assert_allclose([first.x, first.y], [left + (right - left) / 4, bottom - (bottom - top) / 4])
    np.testing.assert_allclose([last.x, last.y], [right, top])


def test_rows_run_down_and_an_interval_ends_at_its_bounds():
    ax = Axes(x_limits=(-1.0, 1.0))
    ax.rows(["first", "second"])
    ax.point(0, (0.0, -0.5, 0.5), "#1478B5")
    ax.point(1, (0.5, np.nan, np.nan), "#1478B5")  # a cross, no interval
    drawing = Figure([ax], 1, [100.0]).drawing()
    lines = [i for i in drawing.items if isinstance(i, Path) and i.stroke == "#1478B5"]
    frame = next(i for i in drawing.items if isinstance(i, Path) and i.stroke == "axis")
    (left, top), (_, bottom), (right, _) = frame.points
    (x0, y0), (x1, _) = lines[0].points
    np.testing.assert_allclose([x0, x1, y0], [left + (right - left) / 4, right - (right - left) / 4, top + 25])
    assert len(lines) == 3
    assert all(y > (top + bottom) / 2 for line in lines[1:] for _, y in line.points)


def test_values_that_are_not_finite_are_not_drawn():
    ax = Axes()
    ax.marks([0.0, np.nan, np.inf], [1.0, 1.0, 1.0], "o", "ink")
    drawing = Figure([ax], 1, [100.0]).drawing()
    assert sum(isinstance(i, Disc) for i in drawing.items) == 1


@pytest.mark.parametrize(("low", "high"), [(-0.3, 1.1), (0.0, 1e-4), (-2e5, 3e5), (0.97, 1.0), (1e300, 1.1e300)])
def test_ticks_are_few_round_and_within_the_ends_and_say_their_value(low, high):
    ticks = nice(low, high, 6)
    assert 2 <= len(ticks) <= 6
    step = ticks[1][0] - ticks[0][0]
    for value, text in ticks:
        assert low - 1e-9 * step <= value <= high + 1e-9 * step
        assert abs(float(text.replace("−", "-")) - value) < 0.01 * step


def test_no_ticks_between_ends_that_are_none():
    assert nice(float("nan"), 1.0, 5) == nice(1.0, 1.0, 5) == []


def test_svg_is_well_formed_and_its_texts_are_escaped():
    drawing = Drawing(100, 50)
    drawing.add(Label(1, 10, '<b> & "quoted"', 11))
    for alone in (False, True):
        root = ElementTree.fromstring(drawing.svg('an "alt" <text>', alone))
        assert root.get("aria-label") == 'an "alt" <text>'
        assert [t.text for t in root.iter() if t.tag.endswith("text")] == ['<b> & "quoted"']
    assert height_of("", 11) == 0


def contrast(one, other):
    def light(colour):
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_control_has_a_colour_of_its_own_that_stands_out_in_light_and_dark():
    """WCAG 2.1: 3 to 1 for marks, 4.5 to 1 for texts."""
    colours = [control.colour for control in CONTROLS.values()]
    assert len(set(colours)) == len(colours)
    for colour in [*colours, *marks.COLOURS]:
        assert min(contrast(colour, LIGHT), contrast(colour, DARK)) >= 3
    for ink in ("ink", "muted"):
        assert contrast(INKS[ink][0], LIGHT) >= 4.5
        assert contrast(INKS[ink][1], DARK) >= 4.5


def test_a_control_keeps_its_colour_whatever_else_was_measured():
    assert marks.control_colour("mean_map") == CONTROLS["mean_map"].colour
    assert re.fullmatch("#[0-9A-Fa-f]{6}", marks.control_colour("somebody's"))


def test_curves_show_means_over_images_and_the_range_over_draws():
    """Two outcomes of 1 and 3 images, two draws: sums 2 and 6, and 4 and 12, so means of 2 and 4 a draw."""
    rows = [
        (outcome, "shifted", draw, "lerf", 0.25, n * value, n * value, n)
        for outcome, n in (("TP", 1), ("FP", 3))
        for draw, value in ((0, 2.0), (1, 4.0))
    ]
    columns = ["outcome", "control", "draw", "direction", "level_done", "logodds", "prob", "n"]
    sums = curves._sums(pd.DataFrame(rows, columns=columns))
    assert curves._spread(sums["lerf", "all"], "shifted", "logodds", restored=True) == [(0.75, 2.0, 4.0, 3.0)]
    assert sums["lerf", "TP"]["shifted", 1, 0.25] == {"logodds": 4.0, "prob": 4.0, "n": 1.0}


def test_a_long_label_of_a_narrow_panel_at_the_edge_is_not_cut_off():
    axes = [Axes(across="fall of the log-odds of the target class") for _ in range(4)]
    for ax in axes:
        ax.rows(["a label of some length, n = 12"])
    drawing = marks.grid_of(axes, 4, 60).drawing()
    ends = [box(i)[1] for i in drawing.items if isinstance(i, Label) and i.text.startswith("fall")]
    assert len(ends) == 4
    assert max(ends) <= drawing.width
