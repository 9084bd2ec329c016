"""The figures of a report, each from a frame that holds its numbers; nothing is read and nothing is written here.

Colours are Okabe & Ito's, and never the only mark: shape, fill or position tells the same.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from cxr_ray.analysis.findings import rows_of
from cxr_ray.measure.concentration import CONCENTRATIONS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
SCALES = {"logodds": "log-odds", "prob": "probability"}
ORDERS = {"morf": "Deletion", "lerf": "Insertion"}
OUTCOMES = {"TP": "o", "FP": "s", "TN": "^", "FN": "D"}
CONCENTRATION_LOOK = {
    "compact": "#0072B2", "diffuse": "#A6D3EE", "scattered": "#009E73", "border": "#D55E00", "degenerate": "#BBBBBB"
}  # fmt: skip
WIDTH = 9.6  # inches


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; few colours, so a palette makes it a third as large. It keeps also those of few pixels."""
    figure.set_dpi(120)
    canvas, sink = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(sink, "PNG")
    return sink.getvalue()


def _point(ax: Axes, y: float, r: Sequence[float], colour: str, marker: str = "o", hollow: bool = False) -> None:
    """mean, lower, upper as a point and a line; without an interval the point is a cross, upright where hollow."""
    mean, lower, upper = r
    if pd.isna(mean):
        return
    if pd.isna(lower):
        ax.plot(mean, y, "+" if hollow else "x", ms=5, color=colour)
        return
    ax.plot([lower, upper], [y, y], color=colour, lw=1.5, solid_capstyle="butt")
    ax.plot(mean, y, marker, ms=5, color=colour, mfc="white" if hollow else colour)


def _rows_axis(ax: Axes, labels: Sequence[str], groups: Sequence[Any] | None = None) -> None:
    """One labelled row each, the first on top; a line between groups."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(labelsize=8)
    ax.grid(axis="x", color="0.93")
    ax.set_axisbelow(True)
    for y in range(1, len(groups or ())):
        if groups is not None and groups[y] != groups[y - 1]:
            ax.axhline(y - 0.5, color="0.8", lw=0.8)


def _zero(ax: Axes) -> None:
    ax.axvline(0, color="0.3", lw=0.8)


def concentration(observed: pd.DataFrame, title: str) -> Figure:
    """``findings.observations``: share of maps of each kind, a panel an explainer, a bar a bucket."""
    explainers = list(dict.fromkeys(observed["explainer"]))
    columns = min(3, len(explainers))
    rows = -(-len(explainers) // columns)
    figure = Figure(figsize=(WIDTH, 1.1 + 1.75 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(explainers) :]:
        ax.set_axis_off()
    for ax, explainer in zip(axes.flat, explainers, strict=False):
        part = observed[observed["explainer"] == explainer].reset_index(drop=True)
        known = part[list(CONCENTRATIONS)].sum(axis=1)
        left = np.zeros(len(part))
        for kind, colour in CONCENTRATION_LOOK.items():
            share = (part[kind] / known).fillna(0).to_numpy()
            ax.barh(part.index, share, left=left, color=colour, edgecolor="white", lw=0.6, label=kind, height=0.75)
            for y, (s, at, n) in enumerate(zip(share, left, part[kind], strict=True)):
                if s > 0.07:
                    dark = kind in ("compact", "scattered", "border")
                    ax.text(at + s / 2, y, str(n), ha="center", va="center", fontsize=7, color="w" if dark else "k")
            left += share
        _rows_axis(ax, [f"{r.bucket}, n = {r.n}" for r in part.itertuples()])
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        ax.set_title(explainer, fontsize=9)
        ax.set_xlabel("share of maps (numbers: maps)", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def forest(part: pd.DataFrame, controls: Sequence[str], explainers: Sequence[str], label: str, title: str) -> Figure:
    """Mean gaps with their intervals, a panel a control, all on one axis; ``part``: rows of ``summary``."""
    keys = [(str(r.explainer), str(r.bucket)) for r in part.drop_duplicates(["explainer", "bucket"]).itertuples()]
    columns = min(4, len(controls))
    rows = -(-len(controls) // columns)
    figure = Figure(figsize=(2.2 + 2.2 * columns, 1.2 + rows * (0.6 + 0.2 * len(keys))), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    n = {(str(r.explainer), str(r.bucket)): r.n for r in rows_of(part)}
    for i, ax in enumerate(axes.flat):
        if i >= len(controls):
            ax.set_axis_off()
            continue
        of_control = part[part["control"] == controls[i]]
        _rows_axis(ax, [f"{'  '.join(key)}, n = {n[key]}" for key in keys], [k[0] for k in keys])
        for r in rows_of(of_control):
            y, colour = keys.index((r.explainer, r.bucket)), COLOURS[explainers.index(r.explainer) % 7]
            _point(ax, y, (r.mean, r.lower, r.upper), colour)
        _zero(ax)
        ax.tick_params(labelbottom=True)
        draws = int(of_control["draws"].max())
        ax.set_title(f"against {controls[i]}\n({draws} draw{'s' * (draws != 1)})", fontsize=9)
    figure.supxlabel(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def curves(part: pd.DataFrame, controls: Sequence[str], title: str) -> Figure:
    """Rows: each order in log-odds and probability; columns: all, TP, FP.

    ``part``: sums over images (columns of SCALES, n) by outcome, control, draw, order, level_done.
    """
    orders, buckets = [o for o in ORDERS if o in set(part["direction"])], ("all", "TP", "FP")
    panels = list(itertools.product(orders, SCALES))
    height = 1.3 + 2.1 * len(panels)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(len(panels), len(buckets), sharey="row", squeeze=False)
    for row, (order, scale) in enumerate(panels):
        for ax, bucket in zip(axes[row], buckets, strict=True):
            of_bucket = part[(part["direction"] == order) & ((part["outcome"] == bucket) | (bucket == "all"))]
            _curve_panel(ax, of_bucket, controls, order, scale)
            ax.set_title(f"{ORDERS[order]}, {bucket}, n = {images(of_bucket).get('none', 0)}", fontsize=9)
            ax.tick_params(labelsize=8)
            ax.set_xlabel("share of units " + ("filled" if order == "morf" else "restored"), fontsize=8)
        better = "lower" if order == "morf" else "higher"
        axes[row][0].set_ylabel(f"{SCALES[scale]} of the target\n({better}: more faithful)", fontsize=8)
    handles = {t.get_label(): t for ax in axes.flat for t in ax.get_lines()}
    handles = {k: handles[k] for k in ["map", *controls] if k in handles}
    if part["draw"].max() > 0:
        handles["band: range of a control's draws"] = Patch(color="0.5", alpha=0.25, lw=0)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), fontsize=8,
        frameon=False,
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    return figure


def _curve_panel(ax: Axes, part: pd.DataFrame, controls: Sequence[str], order: str, scale: str) -> None:
    sums = part.groupby(["control", "draw", "level_done"], as_index=False)[[scale, "n"]].sum()
    sums = sums[sums["n"] > 0]
    sums["mean"] = sums[scale] / sums["n"]
    dashes = ("-", "--", "-.", ":")
    for control, of_control in sums.groupby("control"):
        x = of_control["level_done"] if order == "morf" else 1 - of_control["level_done"]
        spread = of_control.groupby(x)["mean"].agg(["min", "max", "mean"])
        if control == "none":
            ax.plot(spread.index, spread["mean"], "o-", color="black", ms=3, lw=1.5, label="map", zorder=5)
            continue
        at = controls.index(control)
        ax.fill_between(spread.index, spread["min"], spread["max"], color=COLOURS[at % 7], alpha=0.25, lw=0)
        ax.plot(spread.index, spread["mean"], dashes[at % 4], color=COLOURS[at % 7], lw=1.2, label=control)
    if sums.empty:
        ax.text(0.5, 0.5, "no images", transform=ax.transAxes, ha="center", va="center", color="0.4", fontsize=8)
    ax.set_xlim(-0.02, 1.02)
    ax.grid(color="0.93")


def images(sums: pd.DataFrame) -> dict[str, int]:
    """Images behind the means of each control (none: the map)."""
    n = sums.groupby(["control", "draw", "direction", "level_done"])["n"].sum()
    return {str(c): int(v) for c, v in n.groupby("control").max().items()}


def deletion(drops: pd.DataFrame, means: pd.DataFrame, controls: Sequence[str], title: str) -> Figure:
    """Every image's drop, and each bucket's mean beside that of its controls.

    Args:
        drops: outcome, scale, value, one row an image and scale.
        means: bucket, scale, mean, lower, upper of the map, and a column for the mean of each control.
        controls: those columns.
        title: of the figure.
    """
    buckets = [b for b in ("TP", "FP", "TN", "FN", "all") if b in set(means["bucket"])]
    figure = Figure(figsize=(WIDTH, 1.5 + 0.75 * len(buckets)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, scale in zip(axes, ("prob", "logodds"), strict=True):
        labels = []
        for y, bucket in enumerate(buckets):
            of_bucket = drops[(drops["scale"] == scale) & ((drops["outcome"] == bucket) | (bucket == "all"))]
            values = np.sort(of_bucket["value"].dropna().to_numpy(float))
            # A fixed spread in place of a random one: neighbours in value lie at different heights.
            spread = 0.30 * (np.arange(len(values)) * 0.618034 % 1 - 0.5) - 0.22
            ax.plot(values, y + spread, ".", ms=2.2, color="0.55", alpha=0.7, label="one image")
            r = means[(means["bucket"] == bucket) & (means["scale"] == scale)].iloc[0]
            ax.plot([], [], "o-", color="black", label="mean of the map [95%]")
            ax.plot([], [], "x", color="black", label="the same under 20 patients")
            _point(ax, y + 0.14, (r["mean"], r["lower"], r["upper"]), "black")
            for i, control in enumerate(controls):
                ax.plot(
                    r[control], y + 0.32, "Dsv^<>p"[i % 7], ms=5, mfc="none", color=COLOURS[i % 7], label=control
                )  # fmt: skip
            labels.append(f"{bucket}, n = {len(values)}")
        _rows_axis(ax, labels, list(range(len(labels))))
        _zero(ax)
        ax.set_xlabel(f"drop in {SCALES[scale]} of the target", fontsize=8)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def signs(cells: pd.DataFrame, title: str) -> Figure:
    """``findings.sign_cells``: a panel for each contrast and scale, a row for each target rule, fill and level."""
    rows = list(dict.fromkeys(cells[["target_rule", "fill", "level"]].itertuples(index=False, name=None)))
    contrasts = [c for c in ("TP-FP", "correct-wrong") if c in set(cells["contrast_of"])]
    panels = [(s, c) for s in ("prob", "logodds") for c in contrasts]
    figure = Figure(figsize=(WIDTH, 1.9 + 0.21 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (scale, contrast) in zip(axes, panels, strict=True):
        _rows_axis(ax, [f"{rule}, {fill}, {level:g}" for rule, fill, level in rows], [r[:2] for r in rows])
        part = cells[(cells["scale"] == scale) & (cells["contrast_of"] == contrast)]
        for r in rows_of(part):
            y = rows.index((r.target_rule, r.fill, r.level)) + (0.18 if r.matched else -0.18)
            colour = COLOURS[0] if r.sign > 0 else COLOURS[1] if r.sign < 0 else "0.5"
            _point(ax, y, (r.mean, r.lower, r.upper), colour, "s" if r.matched else "o", hollow=bool(r.matched))
        _zero(ax)
        first, second = contrast.split("-")
        ax.set_title(f"{first} minus {second}", fontsize=9)
        ax.set_xlabel(f"{SCALES[scale]}\n\N{LEFTWARDS ARROW} {second} falls further\n{first} falls further "
                      "\N{RIGHTWARDS ARROW}", fontsize=8)  # fmt: skip
        reach = 1.05 * max(abs(v) for v in ax.get_xlim())
        ax.set_xlim(-reach, reach)  # 0 in the middle: neither side looks longer than it is
    for marker, colour, name in (("o", "0.2", "all images"), ("s", "0.2", "matched on log-odds"),
                                 ("o", COLOURS[0], "interval above 0"), ("o", COLOURS[1], "below 0"),
                                 ("o", "0.5", "holds 0"), ("x", "0.5", "no interval"),
                                 ("+", "0.5", "the same, matched")):  # fmt: skip
        axes[0].plot([], [], marker, color=colour, mfc="white" if marker == "s" else colour, label=name)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def regions(means: pd.DataFrame, title: str) -> Figure:
    """``findings.region_means``: a panel a region, a row a fill and bucket, the effect beside its matched control's."""
    names = list(dict.fromkeys(means["region"]))
    columns = min(3, len(names))
    counts = [means[means["region"] == n].shape[0] for n in names]
    heights = [max(counts[i : i + columns]) for i in range(0, len(names), columns)]
    figure = Figure(figsize=(WIDTH, 1.2 + sum(0.7 + 0.2 * h for h in heights)), layout="constrained")
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=[3 + h for h in heights], sharex=True)
    for i, ax in enumerate(axes.flat):
        if i >= len(names):
            ax.set_axis_off()
            continue
        part = means[means["region"] == names[i]].reset_index(drop=True)
        _rows_axis(ax, [f"{r.fill}, {r.bucket}, n = {r.n}" for r in part.itertuples()], list(part["fill"]))
        for y, r in part.iterrows():
            for what, colour, marker in (("effect", COLOURS[0], "o"), ("matched", COLOURS[1], "D")):
                bounds = [r[f"{what}_logodds{end}"] for end in ("", "_lower", "_upper")]
                _point(ax, float(str(y)) + (-0.15 if what == "effect" else 0.2), bounds, colour, marker,
                       hollow=what == "matched")  # fmt: skip
        _zero(ax)
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("fall of the log-odds of the target", fontsize=8)
        ax.set_title(f"{names[i]} ({part['share_of_area'].mean():.0%} of the image)", fontsize=9)
    for marker, colour, name in (("o", COLOURS[0], "the region"), ("D", COLOURS[1], "its matched control")):
        axes.flat[0].plot([], [], marker, color=colour, mfc="white" if marker == "D" else colour, label=name)
    axes.flat[0].plot([], [], "x", color="0.5", label="no interval: under 20 patients (+ of the control)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def truth(points: pd.DataFrame, agreement: pd.DataFrame, title: str) -> Figure:
    """``findings.truth``: the region's effect against the causal one, a panel for each region and fill."""
    panels = list(agreement.itertuples())
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i >= len(panels):
            ax.set_axis_off()
            continue
        p = panels[i]
        at = (points["region"] == p.region) & (points["truth_of"] == p.truth_of) & (points["fill"] == p.fill)
        for (outcome, marker), colour in zip(OUTCOMES.items(), COLOURS, strict=False):
            part = points[at & (points["outcome"] == outcome)]
            ax.plot(part["causal"], part["effect"], marker, ms=3.5, color=colour, mfc="none", label=outcome)
        ax.axhline(0, color="0.3", lw=0.8)
        _zero(ax)
        ax.set_title(
            f"{p.region}, fill {p.fill}\nSpearman {p.rho:.2f}, same sign {p.same_sign:.0%}, n = {p.n}", fontsize=8
        )
        drawn = "with the other glyph" if p.truth_of == "glyph" else f"without its {p.truth_of}"
        ax.set_xlabel(f"truth: drawn again {drawn}", fontsize=8)
        ax.set_ylabel("tool: the region filled or exchanged", fontsize=8)
        ax.tick_params(labelsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def sanity(means: pd.DataFrame, layers: Sequence[str], explainers: Sequence[str], title: str) -> Figure:
    """``findings.sanity_means``, mode cascade: similarity to the model's own map and gap, layer by layer."""
    cascade = means[means["mode"] == "cascade"]
    layers = [x for x in layers if x in set(cascade["layer"])]
    shown = [e for e in explainers if e in set(cascade["explainer"])]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    against = "".join(f" to {c}" for c in cascade["control"].dropna().unique())
    labels = {"spearman": "Spearman", "ssim": "SSIM", "gap": f"gap{against}, log-odds (above 0: faithful)"}
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        for i, explainer in enumerate(shown):
            part = (
                cascade[cascade["explainer"] == explainer].drop_duplicates("layer").set_index("layer").reindex(layers)
            )
            start = {"gap": part["own_gap"].iloc[0], "gap_lower": part["own_gap_lower"].iloc[0],
                     "gap_upper": part["own_gap_upper"].iloc[0]} if measure == "gap" else {measure: 1.0}  # fmt: skip
            y, low, high = (
                np.array([start.get(f"{measure}{end}", np.nan), *part[f"{measure}{end}"].astype(float)])
                for end in ("", "_lower", "_upper")
            )
            x = np.arange(len(y)) + 0.12 * (i - (len(shown) - 1) / 2)
            error = None if np.isnan(low).all() else np.nan_to_num(np.stack([y - low, high - y]))
            ax.errorbar(x, y, error, fmt="osD^vp*"[i % 7] + "-", ms=4, lw=1.2, color=COLOURS[i % 7], label=explainer)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.set_xticks(range(len(layers) + 1), ["none", *(f"+ {x}" if i else x for i, x in enumerate(layers))])
        ax.set_xlabel("randomised, from the head down", fontsize=8)
        ax.set_ylabel(label, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(axis="y", color="0.93")
        if measure != "gap":
            ax.set_ylim(min(-0.1, ax.get_ylim()[0]), 1.05)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def accuracy(models: pd.DataFrame, words: Callable[[str], str], title: str) -> Figure:
    """``agreement.accuracy_and_gaps``: a panel an explainer, a point a model."""
    explainers = list(dict.fromkeys(models["explainer"]))
    variants = list(dict.fromkeys(models["variant"]))
    columns = min(3, len(explainers))
    rows = -(-len(explainers) // columns)
    figure = Figure(figsize=(WIDTH, 1.0 + 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(axes.flat):
        if i >= len(explainers):
            ax.set_axis_off()
            continue
        part = models[models["explainer"] == explainers[i]]
        for r in part.itertuples():
            at = variants.index(r.variant)
            known = not pd.isna(r.gap_lower) and not pd.isna(r.accuracy_lower)
            if known:
                ax.plot([r.accuracy_lower, r.accuracy_upper], [r.gap, r.gap], color=COLOURS[at % 7], lw=0.8, alpha=0.6)
                ax.plot([r.accuracy] * 2, [r.gap_lower, r.gap_upper], color=COLOURS[at % 7], lw=0.8, alpha=0.6)
            ax.plot(r.accuracy, r.gap, "osD^vp*"[at % 7], ms=5, color=COLOURS[at % 7], label=r.variant)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.grid(color="0.93")
        ax.tick_params(labelsize=8, labelbottom=True)
        ax.set_title(f"{explainers[i]}, to {part['control'].iloc[0]}\n{words(explainers[i])}", fontsize=8)
        ax.set_xlabel("accuracy on test at 0.5", fontsize=8)
        ax.set_ylabel(f"gap in {part['metric'].iloc[0]}, log-odds", fontsize=8)
    handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def verdicts(rows: Iterable[Mapping[Any, Any]]) -> Figure:
    """Each judged hypothesis on an axis of its own: effect, interval, and the side of its line that would support it.

    ``rows``: of the table, with line (what the interval is judged against) and side (1: above supports, -1: below).
    """
    rows = list(rows)
    figure = Figure(figsize=(WIDTH, 0.2 + 0.85 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, r in zip(axes, rows, strict=True):
        known = [v for v in (r["effect"], r["lower"], r["upper"], r["line"], 0.0) if not pd.isna(v)]
        low, high = min(known), max(known)
        ax.set_xlim(low - 0.15 * (high - low), high + 0.15 * (high - low))
        end = ax.get_xlim()[1 if r["side"] > 0 else 0]
        ax.axvspan(r["line"], end, color="#CFE3F1", lw=0)
        ax.axvline(r["line"], color=COLOURS[0], lw=0.8, ls="--")
        ax.text((r["line"] + end) / 2, 0.5, "supports it", ha="center", va="bottom", fontsize=7, color="0.25")
        _point(ax, -0.1, (r["effect"], r["lower"], r["upper"]), "black")
        _zero(ax)
        ax.set_yticks([-0.1], [f"{r['hypothesis']} ({r['subject']})\n{r['verdict']}"])
        ax.set_ylim(-0.8, 1.1)
        ax.tick_params(labelsize=8)
        ax.set_xlabel(r["unit"], fontsize=8, labelpad=1)
    return figure
