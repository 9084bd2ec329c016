"""Panels and the texts around them lie within the figure and beside each other, as the renderer measures them."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cxr_ray.report.figures import marks
from cxr_ray.report.figures.layout import arrange


def made(n, columns, label, shared):
    figure, axes = marks.panels(n, columns, 1.4, 1.1, **shared)
    for i, ax in enumerate(axes):
        ax.plot([0, 1], [-1e-4 * i, 1.5e3 * (i + 1)], "o-", label=f"kind {i}")
        if label == "rows":
            marks.rows_axis(ax, ["a", "a label of some length, n = 12"])
        ax.set_title(f"panel {i}\nof {n}", fontsize=9)
        ax.set_xlabel("across\nin two lines", fontsize=8)
        if not shared:
            ax.set_ylabel("up", fontsize=8)
    return marks.finish(figure, "a title\nof two lines", marks.marks_of(*axes), label="of all panels"), axes


@pytest.mark.parametrize(("n", "columns"), [(1, 3), (5, 2)])
@pytest.mark.parametrize("label", ["rows", "numbers"])
@pytest.mark.parametrize("shared", [{}, {"sharex": True, "sharey": True}])
def test_panels_and_their_texts_overlap_nowhere(n, columns, label, shared):
    figure, axes = made(n, columns, label, shared)
    FigureCanvasAgg(figure).draw()
    whole, renderer = figure.bbox, figure.canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer) for ax in axes]
    boxes += [figure.legends[0].get_window_extent(renderer), figure._suptitle.get_window_extent(renderer)]
    boxes.append(figure._supxlabel.get_window_extent(renderer))
    for box in boxes:
        assert min(box.x0 - whole.x0, whole.x1 - box.x1) > -1
        assert min(box.y0 - whole.y0, whole.y1 - box.y1) > -1
    for one, other in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        up = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, up) < 2.5  # pixels


def test_rows_share_their_height_as_asked():
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots(2, 1, height_ratios=[1, 3])
    arrange(figure, header=20, footer=10)
    heights = [ax.get_position().height for ax in axes]
    assert np.isclose(heights[1], 3 * heights[0])
    assert axes[0].get_position().y1 <= 1 - 20 / (72 * 6) + 1e-9
