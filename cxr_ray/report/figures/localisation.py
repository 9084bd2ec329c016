"""Faithfulness against localisation: a panel for each explainer, a point for each image."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import colour, grid_of, legend_of, marker

OUTCOMES = ("TP", "FP", "TN", "FN")


def faithful_and_plausible(points: pd.DataFrame, explainers: Sequence[str], title: str, label: str) -> Figure:
    """Advantages of each image's map over one control, in both.

    Args:
        points: explainer, outcome, faithful and plausible.
        explainers: the order of panels; those without points have none.
        title: of the figure.
        label: of the metric of localisation.
    """
    shown = [e for e in explainers if e in set(points["explainer"])]
    axes = []
    for explainer in shown:
        of_map = points[points["explainer"] == explainer]
        ax = Axes(title=f"{explainer}, {len(of_map)} images")
        ax.across_all("x", 0)
        ax.across_all("y", 0)
        for i, outcome in enumerate(OUTCOMES):
            part = of_map[of_map["outcome"] == outcome]
            if len(part):
                ax.marks(part["plausible"], part["faithful"], marker(i), colour(i), outcome)
        axes.append(ax)
    axes[0].up = "advantage in faithfulness"
    label = f"advantage in {label}"
    return grid_of(axes, 3, 220, title=title, legend=legend_of(*axes), label=label, share_x=True, share_y=True)
