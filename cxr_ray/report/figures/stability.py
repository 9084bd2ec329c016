"""Figure of maps under small changes of the image, and of infidelity, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import MARKERS, colour, control_colour, control_place, grid_of, legend_of
from cxr_ray.report.page import rows_of

SHOWN = {  # quantity to its name on the axis
    "spearman": "Spearman with the image's own map\n(right: more stable)",
    "max_sensitivity": "max-sensitivity\n(left: more stable)",
    "unexplained": "infidelity, share unexplained\n(left: more faithful)",
}


def stability(rows: pd.DataFrame, explainers: Sequence[str], title: str) -> Figure:
    """A panel a change and quantity, a row an explainer: the map's mean in colour, its controls' means hollow.

    Args:
        rows: rows of ``stability_summary`` of one model and target rule.
        explainers: in the order of rows and colours.
        title: of the figure.
    """
    shown = [e for e in explainers if e in set(rows["explainer"])]
    rows = rows[rows["quantity"].isin(SHOWN)]
    settings = rows[["quantity", "perturbation", "size"]].drop_duplicates()
    axes = []
    for r in rows_of(settings):
        same = (rows["quantity"] == r.quantity) & (rows["perturbation"] == r.perturbation)
        part = rows[same & ((rows["size"] == r.size) | pd.isna(r.size))]
        name = r.perturbation if pd.isna(r.size) else f"{r.perturbation} {r.size:g}"
        ax = Axes(title=name, across=SHOWN[r.quantity])
        _panel(ax, part, shown, [explainers.index(e) for e in shown])
        ax.rows(shown)
        axes.append(ax)
    return grid_of(axes, 3, 12 + 27.0 * len(shown), title=title, legend=legend_of(*axes), share_y=True)


def _panel(ax: Axes, part: pd.DataFrame, explainers: Sequence[str], colours: Sequence[int]) -> None:
    for r in rows_of(part):
        y = explainers.index(r.explainer)
        if r.control == "none":
            ax.point(y, (r.mean, r.lower, r.upper), colour(colours[y]))
        elif not pd.isna(r.control_mean):
            shape = MARKERS[control_place(r.control) % len(MARKERS)]
            name = f"mean of {r.control}"
            ax.marks([r.control_mean], [y], shape, control_colour(r.control), name, hollow=True)
