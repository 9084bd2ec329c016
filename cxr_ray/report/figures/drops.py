"""Figures of deletion at one level: every image's drop by bucket, and the sign of a contrast under every choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.report.figures.marks import (
    COLOURS,
    SCALES,
    WIDTH,
    colour,
    finish,
    marks_of,
    panels,
    point,
    rows_axis,
    zero,
)
from cxr_ray.report.page import rows_of

BUCKETS = ("TP", "FP", "TN", "FN", "all")
CONTROL_MARKERS = "Dsv^<>p"
LEGEND = (  # marker, colour, label
    ("o", "0.2", "all images"),
    ("s", "0.2", "matched on log-odds"),
    ("o", COLOURS[0], "interval above 0"),
    ("o", COLOURS[1], "below 0"),
    ("o", "0.5", "holds 0"),
    ("x", "0.5", "no interval"),
    ("+", "0.5", "no interval, matched"),
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
    figure, axes = panels(2, 2, 0.75 * len(buckets), 1.5, sharey=True)
    for ax, scale in zip(axes, ("prob", "logodds"), strict=True):
        labels = []
        for y, bucket in enumerate(buckets):
            of_bucket = drops[(drops["scale"] == scale) & ((drops["outcome"] == bucket) | (bucket == "all"))]
            values = np.sort(of_bucket["value"].dropna().to_numpy(float))
            _bucket(ax, y, values, means[(means["bucket"] == bucket) & (means["scale"] == scale)].iloc[0], controls)
            labels.append(f"{bucket}, n = {len(values)}")
        rows_axis(ax, labels, labels)
        zero(ax)
        ax.set_xlabel(f"drop in {SCALES[scale]} of the target", fontsize=8)
    return finish(figure, title, marks_of(axes[0]))


def _bucket(ax: Axes, y: float, values: Any, r: pd.Series, controls: Sequence[str]) -> None:
    # A fixed spread in place of a random one: neighbours in value lie at different heights.
    spread = 0.30 * (np.arange(len(values)) * 0.618034 % 1 - 0.5) - 0.22
    ax.plot(values, y + spread, ".", ms=2.2, color="0.55", alpha=0.7, label="one image")
    ax.plot([], [], "o-", color="black", label="mean of the map [95%]")
    ax.plot([], [], "x", color="black", label="mean, under 20 patients")
    point(ax, y + 0.14, (r["mean"], r["lower"], r["upper"]), "black")
    for i, control in enumerate(controls):
        ax.plot(r[control], y + 0.32, CONTROL_MARKERS[i % 7], ms=5, mfc="none", color=colour(i), label=control)


def signs(cells: pd.DataFrame, title: str) -> Figure:
    """Differences of mean drops: a panel for each contrast and scale, a row for each target rule, fill and level.

    Args:
        cells: target_rule, fill, level, scale, contrast_of, matched, mean, lower, upper, sign.
        title: of the figure.
    """
    rows = list(dict.fromkeys(cells[["target_rule", "fill", "level"]].itertuples(index=False, name=None)))
    contrasts = [c for c in ("TP-FP", "correct-wrong") if c in set(cells["contrast_of"])]
    shown = [(s, c) for s in ("prob", "logodds") for c in contrasts]
    figure = Figure(figsize=(WIDTH, 1.9 + 0.21 * len(rows)))
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, (scale, contrast) in zip(axes, shown, strict=True):
        rows_axis(ax, [f"{rule}, {fill}, {level:g}" for rule, fill, level in rows], [r[:2] for r in rows])
        for r in rows_of(cells[(cells["scale"] == scale) & (cells["contrast_of"] == contrast)]):
            y = rows.index((r.target_rule, r.fill, r.level)) + (0.18 if r.matched else -0.18)
            look = COLOURS[0] if r.sign > 0 else COLOURS[1] if r.sign < 0 else "0.5"
            point(ax, y, (r.mean, r.lower, r.upper), look, "s" if r.matched else "o", hollow=bool(r.matched))
        _label(ax, scale, *contrast.split("-"))
    for marker, look, name in LEGEND:
        axes[0].plot([], [], marker, color=look, mfc="white" if marker == "s" else look, label=name)
    return finish(figure, title, marks_of(axes[0]), columns=7)


def _label(ax: Axes, scale: str, first: str, second: str) -> None:
    zero(ax)
    ax.set_title(f"{first} minus {second}", fontsize=9)
    left, right = "\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"
    ax.set_xlabel(f"{SCALES[scale]}\n{left} {second} falls further\n{first} falls further {right}", fontsize=8)
    reach = 1.05 * max(abs(v) for v in ax.get_xlim())
    ax.set_xlim(-reach, reach)  # 0 in the middle: neither side looks longer than it is
