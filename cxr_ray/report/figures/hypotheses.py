"""The figure of the hypotheses: each effect with its intervals, and the margin it is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.report.figures.layout import PAD, arrange
from cxr_ray.report.figures.marks import COLOURS, WIDTH, point, zero


def verdicts(rows: Sequence[Any]) -> Figure:
    """Each row of the table on an axis of its own."""
    figure = Figure(figsize=(WIDTH, 0.2 + 0.85 * len(rows)))
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, r in zip(axes, rows, strict=True):
        _verdict(ax, r)
    arrange(figure, PAD)
    return figure


def _verdict(ax: Axes, r: Any) -> None:
    known = [v for v in (r.effect, r.lower, r.upper, r.margin_low, r.margin_high, 0.0) if not pd.isna(v)]
    low, high = min(known), max(known)
    ax.set_xlim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    if not pd.isna(r.margin_high):  # a run of an earlier version
        ax.axvspan(r.margin_low, r.margin_high, color="#CFE3F1", lw=0)
        for end in {r.margin_low, r.margin_high}:
            ax.axvline(end, color=COLOURS[0], lw=0.8, ls="--")
    if not pd.isna(r.lower_90):
        ax.plot([r.lower_90, r.upper_90], [-0.1, -0.1], color="black", lw=4, alpha=0.35, solid_capstyle="butt")
    point(ax, -0.1, (r.effect, r.lower, r.upper), "black")
    zero(ax)
    ax.set_yticks([-0.1], [f"{r.hypothesis} ({r.subject})\n{r.verdict}"])
    ax.set_ylim(-0.8, 0.6)
    ax.tick_params(labelsize=8)
    ax.set_xlabel(r.unit, fontsize=8, labelpad=1)
