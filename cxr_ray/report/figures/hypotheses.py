"""The figure of the hypotheses: each effect with its intervals, and the margin it is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import COLOURS


def verdicts(rows: Sequence[Any]) -> Figure:
    """Each row of the table on an axis of its own."""
    return Figure([_verdict(r) for r in rows], 1, [44.0] * len(rows))


def _verdict(r: Any) -> Axes:
    known = [v for v in (r.effect, r.lower, r.upper, r.margin_low, r.margin_high, 0.0) if not pd.isna(v)]
    low, high = min(known), max(known)
    ends = low - 0.15 * (high - low), high + 0.15 * (high - low)
    ax = Axes(across=r.unit, x_limits=ends, y_limits=(-0.8, 0.6), named_y=True, grid="")
    ax.y_ticks = [(-0.1, f"{r.hypothesis} ({r.subject})\n{r.verdict}")]
    if not pd.isna(r.margin_high):  # a run of an earlier version
        ax.band([r.margin_low, r.margin_high], [-0.8, -0.8], [0.6, 0.6], "margin", opacity=1)
        for end in {r.margin_low, r.margin_high}:
            ax.across_all("x", end, COLOURS[0], dash="5 3")
    ax.across_all("x", 0)
    if not pd.isna(r.lower_90):
        ax.line([r.lower_90, r.upper_90], [-0.1, -0.1], "muted", width=5, opacity=0.5)
    ax.point(-0.1, (r.effect, r.lower, r.upper), "ink")
    return ax
