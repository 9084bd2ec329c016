"""Faithfulness against localisation: a panel for each explainer, a point for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import colour, finish, marker, marks_of, panels

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
    figure, axes = panels(len(shown), 3, 2.6, 1.1, sharex=True, sharey=True)
    for ax, explainer in zip(axes, shown, strict=True):
        of_map = points[points["explainer"] == explainer]
        for i, outcome in enumerate(OUTCOMES):
            part = of_map[of_map["outcome"] == outcome]
            if len(part):
                look: dict[str, Any] = {"color": colour(i), "ls": "none", "ms": 4, "alpha": 0.8}
                ax.plot(part["plausible"], part["faithful"], marker(i), label=outcome, **look)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.axvline(0, color="0.3", lw=0.8)
        ax.tick_params(labelsize=8, labelbottom=True)
        ax.set_title(f"{explainer}, {len(of_map)} images", fontsize=9)
    axes[0].set_ylabel("advantage in faithfulness", fontsize=8)
    return finish(figure, title, marks_of(*axes), label=f"advantage in {label}")
