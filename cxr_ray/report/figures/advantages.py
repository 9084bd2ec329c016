"""Figures of the advantage over controls: a forest plot, and advantage against accuracy over models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import colour, finish, marker, marks_of, panels, point, rows_axis, zero
from cxr_ray.report.page import rows_of


def forest(part: pd.DataFrame, controls: Sequence[str], explainers: Sequence[str], label: str, title: str) -> Figure:
    """Mean advantages with their intervals, a panel a control, all on one axis; filled where it is the hardest.

    Args:
        part: rows of ``summary`` in one setting, metric and scale.
        controls, explainers: in the order of panels and of colours.
        label: of the axis across.
        title: of the figure.
    """
    rows = part.drop_duplicates(["explainer", "bucket"])
    keys = [(str(r.explainer), str(r.bucket)) for r in rows_of(rows)]
    n = {(str(r.explainer), str(r.bucket)): r.n for r in rows_of(part)}
    figure, axes = panels(len(controls), 4, 0.6 + 0.2 * len(keys), 1.2, sharex=True, sharey=True)
    figure.set_figwidth(2.2 + 2.2 * min(4, len(controls)))
    for ax, control in zip(axes, controls, strict=True):
        of_control = part[part["control"] == control]
        rows_axis(ax, [f"{'  '.join(key)}, n = {n[key]}" for key in keys], [explainer for explainer, _ in keys])
        for r in rows_of(of_control):
            y = keys.index((r.explainer, r.bucket))
            hollow = r.hardest is not True
            point(ax, y, (r.mean, r.lower, r.upper), colour(explainers.index(r.explainer)), hollow=hollow)
        zero(ax)
        ax.tick_params(labelbottom=True)
        draws = int(of_control["draws"].max())
        ax.set_title(f"over {control}\n({draws} draw{'s' * (draws != 1)})", fontsize=9)
    return finish(figure, title, label=label)


def accuracy(models: pd.DataFrame, words: Mapping[str, str], label: str, title: str) -> Figure:
    """Advantage against accuracy: a panel an explainer, a point a model.

    Args:
        models: explainer, control, variant, and value, lower and upper of accuracy and gap.
        words: explainer to its rank correlation in words.
        label: of the axis up.
        title: of the figure.
    """
    explainers, variants = list(dict.fromkeys(models["explainer"])), list(dict.fromkeys(models["variant"]))
    figure, axes = panels(len(explainers), 3, 2.8, 1.0, sharex=True, sharey=True)
    for ax, explainer in zip(axes, explainers, strict=True):
        part = models[models["explainer"] == explainer]
        for r in rows_of(part):
            _model(ax, r, variants.index(r.variant))
        ax.axhline(0, color="0.3", lw=0.8)
        ax.grid(color="0.93")
        ax.tick_params(labelsize=8, labelbottom=True)
        ax.set_title(f"{explainer}, over {part['control'].iloc[0]}\n{words[explainer]}", fontsize=8)
        ax.set_xlabel("accuracy on test at 0.5", fontsize=8)
        ax.set_ylabel(label, fontsize=8)
    return finish(figure, title, marks_of(*axes), columns=6)


def _model(ax: Axes, r: Any, variant: int) -> None:
    look = colour(variant)
    if not pd.isna(r.gap_lower) and not pd.isna(r.accuracy_lower):
        ax.plot([r.accuracy_lower, r.accuracy_upper], [r.gap, r.gap], color=look, lw=0.8, alpha=0.6)
        ax.plot([r.accuracy] * 2, [r.gap_lower, r.gap_upper], color=look, lw=0.8, alpha=0.6)
    ax.plot(r.accuracy, r.gap, marker(variant), ms=5, color=look, label=r.variant)
