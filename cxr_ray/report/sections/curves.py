"""Deletion and insertion curves, a figure for each explainer and setting."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.report import page
from cxr_ray.report.figures import curves as figures
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import RunData, Setting
from cxr_ray.report.section import Folder, Section, of_models
from cxr_ray.schemas import SHARED

KEYS = ["rule", "outcome", "control", "draw", "grid", "fill", "direction", "level_done"]
SUMS = {"logit_target": "logodds", "prob_target": "prob"}
NUMBERS = ("draw", "level_done", "logodds", "prob", "n")


def section(data: RunData, folder: Folder) -> Section:
    """The primary setting's figures stand on the page, those of others are files."""
    models = of_models(data, folder, of_model)
    return Section("curves", "Curves", models=models, otherwise="There are no curves.", level=3)


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """One figure for each explainer and setting."""
    test = data.test_of(trial_id)
    if test.empty:
        return
    shared = sums(data, trial_id, SHARED, test)
    others: list[Block] = []
    for explainer in data.explainers:
        every = pd.concat([sums(data, trial_id, explainer, test), shared])
        for s in data.settings:
            same = (every["rule"] == s.rule) & (every["grid"] == s.grid) & (every["fill"] == s.fill)
            part = every[same]
            if not data.drawn(trial_id, s) or not (part["control"] == "none").any():
                continue
            block = figure(data, folder, trial_id, explainer, s, part)
            if s == data.first:
                yield block
            else:
                others.append(block)
    if others:
        yield page.text("Other settings, in log-odds, as files in the run's folder:")
        yield from others


def sums(data: RunData, trial_id: str, explainer: str, test: pd.DataFrame) -> pd.DataFrame:
    """Sums over images of each curve, batch by batch, so that memory does not grow with the table."""
    ids, outcome, predicted = (pa.array(test[c]) for c in ("image_id", "outcome", "predicted"))
    chosen = (pc.field("trial_id") == trial_id) & (pc.field("explainer") == explainer)
    total = pd.DataFrame({c: pd.Series(dtype=float if c in NUMBERS else object) for c in [*KEYS, *SUMS.values(), "n"]})
    batches = data.run.batches(
        "curves",
        columns=["image_id", "target", *KEYS[2:], *SUMS],
        filter=chosen,
        batch_readahead=1,
        fragment_readahead=1,
    )
    for batch in batches:
        place = pc.index_in(batch["image_id"], value_set=ids)
        table = pa.Table.from_batches([batch]).append_column("outcome", outcome.take(place))
        parts = [total]
        for rule in data.rules:
            wanted = pa.scalar(1) if rule == "pneumonia" else predicted.take(place)
            rows = table.filter(pc.equal(batch["target"].cast(pa.int64()), wanted))
            rows = rows.append_column("rule", pa.array([rule] * len(rows), pa.string()))
            grouped = rows.group_by(KEYS).aggregate([*((c, "sum") for c in SUMS), ("logit_target", "count")])
            names = {f"{c}_sum": new for c, new in SUMS.items()} | {"logit_target_count": "n"}
            parts.append(grouped.to_pandas().rename(columns=names))
        total = pd.concat([p for p in parts if len(p)] or parts[:1])
        total = total.groupby(KEYS, as_index=False)[[*SUMS.values(), "n"]].sum()
    return total


def figure(data: RunData, folder: Folder, trial_id: str, explainer: str, s: Setting, part: pd.DataFrame) -> Block:
    """One explainer's curves in one setting: the map's mean and the controls'."""
    counts = figures.images(part)
    caption = (
        f"{explainer}, model {data.name(trial_id)}; {s}; levels {', '.join(f'{x:g}' for x in data.levels)} and the "
        "ends 0 and 1. "
        "Line: mean over images of the map's curve. Band: smallest to largest draw of a control, each a mean over "
        "images (how far draws differ, not an interval over patients). Deletion (MoRF): a curve below the control's is "
        "more faithful. Insertion (LeRF reversed): a curve above is."
    )
    if lacking := [bucket for bucket in figures.BUCKETS if bucket not in figures.shown_buckets(part)]:
        caption += f" No image is {' or '.join(lacking)}."
    if max(counts.values()) > counts["none"]:
        caption += (
            " Images without a finite map are missing from the map's line, but not from every control's; the table "
            "above counts them as null."
        )
    return folder.picture(
        figures.curves(
            part,
            data.controls,
            f"{data.name(trial_id)}, {explainer}: mean over images\n{s}",
            SCALES if s == data.first else ["logodds"],
        ),
        f"curves-{trial_id}-{explainer}-{s.slug}.svg",
        f"Deletion and insertion curves of {explainer}, model {data.name(trial_id)}; {s}",
        caption,
        inline=s == data.first,
    )
