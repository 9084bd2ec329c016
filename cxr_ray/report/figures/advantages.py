"""Figures of the advantage over controls: a forest plot, and advantage against accuracy over models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import colour, control_colour, grid_of, legend_of, marker
from cxr_ray.report.page import rows_of

ROW = 19.0  # pixels


def forest(part: pd.DataFrame, controls: Sequence[str], label: str, title: str) -> Figure:
    """Mean advantages with their intervals, a panel a control in its colour, on one axis; filled: the hardest.

    Args:
        part: rows of ``summary`` in one setting, metric and scale.
        controls: in the order of panels.
        label: of the axis across.
        title: of the figure.
    """
    rows = part.drop_duplicates(["explainer", "bucket"])
    keys = [(str(r.explainer), str(r.bucket)) for r in rows_of(rows)]
    n = {(str(r.explainer), str(r.bucket)): r.n for r in rows_of(part)}
    axes = []
    for control in controls:
        of_control = part[part["control"] == control]
        draws = int(of_control["draws"].max())
        ax = Axes(title=f"over {control}\n({draws} draw{'s' * (draws != 1)})")
        ax.rows([f"{'  '.join(key)}, n = {n[key]}" for key in keys], [explainer for explainer, _ in keys])
        ax.across_all("x", 0)
        for r in rows_of(of_control):
            bounds, y = (r.mean, r.lower, r.upper), keys.index((r.explainer, r.bucket))
            ax.point(y, bounds, control_colour(control), hollow=r.hardest is not True)
        axes.append(ax)
    return grid_of(axes, 4, ROW * len(keys) + 8, title=title, label=label, share_x=True, share_y=True)


def accuracy(models: pd.DataFrame, words: Mapping[str, str], label: str, title: str) -> Figure:
    """Advantage against accuracy: a panel an explainer, a point a model.

    Args:
        models: explainer, control, variant, and value, lower and upper of accuracy and gap.
        words: explainer to its rank correlation in words.
        label: of the axis up.
        title: of the figure.
    """
    explainers, variants = list(dict.fromkeys(models["explainer"])), list(dict.fromkeys(models["variant"]))
    axes = []
    for explainer in explainers:
        part = models[models["explainer"] == explainer]
        ax = Axes(
            title=f"{explainer}, over {part['control'].iloc[0]}\n{words[explainer].replace('; ', chr(10))}",
            across="accuracy on test at 0.5",
            up=label,
        )
        ax.across_all("y", 0)
        for r in rows_of(part):
            _model(ax, r, variants.index(r.variant))
        axes.append(ax)
    return grid_of(axes, 3, 220, title=title, legend=legend_of(*axes), share_x=True, share_y=True)


def _model(ax: Axes, r: Any, variant: int) -> None:
    look = colour(variant)
    if not pd.isna(r.gap_lower) and not pd.isna(r.accuracy_lower):
        ax.line([r.accuracy_lower, r.accuracy_upper], [r.gap, r.gap], look, opacity=0.6)
        ax.line([r.accuracy] * 2, [r.gap_lower, r.gap_upper], look, opacity=0.6)
    ax.marks([r.accuracy], [r.gap], marker(variant), look, r.variant)
