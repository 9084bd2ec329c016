"""Figures of what maps look like: spatial concentration by bucket, and likeness under randomised weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxr_ray.measure.concentration import CONCENTRATIONS
from cxr_ray.report.figures.axes import Axes
from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.figures.marks import colour, grid_of, legend_of, marker

LOOKS = {
    "compact": "#0A6AA6",
    "diffuse": "#A6D3EE",
    "scattered": "#007A58",
    "border": "#C04F00",
    "degenerate": "#BBBBBB",
}
DARK = ("compact", "scattered", "border")  # numbers on these are white


def concentration(observed: pd.DataFrame, title: str) -> Figure:
    """Share of maps of each concentration, a panel an explainer, a bar a bucket.

    Args:
        observed: explainer, bucket, n and a count for each of CONCENTRATIONS.
        title: of the figure.
    """
    explainers = list(dict.fromkeys(observed["explainer"]))
    axes = [_bars(explainer, observed[observed["explainer"] == explainer]) for explainer in explainers]
    return grid_of(axes, 3, 130, title=title, legend=legend_of(axes[0]))


def _bars(explainer: str, part: pd.DataFrame) -> Axes:
    quarters = [(x, f"{x:.0%}") for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    across = "share of maps (numbers: maps)"
    ax = Axes(title=explainer, across=across, x_limits=(0.0, 1.0), x_ticks=quarters)
    known = part[list(CONCENTRATIONS)].sum(axis=1)
    left = np.zeros(len(part))
    for kind, look in LOOKS.items():
        share = (part[kind] / known).fillna(0).to_numpy()
        for y, (width, start, n) in enumerate(zip(share, left, part[kind], strict=True)):
            ax.bar(start, start + width, y, look, kind)
            if width > 0.07:
                ax.text(start + width / 2, y, str(n), "#ffffff" if kind in DARK else "#000000")
        left += share
    ax.rows([f"{r.bucket}, n = {r.n}" for r in part.itertuples()])
    return ax


MEASURES = ("spearman", "ssim", "gap")


def sanity(means: pd.DataFrame, layers: Sequence[str], explainers: Sequence[str], title: str) -> Figure:
    """Likeness to the trained model's own map and advantage over the control, layer by layer.

    Args:
        means: explainer, layer, control, and value, lower and upper of spearman, ssim, gap and own_gap; mode cascade.
        layers: from the head down.
        explainers: in the order of their colours.
        title: of the figure.
    """
    layers = [x for x in layers if x in set(means["layer"])]
    shown = [e for e in explainers if e in set(means["explainer"])]
    control = "".join(f"\nover {c}" for c in means["control"].dropna().unique())
    labels = ("Spearman", "SSIM", f"advantage{control}, log-odds\n(above 0: more faithful)")
    axes = []
    names = ["none", *(f"+ {x}" if i else x for i, x in enumerate(layers))]
    for measure, label in zip(MEASURES, labels, strict=True):
        ax = Axes(across="randomised, from the head down", up=label, x_ticks=list(enumerate(names)), named_x=True)
        for i, explainer in enumerate(shown):
            part = means[means["explainer"] == explainer].drop_duplicates("layer").set_index("layer").reindex(layers)
            _line(ax, part, measure, i, 0.12 * (i - (len(shown) - 1) / 2), explainer)
        ax.across_all("y", 0)
        if measure != "gap":
            ax.y_limits = (min(-0.1, ax.ends("y")[0]), 1.05)
        axes.append(ax)
    return grid_of(axes, 3, 230, title=title, legend=legend_of(axes[0]))


def _line(ax: Axes, part: pd.DataFrame, measure: str, i: int, shift: float, label: str) -> None:
    """One explainer's measure over layers; it starts at the trained model's own map."""
    start = {measure: 1.0, f"{measure}_lower": np.nan, f"{measure}_upper": np.nan}
    if measure == "gap":
        start = {f"gap{end}": part[f"own_gap{end}"].iloc[0] for end in ("", "_lower", "_upper")}
    y, low, high = (
        np.array([start[f"{measure}{end}"], *part[f"{measure}{end}"]], float) for end in ("", "_lower", "_upper")
    )
    x = np.arange(len(y)) + shift
    for place, *bounds in zip(x, low, high, strict=True):
        ax.line([place, place], bounds, colour(i), width=1.5)
    ax.line(x, y, colour(i), width=1.5)
    ax.marks(x, y, marker(i), colour(i), label)
