"""The figure of deletion and insertion curves: the map's mean and the range of each control's draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pandas as pd

from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.drawing import Path
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import DASHES, SCALES, control_colour, control_place, legend_of
from cxr_ray.report.page import rows_of

DIRECTIONS = {"morf": "Deletion (MoRF)", "lerf": "Insertion (LeRF reversed)"}
BAND = "band: range of a control's draws"
BUCKETS = ("all", "TP", "FP")
Sums = dict[tuple[str, int, float], dict[str, float]]  # by control, draw and level: sums of scores and images


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
    sums = _sums(part)
    axes = []
    for direction, scale in rows:
        of_row = [_panel(sums.get((direction, bucket), {}), controls, direction, scale, bucket) for bucket in shown]
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


def _sums(part: pd.DataFrame) -> dict[tuple[str, str], Sums]:
    """Of each direction and bucket the sums over its images; without those of no image.

    In plain Python: data frames of a few rows, one for each panel, took half of the page's time.
    """
    found: dict[tuple[str, str], Sums] = {}
    for r in rows_of(part[part["n"] > 0]):
        for bucket in ("all", r.outcome):
            totals = found.setdefault((r.direction, bucket), {})
            total = totals.setdefault((r.control, r.draw, r.level_done), dict.fromkeys((*SCALES, "n"), 0.0))
            for name in total:
                total[name] += getattr(r, name)
    return found


def _spread(sums: Sums, control: str, scale: str, restored: bool) -> list[tuple[float, float, float, float]]:
    """share done, smallest, largest and mean of the means of a control's draws, from the lowest share."""
    means: dict[float, list[float]] = {}
    for (name, _, level), total in sums.items():
        if name == control:
            means.setdefault(1 - level if restored else level, []).append(total[scale] / total["n"])
    return [(x, min(values), max(values), sum(values) / len(values)) for x, values in sorted(means.items())]


def _panel(sums: Sums, controls: Sequence[str], direction: str, scale: str, bucket: str) -> Axes:
    n = max((total["n"] for (control, _, _), total in sums.items() if control == "none"), default=0)
    ax = Axes(
        title=f"{DIRECTIONS[direction]}\n{bucket}, n = {int(n)}",
        across="share of cells " + ("filled" if direction == "morf" else "restored"),
        x_limits=(-0.02, 1.02),
        x_ticks=[(x, f"{x:g}") for x in (0.0, 0.25, 0.5, 0.75, 1.0)],
    )
    for control in (*controls, "none"):
        spread = _spread(sums, control, scale, direction == "lerf")
        if not spread:
            continue
        x, low, high, mean = zip(*spread, strict=True)
        if control == "none":
            ax.line(x, mean, "ink", "map", width=2)
            ax.marks(x, mean, "o", "ink")
            continue
        look = control_colour(control)
        if low != high:  # several draws
            ax.band(x, low, high, look)
            ax.legend.setdefault(BAND, lambda x, y: [Path(_box(x, y), "", "axis", opacity=0.35, closed=True)])
        ax.line(x, mean, look, control, width=1.6, dash=DASHES[control_place(control) % len(DASHES)])
    return ax


def _box(x: float, y: float) -> list[tuple[float, float]]:
    return [(x, y - 5), (x + 20, y - 5), (x + 20, y + 5), (x, y + 5)]
