"""The short list that begins the page: what the run shows of its first model, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis import baselines, beating
from cxr_ray.analysis.baselines import VALID_SHARE
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report import page
from cxr_ray.report.rundata import RunData
from cxr_ray.report.sections import ranking, sequential


def headlines(data: RunData) -> list[str]:
    """Performance, verdicts, deletion, the hardest controls, the best explainer, and a warning where one is due."""
    if not data.models:
        return []
    trial_id = data.models[0]
    rows = data.buckets[(data.buckets["trial_id"] == trial_id) & (data.buckets["explainer"] == data.primary.explainer)]
    rows = data.first.rows(rows)
    found = (
        _performance(data, trial_id),
        sequential.headlines(data, trial_id),
        _verdicts(data),
        _deletion(data, rows),
        _advantages(data, trial_id),
        _best(data, trial_id),
        _baseline(data, rows),
    )
    return [sentence for sentences in found for sentence in sentences]


def _performance(data: RunData, trial_id: str) -> Iterator[str]:
    table = data.of_model("classification", trial_id)
    if asked := [question.text for question in data.class_order if question.trial_id == trial_id]:
        yield from asked
        return
    for r in table[(table["split"] == "test") & (table["threshold_rule"] == "half")].to_dict("records"):
        sentence = (
            f"Performance of {trial_id} on test: accuracy {page.bounds(r, 'accuracy', False)}, AUROC "
            f"{page.bounds(r, 'auroc', False)}"
        )
        if not pd.isna(r["fp"]):
            sentence += (
                f"; of the NORMAL images {page.count(r['fp'])} are called PNEUMONIA and {page.count(r['tn'])} NORMAL"
            )
        yield sentence + "."


def _verdicts(data: RunData) -> Iterator[str]:
    table = data.tables["hypotheses"]
    for r in page.rows_of(table[table["role"] == "verdict"]):
        effect = page.interval(r.effect, r.lower, r.upper, sign=True)
        known = "" if pd.isna(r.effect) else f"; effect {effect} {r.unit}, {page.count(r.n)} images"
        yield f"{r.hypothesis} ({r.subject}): {r.verdict}{known}."


def _deletion(data: RunData, rows: pd.DataFrame) -> Iterator[str]:
    rows = rows[(rows["metric"] == "drop") & (rows["level"] == data.primary.level) & (rows["control"] == "none")]
    drop = {(str(r.bucket), str(r.scale)): r for r in page.rows_of(rows)}
    if ("TP", "prob") in drop and ("FP", "prob") in drop:
        prob, logodds = ([drop[bucket, scale] for bucket in ("TP", "FP")] for scale in ("prob", "logodds"))
        yield (
            f"Deletion of {page.percent(data.primary.level)} by {data.primary.explainer} ({data.first}): the "
            f"probability of the target falls by {page.mean(prob[0])} for TP ({page.count(prob[0].n)} images) and by "
            f"{page.mean(prob[1])} for FP ({page.count(prob[1].n)}); its log-odds fall by {page.mean(logodds[0])} and "
            f"{page.mean(logodds[1])}."
        )


def _advantages(data: RunData, trial_id: str) -> Iterator[str]:
    """Of each explainer over its hardest strong control: the primary one by bucket, the others over all images."""
    rows = data.primary_rows
    rows = rows[(rows["trial_id"] == trial_id) & (rows["control"] != "none")]
    hardest = rows[rows["hardest"].eq(True)]
    if rows.empty or hardest.empty:
        known = rows.empty or rows["hardest"].notna().any()
        yield f"Maps against strong controls: {beating.NO_STRONG if known else 'not measured in this run'}."
        return
    yield (
        "Maps against the hardest strong control, the one with the smallest mean advantage: advantage in "
        f"{data.metric}, log-odds of the target, and win rate (0.5 is chance); {data.first}:"
    )
    for r in page.rows_of(hardest):
        if r.explainer == data.primary.explainer or r.bucket == "all":
            yield advantage_sentence(r, rows)


def advantage_sentence(r: Any, rows: pd.DataFrame) -> str:
    """The advantage over the hardest strong control, and how many strong ones are beaten."""
    strong = rows[(rows["explainer"] == r.explainer) & (rows["bucket"] == r.bucket)]
    strong = strong[strong["control"].map(lambda c: c in CONTROLS and CONTROLS[c].strong)]
    images = f"{page.count(r.n)} images, {page.count(r.n_patients)} patients"
    text = (
        f"{r.explainer}, {r.bucket} ({images}): hardest strong control {r.control}: {page.mean(r)}, win rate "
        f"{page.interval(r.win_rate, r.win_lower, r.win_upper)}: {beating.in_words(r)}"
    )
    if len(strong) == 1 or pd.isna(r.beaten):
        return f"{text}."
    return f"{text}; {int((strong['beaten'] == beating.YES).sum())} of {len(strong)} strong controls beaten."


def _best(data: RunData, trial_id: str) -> Iterator[str]:
    """Which explainer paired comparisons show to be the best."""
    ranks = data.first.rows(data.of_model("ranks", trial_id))
    ranks = ranks[ranks["bucket"] == "all"]
    if len(ranks):
        caution = f" {ranking.PIXELS}" if data.first.grid == "pixel" else ""
        where = f"in {data.metric}, log-odds; {data.first}"
        yield f"Explainers compared on the same images, {where}. {ranking.best(ranks)}{caution}"


def _baseline(data: RunData, rows: pd.DataFrame) -> Iterator[str]:
    if data.primary.baseline_valid is False:
        yield baselines.sentence(data.tables["baselines"].to_dict("records"), data.first.rule, data.first.fill)
        return
    rows = rows[data.primary.chosen(rows) & (rows["scale"] == "logodds") & (rows["control"] == "none")]
    for r in page.rows_of(rows[rows["bucket"] == "all"]):
        if not data.primary.deletion_alone and r.n_valid_baseline < VALID_SHARE * r.n:
            yield (
                f"Caution: the fully filled image is not a neutral baseline. Filled with {data.first.fill}, "
                f"{page.count(r.n_valid_baseline)} of {page.count(r.n)} images score at least 1 log-odds below the "
                "untouched one. For the others insertion also rewards keeping what the model sees in the filled image: "
                "read it apart from deletion."
            )
