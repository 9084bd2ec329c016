"""Figures of regions: the effect of changing each, and on phantoms the effect against the ground truth."""

from __future__ import annotations

from typing import Any

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import COLOURS, grid_of, legend_of
from cxr_ray.report.page import number, rows_of

OUTCOMES = {"TP": "o", "FP": "s", "TN": "^", "FN": "D"}
COLUMNS = 3


def regions(means: pd.DataFrame, title: str) -> Figure:
    """A panel a region, a row a fill and bucket: the region's effect and that of its matched control.

    Args:
        means: region, fill, bucket, n, share_of_area, and value, lower and upper of effect_logodds and
            matched_logodds.
        title: of the figure.
    """
    names = list(dict.fromkeys(means["region"]))
    counts = [int((means["region"] == n).sum()) for n in names]
    columns = min(COLUMNS, len(names))
    heights = [25.0 + 22.0 * max(counts[i : i + columns]) for i in range(0, len(names), columns)]
    axes = [_region(name, means[means["region"] == name].reset_index(drop=True)) for name in names]
    for marker, look, label in (("o", COLOURS[0], "the region"), ("D", COLOURS[1], "its matched control")):
        axes[0].name(label, marker, look, hollow=marker == "D")
    axes[0].name("no interval: under 20 patients (+ of the control)", "x", "axis")
    return Figure(axes, columns, heights, title=title, legend=legend_of(axes[0]), share_x=True)


def _region(name: str, part: pd.DataFrame) -> Axes:
    ax = Axes(title=name, across="fall of the log-odds of the target")
    ax.rows([f"{r.fill}, {r.bucket}, n = {r.n}" for r in rows_of(part)], list(part["fill"]))
    for y, r in enumerate(part.to_dict("records")):
        effect, matched = (
            [r[f"{what}_logodds{end}"] for end in ("", "_lower", "_upper")] for what in ("effect", "matched")
        )
        ax.point(y - 0.15, effect, COLOURS[0])
        ax.point(y + 0.2, matched, COLOURS[1], "D", hollow=True)
    ax.across_all("x", 0)
    return ax


def truth(points: pd.DataFrame, agreement: pd.DataFrame, title: str) -> Figure:
    """The region's effect against that of the counterfactual rendering, a panel for each region and fill.

    Args:
        points: region, fill, truth_of, outcome, effect and causal, one row an image.
        agreement: region, fill, truth_of, n, rho and same_sign.
        title: of the figure.
    """
    axes = []
    for r in rows_of(agreement):
        same = (points["region"] == r.region) & (points["truth_of"] == r.truth_of) & (points["fill"] == r.fill)
        ax = _images(points[same])
        numbers = f"Spearman {number(r.rho, 2)}, same sign {r.same_sign:.0%}, n = {r.n}"
        ax.title = f"{r.region}, fill {r.fill}\n{numbers}"
        ax.across, ax.up = f"counterfactual rendering {rendering(r)}", "region filled or swapped"
        axes.append(ax)
    return grid_of(axes, 3, 210, title=title, legend=legend_of(*axes))


def rendering(r: Any) -> str:
    """In words, how the phantom of a row of the agreement was drawn again."""
    return "with the other glyph" if r.truth_of == "glyph" else f"without its {r.truth_of}"


def _images(points: pd.DataFrame) -> Axes:
    ax = Axes()
    ax.across_all("y", 0)
    ax.across_all("x", 0)
    for (outcome, marker), look in zip(OUTCOMES.items(), COLOURS, strict=False):
        part = points[points["outcome"] == outcome]
        ax.marks(part["causal"], part["effect"], marker, look, outcome, hollow=True)
    return ax
