"""The figure of deletion and insertion curves: the map's mean and the range of each control's draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.drawing import Path
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import DASHES, SCALES, control_colour, control_place, legend_of

DIRECTIONS = {"morf": "Deletion (MoRF)", "lerf": "Insertion (LeRF reversed)"}
BAND = "band: range of a control's draws"
BUCKETS = ("all", "TP", "FP")


def curves(part: pd.DataFrame, controls: Sequence[str], title: str, scales: Iterable[str] = SCALES) -> Figure:
    """Rows: each direction in each scale; columns: those of BUCKETS that have images.

    Args:
        part: sums over images (logodds, prob, n) by outcome, control, draw, direction and level_done.
        controls: in the order of the legend.
        title: of the figure.
        scales: logodds and prob, or one of them.
    """
    rows = list(itertools.product([d for d in DIRECTIONS if d in set(part["direction"])], scales))
    shown = shown_buckets(part)
    sums = {(d, bucket): _sums(part, d, bucket) for d in DIRECTIONS for bucket in shown}
    axes = []
    for direction, scale in rows:
        of_row = [_panel(sums[direction, bucket], controls, direction, scale, bucket) for bucket in shown]
        ends = [ax.ends("y") for ax in of_row]
        for ax in of_row:  # one axis a row
            ax.y_limits = min(e[0] for e in ends), max(e[1] for e in ends)
        better = "lower" if direction == "morf" else "higher"
        of_row[0].up = f"{SCALES[scale]} of the target\n({better}: more faithful)"
        axes += of_row
    drawn = legend_of(*axes)
    entries = {name: drawn[name] for name in ("map", *controls, BAND) if name in drawn}
    return Figure(axes, len(shown), [160.0] * len(rows), title=title, legend=entries)


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


def _panel(sums: pd.DataFrame, controls: Sequence[str], direction: str, scale: str, bucket: str) -> Axes:
    n = sums.loc[sums["control"] == "none", "n"].max()
    ax = Axes(
        title=f"{DIRECTIONS[direction]}\n{bucket}, n = {0 if pd.isna(n) else int(n)}",
        across="share of cells " + ("filled" if direction == "morf" else "restored"),
        x_limits=(-0.02, 1.02),
        x_ticks=[(x, f"{x:g}") for x in (0.0, 0.25, 0.5, 0.75, 1.0)],
    )
    sums = sums.assign(mean=sums[scale] / sums["n"])
    if direction == "lerf":
        sums = sums.assign(level_done=1 - sums["level_done"])
    spreads = sums.groupby(["control", "level_done"])["mean"].agg(["min", "max", "mean"]).reset_index()
    for control in controls:
        spread, look = spreads[spreads["control"] == control], control_colour(control)
        if (spread["min"] < spread["max"]).any():  # several draws
            ax.band(spread["level_done"], spread["min"], spread["max"], look)
            ax.legend.setdefault(BAND, lambda x, y: [Path(_box(x, y), "", "axis", opacity=0.35, closed=True)])
        dash = DASHES[control_place(control) % len(DASHES)]
        ax.line(spread["level_done"], spread["mean"], look, control, width=1.6, dash=dash)
    own = spreads[spreads["control"] == "none"]
    ax.line(own["level_done"], own["mean"], "ink", "map", width=2)
    ax.marks(own["level_done"], own["mean"], "o", "ink")
    return ax


def _box(x: float, y: float) -> list[tuple[float, float]]:
    return [(x, y - 5), (x + 20, y - 5), (x + 20, y + 5), (x, y + 5)]
