"""Deletion at one level, as the Grad-CAM findings study did it: the drop of the score by bucket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd
import pyarrow.compute as pc

from cxr_ray.analysis import buckets
from cxr_ray.report import page
from cxr_ray.report.figures import drops
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models

ORDER = ("TP", "FP", "TN", "FN", "all", "correct", "wrong", "TP-FP", "TN-FN", "correct-wrong")
SCALES = ("prob", "logodds")


def section(data: RunData, folder: Folder) -> Section:
    """Figure and table of each model that is shown whole."""
    notes = [
        "The Grad-CAM findings study deleted the 25% of pixels with the highest saliency and compared the fall of the "
        "probability between true and false positives. This is its question with all test images, intervals, log-odds "
        f"and controls, at level {data.primary.level:g}."
    ]
    return Section(
        "deletion",
        f"Deletion at level {data.primary.level:g}, as in the Grad-CAM findings study",
        notes,
        models=of_models(data, folder, of_model),
        otherwise="The run measured no deletion (perturb.orders has no morf).",
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Drop at the primary level, by bucket, of the primary explainer."""
    s, explainer, level = data.first, data.primary.explainer, data.primary.level
    every = s.rows(data.summary)
    same = (every["trial_id"] == trial_id) & (every["explainer"] == explainer)
    rows = every[same & (every["metric"] == "drop") & (every["level"] == level)]
    if rows.empty:
        return
    controls = [c for c in data.controls if c in set(rows["control"])]
    means = _with_controls(rows, controls)
    own = buckets.of_rule(_drops(data, trial_id), data.test_of(trial_id), s.rule)
    of_buckets = means[~means["contrast"] & means["bucket"].isin(buckets.BUCKETS)]
    yield folder.picture(
        drops.deletion(own, of_buckets, controls, f"{data.name(trial_id)}, {explainer}: drop at level {level:g}\n{s}"),
        f"deletion-{trial_id}.svg",
        f"Drop at level {level:g} by bucket, model {data.name(trial_id)}",
        f"Score of the untouched image minus that with the first {page.percent(level)} of cells filled, {explainer}, "
        f"{s}. Right of 0: the score fell. Grey: all single images; black: mean of the map with its 95% interval over "
        "patients (a cross under 20 patients); open marks: mean drop of each control's draws.",
    )
    yield _table(data, trial_id, means, controls[:1])


def _drops(data: RunData, trial_id: str) -> pd.DataFrame:
    """The drop of each image at the primary level."""
    chosen = (
        (pc.field("trial_id") == trial_id)
        & (pc.field("explainer") == data.primary.explainer)
        & (pc.field("grid") == data.first.grid)
        & (pc.field("fill") == data.first.fill)
        & (pc.field("metric") == "drop")
        & (pc.field("level") == data.primary.level)
        & (pc.field("control") == "none")
    )
    return data.run.pandas("faithfulness", ["image_id", "target", "scale", "value"], chosen)


def _with_controls(rows: pd.DataFrame, controls: list[str]) -> pd.DataFrame:
    """The map's own rows, with the mean drop of each control as a column."""
    own = rows[rows["control"] == "none"]
    key = ["bucket", "matched", "scale"]
    for control in controls:
        of_control = rows.loc[rows["control"] == control, [*key, "control_mean"]]
        own = own.merge(of_control.rename(columns={"control_mean": control}), on=key, how="left", suffixes=("_", ""))
    return own


def _table(data: RunData, trial_id: str, means: pd.DataFrame, shown: list[str]) -> Block:
    rows: list[list[Cell]] = []
    for bucket, matched in itertools.product(ORDER, (False, True)):
        part = means[(means["bucket"] == bucket) & (means["matched"] == matched)]
        cells = {r["scale"]: r for r in part.to_dict("records")}
        if len(cells) < len(SCALES):
            continue
        prob = cells["prob"]
        rows.append(
            [
                bucket.replace("-", " minus ") + (", matched on log-odds" if matched else ""),
                f"{page.count(prob['n'])} ({page.count(prob['n_patients'])})",
                *(page.interval(cells[s]["mean"], cells[s]["lower"], cells[s]["upper"], sign=True) for s in SCALES),
                page.NONE if pd.isna(prob["n_negative"]) else f"{page.count(prob['n_negative'])} of {prob['n']}",
                *(page.number(cells[s][c], sign=True) for c in shown for s in SCALES),
            ]
        )
    head = ["bucket", "images (patients)", "drop in probability", "drop in log-odds", "probability rose"]
    head += [f"drop under {c}, {x}" for c in shown for x in ("probability", "log-odds")]
    caption = (
        f"Deletion at level {data.primary.level:g} by {data.primary.explainer}: mean drop of the target's score [95% "
        f"interval]; model {data.name(trial_id)}; {data.first}; control none. Above 0: the score fell; for a "
        "difference of "
        "buckets: the first fell further. Matched: pairs of images within 0.25 log-odds of each other before deletion."
    )
    return page.table(caption, head, rows)
