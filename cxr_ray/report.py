"""Draws a run: ``python -m cxr_ray.report results/x`` turns its tables into figures and one HTML page, report.html.

The page opens offline: figures stand inside it, and also as files in figures/ and galleries/. Everything is read from
the tables; only the galleries need the images. Nothing on the page is chosen by how good it looks: images by a seeded
hash, the models' order by val_auroc.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cxr_ray import data, images, results
from cxr_ray.config import Data
from cxr_ray.schemas import CLASSES, SHARED
from cxr_ray.summary import AREAS, VALID_SHARE
from cxr_ray.tables import Store

BUCKETS = ("all", "TP", "FP", "TN", "FN")
WHOLE_MODELS = 6  # models shown with everything; of the others the primary table stands on the page
GALLERY = 12  # images in one gallery
GALLERY_LEVEL = 0.25  # the drop under a map is that at the nearest level
SCALES = {"logodds": "log-odds", "prob": "probability"}
ORDERS = {"morf": "Deletion", "lerf": "Insertion"}
STRONGEST = ("other_image", "mean_map", "shifted", "smooth_random", "cell_random", "pixel_random")
RIGHT = "right: the map is more faithful than the control"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")  # Okabe & Ito

Table = dict[str, Any]  # caption, head, rows of cells; a cell is a text or {"text", "sub", "strong"}


def write_report(out: str, data_path: str | None = None) -> None:
    """Writes report.html, figures/ and galleries/ into the run folder ``out``, local or a URI.

    Args:
        out: the run's folder.
        data_path: where the images lie now, if not where the sweep says.

    Raises:
        NotARun: there is no run in ``out``, or one without its tables.
    """
    report = _Report(results.open_run(out), data_path)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string(files("cxr_ray").joinpath("report.html.j2").read_text("utf-8"))
    Store(out, {}).write(template.render(report.context()).encode(), "report.html")


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign; one digit and a power of ten where it would round to 0; en dash for none."""
    if pd.isna(value):
        return "–"
    value, plus = float(value), "+" if sign and value else ""
    text = f"{value:{plus}.{digits}f}"
    return (text if float(text) or not value else f"{value:{plus}.0e}").replace("-", "−")


def interval(value: Any, lower: Any, upper: Any, *, sign: bool = False) -> str:
    """value [lower, upper]; the value alone where there is no interval."""
    text = number(value, sign=sign)
    return (
        text if pd.isna(lower) or pd.isna(value) else f"{text} [{number(lower, sign=sign)}, {number(upper, sign=sign)}]"
    )


def p_text(p: Any) -> str:
    """A p-value to three digits, never 0."""
    return "–" if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True)
class Setting:
    """What a number was measured with."""

    rule: str
    grid: str
    fill: str

    def __str__(self) -> str:
        return f"grid {self.grid}, fill {self.fill}, target rule {self.rule}"

    @property
    def slug(self) -> str:
        """For file names."""
        return f"{self.rule}-{self.grid}-{self.fill}"


class _Report:
    """The parts of the page, each from the columns that it needs."""

    def __init__(self, run: results.Run, data_path: str | None):
        self.run, self.sweep, self.store = run, run.sweep, Store(run.path, {})
        self.data_path = data_path
        self.pixels: dict[str, NDArray[np.uint8] | None] = {}  # images read so far; None: could not be read
        self.predictions = run.pandas("predictions", ["trial_id", "image_id", "split", "label", "prob_pneumonia",
                                                      "logit_pneumonia", "predicted", "outcome"])  # fmt: skip
        self.test = self.predictions[self.predictions["split"] == "test"]
        every = run.pandas("trials")
        self.trials = every.sort_values("val_auroc", ascending=False, kind="stable", na_position="last")
        explained = set(self.predictions["trial_id"])
        self.models = [t for t in self.trials["trial_id"] if t in explained]
        perturb = self.sweep["perturb"]
        self.explainers: list[str] = self.sweep["explain"]["explainers"]
        self.settings = [
            Setting(*s) for s in itertools.product(self.sweep["explain"]["targets"], perturb["grids"], perturb["fills"])
        ]
        self.primary = (
            "abpc"
            if len(perturb["orders"]) == 2
            else "deletion_auc"
            if "morf" in perturb["orders"]
            else "insertion_auc"
        )
        columns = ["trial_id", "explainer", "target_rule", "grid", "fill", "metric", "level", "scale", "control",
                   "bucket", "n", "n_patients", "n_null", "n_degenerate", "draws", "mean", "lower", "upper", "p_holm",
                   "effect", "n_boot"]  # fmt: skip
        summary = run.pandas("summary", columns, ~pc.field("contrast") & pc.field("bucket").isin(BUCKETS))
        summary["bucket"] = pd.Categorical(summary["bucket"], BUCKETS, ordered=True)
        summary["explainer"] = pd.Categorical(summary["explainer"], self.explainers, ordered=True)
        self.summary = summary.sort_values(["explainer", "bucket", "level"], kind="stable")
        self.controls = sorted(set(summary["control"]) - {"none"}, key=_strength)

    def context(self) -> dict[str, Any]:
        """What the template shows."""
        models = []
        for i, trial_id in enumerate(self.models):
            whole = i < WHOLE_MODELS
            models.append({
                "trial_id": trial_id, "whole": whole, "settings": self.gaps(trial_id, whole),
                "curves": list(self.curves(trial_id, whole)), "galleries": self.galleries(trial_id, i == 0),
            })  # fmt: skip
        try:
            provenance = self.run.json("provenance.json")
        except (OSError, results.NotARun):
            provenance = {}
        levels = ", ".join(f"{level:g}" for level in sorted(self.sweep["perturb"]["levels"]))
        return {
            "sweep": self.sweep, "provenance": provenance, "models": models, "primary": self.primary, "levels": levels,
            "classification": self.classification(), "trials": self.trial_table(), "twins": self.twins(),
            "maps": self.map_table(), "errors": self.error_table(), "gallery_note": self.gallery_note,
            "controls": {c: self.sweep["controls"].get(c) for c in self.controls}, "first": self.settings[0],
            "whole_models": WHOLE_MODELS, "valid_share": f"{VALID_SHARE:.0%}",
            "n_boot": int(self.summary["n_boot"].max()) if len(self.summary) else None,
        }  # fmt: skip

    # Models

    def classification(self) -> Table:
        """Figures on test at each threshold; the counts follow from sensitivity, specificity and the labels."""
        table = self.run.pandas("classification")
        labels = self.test.groupby("trial_id")["label"].agg(["sum", "count"])
        rows = []
        for r in _in_order(table[table["split"] == "test"], "trial_id", self.models):
            positive, count = labels.loc[r.trial_id] if r.trial_id in labels.index else (np.nan, np.nan)
            true_positive, true_negative = r.sensitivity * positive, r.specificity * (count - positive)
            rows.append([
                r.trial_id, f"{r.threshold_rule}: {number(r.threshold)}",
                *(interval(getattr(r, m), getattr(r, f"{m}_lower"), getattr(r, f"{m}_upper"))
                  for m in ("accuracy", "auroc", "sensitivity", "specificity")),
                str(r.n), str(r.n_patients),
                *(number(c, 0) for c in (true_positive, count - positive - true_negative, true_negative,
                                         positive - true_positive)),
            ])  # fmt: skip
        head = ["model", "threshold rule: threshold", "accuracy", "AUROC", "sensitivity", "specificity", "images",
                "patients", "TP", "FP", "TN", "FN"]  # fmt: skip
        return _table(
            "Classification of the test split; [ ]: 95% interval, percentile bootstrap over patients.", head, rows
        )

    def trial_table(self) -> Table:
        """Every trial, also those that failed, with what differs between their configurations."""
        configs = [_flat(json.loads(c if isinstance(c, str) else "{}")) for c in self.trials["config"]]
        keys = [k for k in dict.fromkeys(itertools.chain(*configs)) if len({str(c.get(k)) for c in configs}) > 1]
        rows = []
        for r, config in zip(self.trials.itertuples(), configs, strict=True):
            seed, epochs = (number(v, 0) for v in (r.seed, r.epochs))
            status = str(r.status) + (f": {r.error}" if isinstance(r.error, str) else "")
            sampled = (config.get(k) for k in keys if k != "train.seed")
            rows.append([r.trial_id, r.variant, seed, {"text": status, "wrap": True}, epochs, number(r.best_epoch, 0),
                         number(r.val_auroc), "yes" if r.trial_id in self.models else "no",
                         *("–" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)
                           for v in sampled)])  # fmt: skip
        head = ["trial", "variant", "seed", "status", "epochs", "best epoch", "val_auroc", "explained"]
        caption = (
            "Trials, best val_auroc (on the validation split) first; the last columns are what differs between them."
        )
        return _table(caption, head + [k for k in keys if k != "train.seed"], rows)

    def twins(self) -> list[list[str]]:
        """Models that give every test image the same log-odds: one model under several names."""
        groups: dict[bytes, list[str]] = {}
        for trial_id in self.models:
            mine = self.test[self.test["trial_id"] == trial_id].sort_values("image_id")
            if len(mine):
                groups.setdefault(mine["logit_pneumonia"].to_numpy().tobytes(), []).append(trial_id)
        return [names for names in groups.values() if len(names) > 1]

    # Gaps

    def gaps(self, trial_id: str, whole: bool) -> list[dict[str, Any]]:
        """For each setting the forest plot and tables of gaps, the primary one first."""
        mine, found = self.summary[self.summary["trial_id"] == trial_id], []
        valid = self.valid_baselines(trial_id) if whole else None
        for i, s in enumerate(self.settings if whole else self.settings[:1]):
            part = mine[(mine["target_rule"] == s.rule) & (mine["grid"] == s.grid) & (mine["fill"] == s.fill)]
            if part.empty:
                continue
            forest = self.forest(trial_id, s, part, i == 0 and whole)
            area = {scale: self.gap_table(trial_id, s, part, self.primary, scale) for scale in SCALES}
            drop = {scale: self.gap_table(trial_id, s, part, "drop", scale) for scale in SCALES if whole}
            found.append({
                "setting": str(s), "forest": forest, "area": area["logodds"],
                "more": [t for t in (area["prob"], *drop.values()) if t["rows"]] if whole else [],
                "absolute": [self.absolute_table(trial_id, s, part, x, valid) for x in SCALES if valid is not None],
            })  # fmt: skip
        return found

    def gap_table(self, trial_id: str, s: Setting, part: pd.DataFrame, metric: str, scale: str) -> Table:
        """Gaps to each control, one row an explainer and bucket (and level, for drops)."""
        part = part[(part["metric"] == metric) & (part["scale"] == scale)]
        leveled = metric == "drop"
        draws = {c: int(d) for c, d in part.groupby("control")["draws"].max().items()}
        controls = [c for c in self.controls if c in draws]
        by = ["explainer", "bucket", *(["level"] if leveled else [])]
        rows = []
        for _, group in part.groupby(by, sort=False, observed=True):
            one, cells = group.iloc[0], {r.control: r for r in group.itertuples()}
            counted = [r for c, r in cells.items() if c != "none"] or list(cells.values())
            row: list[Any] = [one["explainer"], one["bucket"], *([f"{one['level']:g}"] if leveled else [])]
            row += [f"{counted[0].n} ({counted[0].n_patients})"]
            if leveled:
                row.append(_value(cells["none"]) if "none" in cells else "–")
            rows.append(row + [_gap(cells[c]) if c in cells else "–" for c in controls])
        level = "each level, share of units perturbed" if leveled else "none (area over all levels)"
        caption = (
            f"Gap in {metric}, {SCALES[scale]} of the target; model {trial_id}; {s}; level: {level}. Above 0: the map "
            "is more faithful than the control."
        )
        head = ["explainer", "bucket", *(["level"] if leveled else []), "images (patients)"]
        head += [f"drop of the map itself, {SCALES[scale]}"] if leveled else []
        return _table(caption, head + [f"gap to {c} ({_draws(draws[c])})" for c in controls], rows)

    def absolute_table(self, trial_id: str, s: Setting, part: pd.DataFrame, scale: str, valid: pd.DataFrame) -> Table:
        """Areas of the map itself, or why they are not shown."""
        part = part[(part["control"] == "none") & (part["scale"] == scale)]
        metrics = [m for m in AREAS if m in set(part["metric"])]
        rows = []
        for (explainer, bucket), group in part.groupby(["explainer", "bucket"], sort=False, observed=True):
            cells = {r.metric: r for r in group.itertuples()}
            count, known = _valid(valid, s, str(explainer), str(bucket), self.test[self.test["trial_id"] == trial_id])
            if count < VALID_SHARE * known:
                shown: list[Any] = [f"not shown: valid baseline for {count} of {known}"] * len(metrics)
            else:
                shown = [_value(cells[m], sign=m == "abpc") for m in metrics]
            first = cells[metrics[0]]
            rows.append([explainer, bucket, f"{first.n} ({first.n_patients})", f"{count} of {known}", *shown])
        caption = (
            f"Areas of the map itself, control none, {SCALES[scale]} of the target; model {trial_id}; {s}; level: none "
            "(area over all levels). deletion_auc: lower is more faithful; insertion_auc and abpc: higher."
        )
        return _table(caption, ["explainer", "bucket", "images (patients)", "valid baseline", *metrics], rows)

    def valid_baselines(self, trial_id: str) -> pd.DataFrame:
        """For each (image, target, explainer, grid, fill) with a value, whether its filled image is a baseline."""
        metric = self.primary
        chosen = (pc.field("trial_id") == trial_id) & (pc.field("control") == "none") & (pc.field("metric") == metric)
        columns = ["image_id", "target", "explainer", "grid", "fill", "value", "baseline_valid"]
        frame = self.run.pandas("faithfulness", columns, chosen & (pc.field("scale") == "logodds"))
        return frame[frame["value"].notna()]

    def forest(self, trial_id: str, s: Setting, part: pd.DataFrame, inline: bool) -> dict[str, Any] | None:
        """Gaps in the primary metric, in log-odds, one panel a control on one axis; None without controls."""
        part = part[(part["metric"] == self.primary) & (part["scale"] == "logodds")]
        controls = [c for c in self.controls if c in set(part["control"])]
        if not controls:
            return None
        keys = [(str(r.explainer), str(r.bucket)) for r in part.drop_duplicates(["explainer", "bucket"]).itertuples()]
        figure = Figure(figsize=(2.2 + 2.9 * len(controls), 1.9 + 0.23 * len(keys)), layout="constrained")
        axes = figure.subplots(1, len(controls), sharex=True, sharey=True, squeeze=False)[0]
        for ax, control in zip(axes, controls, strict=True):
            for r in part[part["control"] == control].itertuples():
                y, colour = keys.index((r.explainer, r.bucket)), COLOURS[self.explainers.index(r.explainer) % 7]
                known = not pd.isna(r.lower)
                if known:
                    ax.plot([r.lower, r.upper], [y, y], color=colour, lw=1.6, solid_capstyle="butt")
                ax.plot(r.mean, y, "o", ms=5, color=colour, mfc=colour if known else "white")
            ax.axvline(0, color="0.3", lw=0.8)
            for y in range(1, len(keys)):
                if keys[y][0] != keys[y - 1][0]:
                    ax.axhline(y - 0.5, color="0.85", lw=0.8)
            draws = int(part.loc[part["control"] == control, "draws"].max())
            ax.set_title(f"against {control} ({_draws(draws)})", fontsize=9)
            ax.tick_params(labelsize=8)
            ax.grid(axis="x", color="0.93")
        n: dict[Any, Any] = {(str(r.explainer), str(r.bucket)): r.n for r in part.itertuples()}
        axes[0].set_yticks(range(len(keys)), [f"{'  '.join(key)}, n = {n[key]}" for key in keys])
        axes[0].set_ylim(len(keys) - 0.5, -0.5)
        figure.supxlabel(f"gap in {self.primary}, log-odds of the target ({RIGHT})", fontsize=9)
        figure.suptitle(f"{trial_id}: mean gap, 95% interval over patients\n{s}", fontsize=10)
        return self.picture(
            figure, inline, "figures", f"gaps-{trial_id}-{s.slug}.png",
            f"Mean gap in {self.primary} (log-odds of the target; level: none, an area) to each control, with its 95% "
            f"interval, for model {trial_id}; {s}. Hollow points: under 20 patients, no interval.",
        )  # fmt: skip

    # Curves

    def curves(self, trial_id: str, whole: bool) -> Iterator[dict[str, Any]]:
        """A figure for each explainer and setting; the first setting's stand on the page."""
        test = self.test[self.test["trial_id"] == trial_id]
        shared = self.curve_means(trial_id, SHARED, test) if whole and len(test) else None
        for explainer in self.explainers if shared is not None else []:
            means = pd.concat([self.curve_means(trial_id, explainer, test), shared])
            for i, s in enumerate(self.settings):
                part = means[(means["rule"] == s.rule) & (means["grid"] == s.grid) & (means["fill"] == s.fill)]
                if (part["control"] == "none").any():
                    yield self.curve_figure(trial_id, explainer, s, part, i == 0)

    def curve_means(self, trial_id: str, explainer: str, test: pd.DataFrame) -> pd.DataFrame:
        """Sums over images of each curve, batch by batch, so that memory does not grow with the table."""
        keys = ["rule", "outcome", "control", "draw", "grid", "fill", "order", "level_done"]
        sums = {"logit_target": "logodds", "prob_target": "prob"}
        ids, outcome, predicted = (pa.array(test[c]) for c in ("image_id", "outcome", "predicted"))
        chosen = (pc.field("trial_id") == trial_id) & (pc.field("explainer") == explainer)
        rules = self.sweep["explain"]["targets"]
        total = pa.table(
            {
                **{k: pa.array([], pa.string()) for k in keys},
                **{k: pa.array([], pa.float64()) for k in ("draw", "level_done", "logodds", "prob", "n")},
            }
        ).to_pandas()
        for batch in self.run.dataset("curves").to_batches(
            columns=["image_id", "target", *keys[2:], *sums], filter=chosen, batch_readahead=1, fragment_readahead=1
        ):
            at = pc.index_in(batch["image_id"], value_set=ids)
            table = pa.Table.from_batches([batch]).append_column("outcome", outcome.take(at))
            parts = [total]
            for rule in rules:
                wanted = pa.scalar(1) if rule == "pneumonia" else predicted.take(at)
                rows = table.filter(pc.equal(batch["target"].cast(pa.int64()), wanted))
                rows = rows.append_column("rule", pa.array([rule] * len(rows), pa.string()))
                grouped = rows.group_by(keys).aggregate([*((c, "sum") for c in sums), ("logit_target", "count")])
                names = {f"{c}_sum": new for c, new in sums.items()} | {"logit_target_count": "n"}
                parts.append(grouped.to_pandas().rename(columns=names))
            total = pd.concat([p for p in parts if len(p)] or parts[:1])
            total = total.groupby(keys, as_index=False)[["logodds", "prob", "n"]].sum()
        return total

    def curve_figure(
        self, trial_id: str, explainer: str, s: Setting, part: pd.DataFrame, inline: bool
    ) -> dict[str, Any]:
        """Rows: each order in log-odds and probability; columns: all, TP, FP."""
        orders, buckets = [o for o in ORDERS if o in set(part["order"])], BUCKETS[:3]
        panels = list(itertools.product(orders, SCALES))
        height = 1.2 + 2.2 * len(panels)
        figure = Figure(figsize=(9.6, height))
        axes = figure.subplots(len(panels), len(buckets), sharey="row", squeeze=False)
        top, bottom = 1 - 0.8 / height, 0.85 / height
        figure.subplots_adjust(left=0.09, right=0.99, top=top, bottom=bottom, wspace=0.08, hspace=0.5)
        for row, (order, scale) in enumerate(panels):
            for ax, bucket in zip(axes[row], buckets, strict=True):
                of_bucket = part[(part["order"] == order) & ((part["outcome"] == bucket) | (bucket == "all"))]
                self._curve_panel(ax, of_bucket, order, scale)
                n = _images(of_bucket).get("none", 0)
                ax.set_title(f"{ORDERS[order]}, {bucket}, n = {n}", fontsize=9)
                ax.tick_params(labelsize=8, labelbottom=scale == "prob")
                if scale == "prob":
                    ax.set_xlabel("share of units " + ("filled" if order == "morf" else "restored"), fontsize=8)
            better = "lower" if order == "morf" else "higher"
            axes[row][0].set_ylabel(f"{SCALES[scale]} of the target\n({better}: more faithful)", fontsize=8)
        handles = {t.get_label(): t for ax in axes.flat for t in ax.get_lines()}
        handles = {k: handles[k] for k in ["map", *self.controls] if k in handles}
        figure.legend(
            handles.values(), handles.keys(), loc="lower center", ncols=len(handles), fontsize=8, frameon=False
        )
        figure.suptitle(f"{trial_id}, {explainer}: mean over images\n{s}", fontsize=10)
        counts = _images(part)
        lost = max(counts.values()) - counts["none"]
        note = f" {lost} images without a finite map are missing from the map's line, but not from every control's."
        levels = ", ".join(f"{x:g}" for x in sorted(self.sweep["perturb"]["levels"]))
        caption = (
            f"{explainer}, model {trial_id}; {s}; levels {levels} and the ends 0 and 1. Line: mean over images of the "
            "map's curve. Band: smallest to largest draw of a control, each a mean over images (how far draws differ, "
            "not an interval over patients). Deletion: a curve below the control's is more faithful; insertion: above."
        )
        name = f"curves-{trial_id}-{explainer}-{s.slug}.png"
        return self.picture(figure, inline, "figures", name, caption + (note if lost else ""))

    def _curve_panel(self, ax: Axes, part: pd.DataFrame, order: str, scale: str) -> None:
        sums = part.groupby(["control", "draw", "level_done"], as_index=False)[[scale, "n"]].sum()
        sums = sums[sums["n"] > 0]
        sums["mean"] = sums[scale] / sums["n"]
        for control, of_control in sums.groupby("control"):
            x = of_control["level_done"] if order == "morf" else 1 - of_control["level_done"]
            spread = of_control.groupby(x)["mean"].agg(["min", "max", "mean"])
            if control == "none":
                ax.plot(spread.index, spread["mean"], "o-", color="black", ms=3, lw=1.5, label="map", zorder=5)
                continue
            colour = COLOURS[self.controls.index(control) % 7]
            ax.fill_between(spread.index, spread["min"], spread["max"], color=colour, alpha=0.3, lw=0)
            ax.plot(spread.index, spread["mean"], color=colour, lw=1, label=control)
        if sums.empty:
            ax.text(0.5, 0.5, "no images", transform=ax.transAxes, ha="center", va="center", color="0.4", fontsize=8)
        ax.set_xlim(-0.02, 1.02)
        ax.grid(color="0.93")

    # Galleries

    @cached_property
    def source(self) -> tuple[data.Source | None, str, str]:
        """Where images are read, what was tried in words, and why it failed."""
        settings = Data.model_validate(self.sweep["data"])
        if self.data_path is not None:
            settings = settings.model_copy(update={"source": "folder", "path": self.data_path})
        try:
            source = data.source_of(settings, self.sweep["seed"])
        except data.DataMistake as e:
            return None, f"{settings.source}:{settings.path}", str(e)
        return source, source.where, ""

    @cached_property
    def paths(self) -> dict[str, str]:
        """image_id to path, test split."""
        table = self.run.pandas("images", ["image_id", "path"], pc.field("split") == "test")
        return dict(zip(table["image_id"], table["path"], strict=True))

    def image(self, image_id: str) -> NDArray[np.uint8] | None:
        """Grey pixels as the model sees them, at most 224 wide."""
        if image_id not in self.pixels:
            settings = self.sweep["data"]
            try:
                source = self.source[0]
                raw = source.read(self.paths[image_id]) if source is not None else b""
                self.pixels[image_id] = (
                    images.decode(raw, min(settings["size"], 224), settings["fit"]).mean(0).astype("uint8")
                )
            except (OSError, images.BadImage):
                self.pixels[image_id] = None
        return self.pixels[image_id]

    @property
    def gallery_note(self) -> str | None:
        """Why there is no gallery, or which images are missing from it; asked after the galleries are drawn."""
        if not self.sweep["explain"]["keep_maps"]:
            return "There is no gallery: the run kept no maps (explain.keep_maps: false)."
        lost = sum(p is None for p in self.pixels.values())
        if not lost:
            return None
        _, where, reason = self.source
        tried = f"read from {where}" + (f" ({reason})" if reason else "")
        if lost < len(self.pixels):
            return f"{lost} of the gallery's {len(self.pixels)} images could not be {tried}."
        return (
            f"There is no gallery: none of its {lost} images could be {tried}. If they lie elsewhere now: "
            f"python -m cxr_ray.report {self.run.path} --data PATH."
        )

    def galleries(self, trial_id: str, inline: bool) -> list[dict[str, Any]]:
        """TP, FP and random images, by a seeded hash, with every explainer's map."""
        if not self.sweep["explain"]["keep_maps"]:
            return []
        test, found = self.test[self.test["trial_id"] == trial_id].set_index("image_id"), []
        for bucket in ("TP", "FP", "random"):
            members = test.index[test["outcome"] == bucket] if bucket != "random" else test.index
            chosen = _chosen(self.sweep["seed"], bucket, members)
            readable = [self.image(i) is not None for i in chosen]
            if any(readable):
                found.append(self.gallery(trial_id, bucket, test.loc[chosen], len(members), inline))
        return found

    def gallery(self, trial_id: str, bucket: str, chosen: pd.DataFrame, members: int, inline: bool) -> dict[str, Any]:
        """One sheet: a row an image, the X-ray first, then each explainer's map over it."""
        s, level = self.settings[0], min(self.sweep["perturb"]["levels"], key=lambda x: abs(x - GALLERY_LEVEL))
        control = self.controls[0] if self.controls else "none"
        of_chosen = (pc.field("trial_id") == trial_id) & pc.field("image_id").isin(list(chosen.index))
        maps = self.run.pandas(
            "saliency", ["image_id", "target", "explainer", "map", "map_height", "map_width"], of_chosen
        )
        by_key = {(r["image_id"], r["target"], r["explainer"]): r for _, r in maps.iterrows()}
        measured = self.run.pandas(
            "faithfulness", ["image_id", "target", "explainer", "metric", "level", "control", "value", "gap"],
            of_chosen & (pc.field("grid") == s.grid) & (pc.field("fill") == s.fill) & (pc.field("scale") == "logodds"),
        )  # fmt: skip
        columns, rows = 1 + len(self.explainers), len(chosen)
        height = 2.3 * rows + 0.9
        figure = Figure(figsize=(2.05 * columns + 0.1, height))
        axes = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.01, right=0.99, top=1 - 0.35 / height, bottom=1.05 / height, wspace=0.06, hspace=0.42
        )
        signed = {e: self._is_signed(maps, e) for e in self.explainers}
        for row, (image_id, r) in zip(axes, chosen.iterrows(), strict=True):
            target = 1 if s.rule == "pneumonia" else int(r["predicted"])
            xray = self.image(str(image_id))
            about = f"P(PNEUMONIA) {r['prob_pneumonia']:.3f}\nlabel {CLASSES[r['label']]}: {r['outcome']}\n{image_id}"
            _panel(row[0], xray, about)
            for ax, explainer in zip(row[1:], self.explainers, strict=True):
                mine = measured[(measured["image_id"] == image_id) & (measured["target"] == target)
                                & (measured["explainer"] == explainer)]  # fmt: skip
                drop = mine[(mine["metric"] == "drop") & (mine["level"] == level) & (mine["control"] == "none")][
                    "value"
                ]
                gap = mine[(mine["metric"] == self.primary) & (mine["control"] == control)]["gap"]
                lines = [f"drop {number(drop.iloc[0], 2, True)}"] if len(drop) else []
                lines += [f"gap {number(gap.iloc[0], 2, True)}"] if len(gap) else []
                key = image_id, target, explainer
                overlay = _overlay(by_key[key], signed[explainer], xray) if key in by_key else None
                _panel(ax, xray, "\n".join(lines), overlay)
        for ax, title in zip(axes[0], ["X-ray", *self.explainers], strict=True):
            ax.set_title(title, fontsize=9)
        _colour_bars(figure, signed, height)
        among = "test images" if bucket == "random" else f"images that are {bucket}"
        caption = (
            f"{bucket}: {len(chosen)} of {members} {among}, model {trial_id}, by a hash of seed and image. Under "
            f"each map, in log-odds of the target: drop: that of the map at level {level:g} (control none); gap: its "
            f"gap in {self.primary} to {control} (level: none, an area). {s}. Each map is scaled by itself, to the "
            "99th percentile of its absolute values (the ends of the colour bar): colours compare places within one "
            "map, never maps with each other."
        )
        return self.picture(figure, inline, "galleries", f"{trial_id}-{bucket}.png", caption)

    @staticmethod
    def _is_signed(maps: pd.DataFrame, explainer: str) -> bool:
        mine = maps.loc[maps["explainer"] == explainer, "map"].dropna()
        return any(np.nanmin(np.asarray(m, float), initial=0.0) < 0 for m in mine)

    # Maps and errors

    def map_table(self) -> Table:
        """What kind of maps there are: constant ones, missing ones, ties, focus."""
        columns = ["trial_id", "explainer", "target", "tied", "degenerate", "focus"]
        frame = self.run.pandas("saliency", columns)
        frame["explainer"] = pd.Categorical(frame["explainer"], self.explainers, ordered=True)
        frame["trial_id"] = pd.Categorical(frame["trial_id"], self.models, ordered=True)
        rows = []
        for (trial_id, explainer, target), part in frame.groupby(["trial_id", "explainer", "target"], observed=True):
            focus = part["focus"].value_counts()
            rows.append([
                trial_id, explainer, CLASSES[int(str(target))], str(len(part)), str(int(part["focus"].isna().sum())),
                str(int(part["degenerate"].sum())), number(part["tied"].median(), 2),
                *(str(int(focus.get(f, 0))) for f in ("localized", "diffuse", "border")),
            ])  # fmt: skip
        head = ["model", "explainer", "target", "maps", "not finite (left out)", "constant (kept)", "median tied share",
                "localized", "diffuse", "border"]  # fmt: skip
        return _table("Maps of the test split: counts, and the focus that the rule gives them.", head, rows)

    def error_table(self) -> Table:
        """Rows of errors by stage and reason."""
        errors = self.run.pandas("errors")
        rows = []
        groups = errors.groupby(["stage", "reason"], dropna=False)
        for (stage, reason), part in sorted(groups, key=lambda g: -len(g[1]))[:50]:
            examples = ", ".join(str(p) for p in part["path"].iloc[:3])
            rows.append(
                [str(stage), {"text": str(reason), "wrap": True}, str(len(part)), {"text": examples, "wrap": True}]
            )
        left = len(groups) - len(rows)
        caption = f"Errors: {len(errors)} rows" + (f"; {left} more reasons stand in the table errors." if left else ".")
        return _table(caption, ["stage", "reason", "rows", "such as"], rows)

    def picture(self, figure: Figure, inline: bool, folder: str, name: str, caption: str) -> dict[str, Any]:
        """Writes the figure as a file, and hands it to the page: inside it, or as a link."""
        figure.set_dpi(110)
        canvas, sink = FigureCanvasAgg(figure), io.BytesIO()
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        if folder == "figures":  # few colours: a palette makes them a third as large
            picture = picture.quantize(128, dither=Image.Dither.NONE)
        picture.save(sink, "PNG")
        self.store.write(sink.getvalue(), folder, name)
        encoded = base64.b64encode(sink.getvalue()).decode() if inline else None
        return {"png": encoded, "file": f"{folder}/{name}", "caption": caption}


# ------------------------------------------------------------------------------------------------------------ helpers


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    return {"caption": caption, "head": list(head), "rows": [list(r) for r in rows]}


def _strength(control: str) -> tuple[int, str]:
    return (STRONGEST.index(control) if control in STRONGEST else -1), control


def _images(sums: pd.DataFrame) -> dict[str, int]:
    """Images behind the means of each control (none: the map)."""
    n = sums.groupby(["control", "draw", "order", "level_done"])["n"].sum()
    return {str(c): int(v) for c, v in n.groupby("control").max().items()}


def _chosen(seed: int, bucket: str, members: Iterable[str]) -> list[str]:
    """At most GALLERY images, by a hash of the seed and the image."""
    return sorted(members, key=lambda i: hashlib.sha256(f"{seed}:{bucket}:{i}".encode()).digest())[:GALLERY]


def _draws(n: int) -> str:
    return f"{n}\u00a0draw" + "s" * (n != 1)


def _gap(r: Any) -> Table | str:
    if pd.isna(r.mean):
        return "–"
    sub = f"p_holm {p_text(r.p_holm)} · effect {number(r.effect, 2)}"
    if r.n_null or r.n_degenerate:
        sub += f" · {r.n_null} null, {r.n_degenerate} constant"
    return {
        "text": interval(r.mean, r.lower, r.upper, sign=True),
        "sub": sub,
        "strong": bool(r.p_holm < 0.05 and r.lower > 0),
    }


def _value(r: Any, sign: bool = True) -> str:
    return interval(r.mean, r.lower, r.upper, sign=sign)


def _valid(valid: pd.DataFrame, s: Setting, explainer: str, bucket: str, test: pd.DataFrame) -> tuple[int, int]:
    """Images of a bucket with a valid baseline, and with any value."""
    members = test if bucket == "all" else test[test["outcome"] == bucket]
    targets = members.set_index("image_id")["predicted"] if s.rule == "predicted" else pd.Series(1, members["image_id"])
    part = valid[(valid["explainer"] == explainer) & (valid["grid"] == s.grid) & (valid["fill"] == s.fill)]
    part = part[part["target"] == part["image_id"].map(targets)]
    return int(part["baseline_valid"].sum()), len(part)


def _in_order(frame: pd.DataFrame, column: str, names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        yield from frame[frame[column] == name].itertuples()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _panel(ax: Axes, xray: NDArray[np.uint8] | None, about: str, overlay: NDArray[Any] | None = None) -> None:
    ax.set(xticks=[], yticks=[])
    if xray is not None:
        ax.imshow(xray, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
    if overlay is not None:
        ax.imshow(overlay, extent=(0, 1, 1, 0))
    ax.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
    ax.set_xlabel(about, fontsize=7, linespacing=1.25, labelpad=2)


def _overlay(r: Any, signed: bool, xray: NDArray[np.uint8] | None) -> NDArray[Any] | None:
    """A map, bilinear to the image's size, as RGBA: the further from zero, the more opaque."""
    if r["map"] is None:
        return None
    values = np.asarray(r["map"], np.float32).reshape(r["map_height"], r["map_width"])
    if not np.isfinite(values).all():
        return None
    side = 224 if xray is None else len(xray)
    full = np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BILINEAR))
    scaled = np.clip(full / (np.quantile(np.abs(full), 0.99) or 1.0), -1, 1)
    rgba = colormaps["RdBu_r"]((scaled + 1) / 2) if signed else colormaps["plasma"](np.abs(scaled))
    rgba[..., 3] = 0.75 * np.abs(scaled)
    return rgba


def _colour_bars(figure: Figure, signed: Mapping[str, bool], height: float) -> None:
    for i, (name, low, kind) in enumerate((("plasma", 0, False), ("RdBu_r", -1, True))):
        of_kind = [e for e, s in signed.items() if s is kind]
        if of_kind:
            ax = figure.add_axes((0.08 + 0.5 * i, 0.42 / height, 0.34, 0.09 / height))
            bar = figure.colorbar(ScalarMappable(Normalize(low, 1), name), cax=ax, orientation="horizontal")
            bar.set_ticks(
                [low, 0, 1] if kind else [0, 1], labels=["against", "0", "for the target"] if kind else ["0", "most"]
            )
            ax.tick_params(labelsize=7)
            ax.set_title(", ".join(of_kind), fontsize=7, pad=3)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 drawn, 1 cannot read or write, 2 the path is wrong."""
    parser = argparse.ArgumentParser(prog="python -m cxr_ray.report", description="Draws a run's report again.")
    parser.add_argument("out", help="the run's folder or URI, as --out named it")
    parser.add_argument("--data", help="the folder of the images, if they lie elsewhere now (galleries only)")
    args = parser.parse_args(argv)
    try:
        write_report(args.out, args.data)
    except (results.NotARun, pa.ArrowInvalid) as e:
        print(f"cxr_ray: {str(e).splitlines()[0]}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"cxr_ray: {args.out}: {str(e).splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"{args.out.rstrip('/')}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
