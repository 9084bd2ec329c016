"""Figures of deletion at one level: every image's drop by bucket, and the sign of a contrast under every choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import COLOURS, SCALES, control_colour, control_place, grid_of, legend_of
from cxr_ray.report.page import rows_of

BUCKETS = ("TP", "FP", "TN", "FN", "all")
CONTROL_MARKERS = "Dsv^<>p"
LEGEND = (  # marker, colour, label
    ("o", "ink", "all images"),
    ("s", "ink", "matched on log-odds"),
    ("o", COLOURS[0], "interval above 0"),
    ("o", COLOURS[1], "below 0"),
    ("o", "axis", "holds 0"),
    ("x", "axis", "no interval"),
    ("+", "axis", "no interval, matched"),
)


def deletion(drops: pd.DataFrame, means: pd.DataFrame, controls: Sequence[str], title: str) -> Figure:
    """Every image's drop, each bucket's mean, and the mean drop of each control.

    Args:
        drops: outcome, scale, value, one row an image and scale.
        means: bucket, scale, mean, lower and upper of the map, and a column for the mean of each control.
        controls: those columns.
        title: of the figure.
    """
    buckets = [b for b in BUCKETS if b in set(means["bucket"])]
    axes = []
    for scale in ("prob", "logodds"):
        ax, labels = Axes(across=f"drop in {SCALES[scale]} of the target"), []
        for y, bucket in enumerate(buckets):
            of_bucket = drops[(drops["scale"] == scale) & ((drops["outcome"] == bucket) | (bucket == "all"))]
            values = np.sort(of_bucket["value"].dropna().to_numpy(float))
            _bucket(ax, y, values, means[(means["bucket"] == bucket) & (means["scale"] == scale)].iloc[0], controls)
            labels.append(f"{bucket}, n = {len(values)}")
        ax.rows(labels, labels)
        ax.across_all("x", 0)
        axes.append(ax)
    return grid_of(axes, 2, 72 * len(buckets), title=title, legend=legend_of(axes[0]), share_y=True)


def _bucket(ax: Axes, y: float, values: Any, r: pd.Series, controls: Sequence[str]) -> None:
    # A fixed spread in place of a random one: neighbours in value lie at different heights.
    spread = 0.30 * (np.arange(len(values)) * 0.618034 % 1 - 0.5) - 0.22
    ax.dots(values, y + spread, "axis", "one image")
    ax.name("mean of the map [95%]", "o", "ink")
    ax.name("mean, under 20 patients", "x", "ink")
    ax.point(y + 0.14, (r["mean"], r["lower"], r["upper"]), "ink")
    for control in controls:
        shape = CONTROL_MARKERS[control_place(control) % len(CONTROL_MARKERS)]
        ax.marks([r[control]], [y + 0.32], shape, control_colour(control), control, hollow=True)


def signs(cells: pd.DataFrame, title: str) -> Figure:
    """Differences of mean drops: a panel for each contrast and scale, a row for each target rule, fill and level.

    Args:
        cells: target_rule, fill, level, scale, contrast_of, matched, mean, lower, upper, sign.
        title: of the figure.
    """
    rows = list(dict.fromkeys(cells[["target_rule", "fill", "level"]].itertuples(index=False, name=None)))
    contrasts = [c for c in ("TP-FP", "correct-wrong") if c in set(cells["contrast_of"])]
    shown = [(s, c) for s in ("prob", "logodds") for c in contrasts]
    axes = []
    for scale, contrast in shown:
        ax = Axes()
        ax.rows([f"{rule}, {fill}, {level:g}" for rule, fill, level in rows], [r[:2] for r in rows])
        for r in rows_of(cells[(cells["scale"] == scale) & (cells["contrast_of"] == contrast)]):
            y = rows.index((r.target_rule, r.fill, r.level)) + (0.18 if r.matched else -0.18)
            look = COLOURS[0] if r.sign > 0 else COLOURS[1] if r.sign < 0 else "axis"
            ax.point(y, (r.mean, r.lower, r.upper), look, "s" if r.matched else "o", hollow=bool(r.matched))
        _label(ax, scale, *contrast.split("-"))
        axes.append(ax)
    for marker, look, name in LEGEND:
        axes[0].name(name, marker, look, hollow=marker == "s")
    height = 20.0 * len(rows) + 8
    return Figure(axes, len(shown), [height], title=title, legend=legend_of(axes[0]), share_y=True)


def _label(ax: Axes, scale: str, first: str, second: str) -> None:
    ax.title = f"{first} minus {second}"
    left, right = "\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"
    ax.across = f"{SCALES[scale]}\n{left} {second} falls further\n{first} falls further {right}"
    ax.across_all("x", 0)
    reach = 1.05 * max(abs(v) for v in ax.ends("x"))
    ax.x_limits = (-reach, reach)  # 0 in the middle: neither side looks longer than it is
