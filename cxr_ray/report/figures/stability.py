"""Figure of maps under small changes of the image, and of infidelity, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import colour, finish, marker, marks_of, panels, point, rows_axis
from cxr_ray.report.page import rows_of

SHOWN = {  # quantity to its name on the axis
    "spearman": "Spearman with the image's own map\n(right: more stable)",
    "max_sensitivity": "max-sensitivity\n(left: more stable)",
    "unexplained": "infidelity, share unexplained\n(left: more faithful)",
}


def stability(rows: pd.DataFrame, controls: Sequence[str], explainers: Sequence[str], title: str) -> Figure:
    """A panel a change and quantity, a row an explainer: the map's mean in colour, its controls' means in grey.

    Args:
        rows: rows of ``stability_summary`` of one model and target rule.
        controls: in the order of their markers.
        explainers: in the order of rows and colours.
        title: of the figure.
    """
    shown = [e for e in explainers if e in set(rows["explainer"])]
    rows = rows[rows["quantity"].isin(SHOWN)]
    settings = rows[["quantity", "perturbation", "size"]].drop_duplicates()
    figure, axes = panels(len(settings), 3, 0.9 + 0.28 * len(shown), 1.0, sharey=True)
    for ax, r in zip(axes, rows_of(settings), strict=True):
        same = (rows["quantity"] == r.quantity) & (rows["perturbation"] == r.perturbation)
        part = rows[same & ((rows["size"] == r.size) | pd.isna(r.size))]
        rows_axis(ax, shown)
        _panel(ax, part, shown, controls, [explainers.index(e) for e in shown])
        ax.set_title(r.perturbation if pd.isna(r.size) else f"{r.perturbation} {r.size:g}", fontsize=9)
        ax.set_xlabel(SHOWN[r.quantity], fontsize=8)
        ax.tick_params(labelbottom=True)
    return finish(figure, title, marks_of(*axes), columns=5)


def _panel(
    ax: Axes, part: pd.DataFrame, explainers: Sequence[str], controls: Sequence[str], colours: Sequence[int]
) -> None:
    for r in rows_of(part):
        y = explainers.index(r.explainer)
        if r.control == "none":
            point(ax, y, (r.mean, r.lower, r.upper), colour(colours[y]))
        elif not pd.isna(r.control_mean):
            look = marker(controls.index(r.control) + 1)
            ax.plot(r.control_mean, y, look, ms=5, mfc="none", color="0.45", label=f"mean of {r.control}")
