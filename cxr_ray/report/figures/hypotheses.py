"""The figure of the hypotheses: effect, interval, and the side of the line that would support each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import COLOURS, WIDTH, point, zero


def verdicts(rows: Sequence[Any]) -> Figure:
    """Each verdict on an axis of its own.

    Args:
        rows: of the table, with line (what the interval is compared with) and side (1: above supports, -1: below).
    """
    figure = Figure(figsize=(WIDTH, 0.2 + 0.85 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, r in zip(axes, rows, strict=True):
        _verdict(ax, r)
    return figure


def _verdict(ax: Axes, r: Any) -> None:
    known = [v for v in (r.effect, r.lower, r.upper, r.line, 0.0) if not pd.isna(v)]
    low, high = min(known), max(known)
    ax.set_xlim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    end = ax.get_xlim()[1 if r.side > 0 else 0]
    ax.axvspan(r.line, end, color="#CFE3F1", lw=0)
    ax.axvline(r.line, color=COLOURS[0], lw=0.8, ls="--")
    ax.text((r.line + end) / 2, 0.5, "supports it", ha="center", va="bottom", fontsize=7, color="0.25")
    point(ax, -0.1, (r.effect, r.lower, r.upper), "black")
    zero(ax)
    ax.set_yticks([-0.1], [f"{r.hypothesis} ({r.subject})\n{r.verdict}"])
    ax.set_ylim(-0.8, 1.1)
    ax.tick_params(labelsize=8)
    ax.set_xlabel(r.unit, fontsize=8, labelpad=1)
