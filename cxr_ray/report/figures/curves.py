"""The figure of deletion and insertion curves: the map's mean and the range of each control's draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cxr_ray.report.figures.marks import SCALES, WIDTH, colour, finish, marks_of

DIRECTIONS = {"morf": "Deletion (MoRF)", "lerf": "Insertion (LeRF reversed)"}
DASHES = ("-", "--", "-.", ":")
BUCKETS = ("all", "TP", "FP")


def curves(part: pd.DataFrame, controls: Sequence[str], title: str, scales: Iterable[str] = SCALES) -> Figure:
    """Rows: each direction in each scale; columns: those of BUCKETS that have images.

    Args:
        part: sums over images (logodds, prob, n) by outcome, control, draw, direction and level_done.
        controls: in the order of their colours.
        title: of the figure.
        scales: logodds and prob, or one of them.
    """
    rows = list(itertools.product([d for d in DIRECTIONS if d in set(part["direction"])], scales))
    shown = shown_buckets(part)
    figure = Figure(figsize=(WIDTH, 1.3 + 2.1 * len(rows)))
    axes = figure.subplots(len(rows), len(shown), sharey="row", squeeze=False)
    sums = {(d, bucket): _sums(part, d, bucket) for d in DIRECTIONS for bucket in shown}
    for row, (direction, scale) in zip(axes, rows, strict=True):
        for ax, bucket in zip(row, shown, strict=True):
            of_panel = sums[direction, bucket]
            _panel(ax, of_panel, controls, direction, scale)
            n = of_panel.loc[of_panel["control"] == "none", "n"].max()
            ax.set_title(f"{DIRECTIONS[direction]}\n{bucket}, n = {0 if pd.isna(n) else int(n)}", fontsize=9)
        better = "lower" if direction == "morf" else "higher"
        row[0].set_ylabel(f"{SCALES[scale]} of the target\n({better}: more faithful)", fontsize=8)
    drawn = marks_of(*axes.flat)
    handles = {name: drawn[name] for name in ("map", *controls) if name in drawn}
    if part["draw"].max() > 0:
        handles["band: range of a control's draws"] = Patch(color="0.5", alpha=0.25, lw=0)
    return finish(figure, title, handles)


def shown_buckets(part: pd.DataFrame) -> list[str]:
    """Those of BUCKETS that have images."""
    outcomes = set(part.loc[part["n"] > 0, "outcome"])
    return [bucket for bucket in BUCKETS if bucket == "all" or bucket in outcomes]


def images(sums: pd.DataFrame) -> dict[str, int]:
    """Images behind the means of each control (none: the map)."""
    n = sums.groupby(["control", "draw", "direction", "level_done"])["n"].sum()
    return {str(c): int(v) for c, v in n.groupby("control").max().items()}


def _sums(part: pd.DataFrame, direction: str, bucket: str) -> pd.DataFrame:
    """Sums over the bucket's images by control, draw and level_done; without those of no image."""
    chosen = part[(part["direction"] == direction) & ((part["outcome"] == bucket) | (bucket == "all"))]
    sums = chosen.groupby(["control", "draw", "level_done"], as_index=False)[[*SCALES, "n"]].sum()
    return sums[sums["n"] > 0]


def _panel(ax: Axes, sums: pd.DataFrame, controls: Sequence[str], direction: str, scale: str) -> None:
    sums = sums.assign(mean=sums[scale] / sums["n"])
    for control, of_control in sums.groupby("control"):
        x = of_control["level_done"] if direction == "morf" else 1 - of_control["level_done"]
        spread = of_control.groupby(x)["mean"].agg(["min", "max", "mean"])
        if control == "none":
            ax.plot(spread.index, spread["mean"], "o-", color="black", ms=3, lw=1.5, label="map", zorder=5)
            continue
        i = controls.index(str(control))
        if (spread["min"] < spread["max"]).any():  # several draws
            ax.fill_between(spread.index, spread["min"], spread["max"], color=colour(i), alpha=0.25, lw=0)
        ax.plot(spread.index, spread["mean"], DASHES[i % 4], color=colour(i), lw=1.2, label=str(control))
    ax.set_xlim(-0.02, 1.02)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.grid(color="0.93")
    ax.tick_params(labelsize=8)
    ax.set_xlabel("share of cells " + ("filled" if direction == "morf" else "restored"), fontsize=8)
