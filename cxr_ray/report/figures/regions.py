"""Figures of regions: the effect of changing each, and on phantoms the effect against the ground truth."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import COLOURS, WIDTH, finish, marks_of, panels, point, rows_axis, zero
from cxr_ray.report.page import rows_of

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
    heights = [max(counts[i : i + COLUMNS]) for i in range(0, len(names), COLUMNS)]
    figure = Figure(figsize=(WIDTH, 1.2 + sum(0.7 + 0.2 * h for h in heights)))
    ratios = [3 + h for h in heights]
    axes = list(
        figure.subplots(len(heights), min(COLUMNS, len(names)), squeeze=False, height_ratios=ratios, sharex=True).flat
    )
    for spare in axes[len(names) :]:
        spare.set_axis_off()
    for ax, name in zip(axes, names, strict=False):
        _region(ax, means[means["region"] == name].reset_index(drop=True))
        ax.set_title(name, fontsize=9)
    for marker, look, label in (("o", COLOURS[0], "the region"), ("D", COLOURS[1], "its matched control")):
        axes[0].plot([], [], marker, color=look, mfc="white" if marker == "D" else look, label=label)
    axes[0].plot([], [], "x", color="0.5", label="no interval: under 20 patients (+ of the control)")
    return finish(figure, title, marks_of(axes[0]), columns=3)


def _region(ax: Axes, part: pd.DataFrame) -> None:
    rows_axis(ax, [f"{r.fill}, {r.bucket}, n = {r.n}" for r in rows_of(part)], list(part["fill"]))
    for y, r in enumerate(part.to_dict("records")):
        effect, matched = (
            [r[f"{what}_logodds{end}"] for end in ("", "_lower", "_upper")] for what in ("effect", "matched")
        )
        point(ax, y - 0.15, effect, COLOURS[0])
        point(ax, y + 0.2, matched, COLOURS[1], "D", hollow=True)
    zero(ax)
    ax.tick_params(labelbottom=True)
    ax.set_xlabel("fall of the log-odds of the target", fontsize=8)


def truth(points: pd.DataFrame, agreement: pd.DataFrame, title: str) -> Figure:
    """The region's effect against that of the counterfactual rendering, a panel for each region and fill.

    Args:
        points: region, fill, truth_of, outcome, effect and causal, one row an image.
        agreement: region, fill, truth_of, n, rho and same_sign.
        title: of the figure.
    """
    shown = list(rows_of(agreement))
    figure, axes = panels(len(shown), 3, 2.7, 0.9)
    for ax, r in zip(axes, shown, strict=True):
        same = (points["region"] == r.region) & (points["truth_of"] == r.truth_of) & (points["fill"] == r.fill)
        _images(ax, points[same])
        numbers = f"Spearman {r.rho:.2f}, same sign {r.same_sign:.0%}, n = {r.n}"
        ax.set_title(f"{r.region}, fill {r.fill}\n{numbers}", fontsize=8)
        ax.set_xlabel(f"counterfactual rendering {rendering(r)}", fontsize=8)
        ax.set_ylabel("region filled or swapped", fontsize=8)
        ax.tick_params(labelsize=8)
    return finish(figure, title, marks_of(axes[0]))


def rendering(r: Any) -> str:
    """In words, how the phantom of a row of the agreement was drawn again."""
    return "with the other glyph" if r.truth_of == "glyph" else f"without its {r.truth_of}"


def _images(ax: Axes, points: pd.DataFrame) -> None:
    for (outcome, marker), look in zip(OUTCOMES.items(), COLOURS, strict=False):
        part = points[points["outcome"] == outcome]
        ax.plot(part["causal"], part["effect"], marker, ms=3.5, color=look, mfc="none", label=outcome)
    ax.axhline(0, color="0.3", lw=0.8)
    zero(ax)
