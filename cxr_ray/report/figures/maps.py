"""Figures of what maps look like: spatial concentration by bucket, and likeness under randomised weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_ray.measure.concentration import CONCENTRATIONS
from cxr_ray.report.figures.marks import colour, finish, marker, marks_of, panels, rows_axis

LOOKS = {
    "compact": "#0072B2",
    "diffuse": "#A6D3EE",
    "scattered": "#009E73",
    "border": "#D55E00",
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
    figure, axes = panels(len(explainers), 3, 1.75, 1.1)
    for ax, explainer in zip(axes, explainers, strict=True):
        _bars(ax, observed[observed["explainer"] == explainer].reset_index(drop=True))
        ax.set_title(explainer, fontsize=9)
    return finish(figure, title, marks_of(axes[0]), columns=5)


def _bars(ax: Axes, part: pd.DataFrame) -> None:
    known = part[list(CONCENTRATIONS)].sum(axis=1)
    left = np.zeros(len(part))
    for kind, look in LOOKS.items():
        share = (part[kind] / known).fillna(0).to_numpy()
        ax.barh(part.index, share, left=left, color=look, edgecolor="white", lw=0.6, label=kind, height=0.75)
        for y, (width, start, n) in enumerate(zip(share, left, part[kind], strict=True)):
            if width > 0.07:
                ink = "w" if kind in DARK else "k"
                ax.text(start + width / 2, y, str(n), ha="center", va="center", fontsize=7, color=ink)
        left += share
    rows_axis(ax, [f"{r.bucket}, n = {r.n}" for r in part.itertuples()])
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    ax.set_xlabel("share of maps (numbers: maps)", fontsize=8)


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
    figure, axes = panels(3, 3, 3.0, 0.6)
    for ax, measure, label in zip(axes, MEASURES, labels, strict=True):
        for i, explainer in enumerate(shown):
            part = means[means["explainer"] == explainer].drop_duplicates("layer").set_index("layer").reindex(layers)
            _line(ax, part, measure, i, 0.12 * (i - (len(shown) - 1) / 2), explainer)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.set_xticks(range(len(layers) + 1), ["none", *(f"+ {x}" if i else x for i, x in enumerate(layers))])
        ax.set_xlabel("randomised, from the head down", fontsize=8)
        ax.set_ylabel(label, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(axis="y", color="0.93")
        if measure != "gap":
            ax.set_ylim(min(-0.1, ax.get_ylim()[0]), 1.05)
    return finish(figure, title, marks_of(axes[0]), columns=5)


def _line(ax: Axes, part: pd.DataFrame, measure: str, i: int, shift: float, label: str) -> None:
    """One explainer's measure over layers; it starts at the trained model's own map."""
    start = {measure: 1.0, f"{measure}_lower": np.nan, f"{measure}_upper": np.nan}
    if measure == "gap":
        start = {f"gap{end}": part[f"own_gap{end}"].iloc[0] for end in ("", "_lower", "_upper")}
    y, low, high = (
        np.array([start[f"{measure}{end}"], *part[f"{measure}{end}"]], float) for end in ("", "_lower", "_upper")
    )
    x = np.arange(len(y)) + shift
    error = None if np.isnan(low).all() else np.nan_to_num(np.stack([y - low, high - y]))
    ax.errorbar(x, y, error, fmt=marker(i) + "-", ms=4, lw=1.2, color=colour(i), label=label)
