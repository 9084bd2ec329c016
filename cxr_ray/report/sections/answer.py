"""The first screen: a sentence a model, the figure that shows it, performance in a line, and the caveats that apply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from cxr_ray.analysis import answers, baselines, beating
from cxr_ray.analysis.answers import Answer
from cxr_ray.analysis.baselines import VALID_SHARE
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.hypotheses.margins import NOT_APPLICABLE
from cxr_ray.analysis.resampling import MIN_PATIENTS
from cxr_ray.data.sources import SOURCES
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report import page
from cxr_ray.report.figures import summary
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder
from cxr_ray.report.sections import performance, ranking, sequential

QUESTION = (
    "A saliency map colours the places in an X-ray that a model is said to use. The map is faithful if that is true: "
    "then covering those places changes the model's answer more than covering the places that a control names, and "
    "showing them alone restores it sooner. A control is a map that knows less, such as the map of another patient."
)
HOW = (
    "Dot: how much better the map does than a control, as a mean over all test images, in log-odds of the target class "
    "(a natural logarithm of odds): the mean advantage. Line: its 95% interval over patients. Filled and bold: a "
    "strong control. map better: shown in the mean advantage and in the win rate (the share of comparisons that the "
    "map wins), by interval and by a test that is corrected for the number of comparisons. better on average, better "
    "more often: shown in one of the two. not shown: in neither, which does not say that they are alike. map worse: "
    "both intervals lie below chance."
)


def first_screen(data: RunData, folder: Folder) -> dict[str, Any]:
    """The texts and pictures above everything else."""
    asked = [question.trial_id for question in data.class_order]
    trials = data.trials[data.trials["trial_id"].isin(data.models)]
    found = answers.answers(data.summary, trials, data.primary, data.explainers, asked)
    first = [a for a in found if a.explainer == data.primary.explainer]
    return {
        "subject": subject(data),
        "answers": [a.sentence for a in first],
        "others": [a.sentence for a in found if a.explainer != data.primary.explainer],
        "panels": panels(data, folder, [a for a in first if a.trial_id in data.whole and len(a.rows)]),
        "how": f"{HOW} Measured as {data.metric}; {data.first}.",
        "questions": [question.text for question in data.class_order],
        "performance": list(performances(data)),
        "caveats": list(caveats(data, first)),
        "findings": list(findings(data)),
        "groups": list(by_group(data)),
    }


def subject(data: RunData) -> str:
    """What was asked of what, in a sentence."""
    test = data.tables["images"]
    models = "one model" if len(data.models) == 1 else f"{len(data.models)} models"
    maps = "one method" if len(data.explainers) == 1 else f"{len(data.explainers)} methods"
    return (
        f"Do saliency maps show what the models use? Maps of {maps}, {models}, {len(test)} test images of "
        f"{test['patient_id'].nunique()} patients. Covered places are filled with {data.first.fill}."
    )


def panels(data: RunData, folder: Folder, found: list[Answer]) -> list[Block]:
    """A panel a model, and all of them as files for a paper."""
    if not found:
        return []
    ends = summary.limits(found)
    poster = summary.poster(found)
    folder.store.write(poster.svg("Advantage over each control", alone=True).encode(), "figures", "summary.svg")
    folder.store.write(poster.pdf(), "figures", "summary.pdf")
    return [{"svg": summary.panel(a, ends).svg(f"{a.sentence} {_numbers(a)}")} for a in found]


def _numbers(answer: Answer) -> str:
    return "; ".join(f"over {answers.phrase(r.control)} {page.mean(r)}" for r in page.rows_of(answer.rows)) + "."


def performances(data: RunData) -> Iterator[str]:
    """A line a model, without those whose classes are in doubt."""
    table = data.tables["classification"]
    asked = {question.trial_id for question in data.class_order}
    table = table[(table["split"] == "test") & (table["threshold_rule"] == "half")].set_index("trial_id")
    for trial_id in data.whole:
        if trial_id not in asked and trial_id in table.index:
            r = table.loc[trial_id].to_dict()
            text = f"{data.name(trial_id)}: accuracy {page.bounds(r, 'accuracy', False)}, "
            text += f"AUROC {page.bounds(r, 'auroc', False)}"
            if not pd.isna(r["fp"]):
                text += (
                    f"; of the NORMAL images {page.count(r['fp'])} are called PNEUMONIA and {page.count(r['tn'])} "
                    "NORMAL"
                )
            yield f"{text}."


def caveats(data: RunData, found: list[Answer]) -> Iterator[str]:
    """What a reader of the sentences must know, where it applies to this run."""
    yield from performance.twins(data)
    if data.sweep["data"]["source"] == "phantom":
        yield f"The images are {SOURCES['phantom'].description}."
    if limit := data.sweep["data"].get("limit"):
        yield f"The data were cut to {limit} images of test, and of train and val together."
    if few := [a.model for a in found if a.rows["lower"].isna().all() and len(a.rows)]:
        yield f"No interval, so nothing is shown, of {', '.join(few)}: under 20 patients, or too few of them differ."
    if found and not any(CONTROLS[c].strong for a in found for c in a.rows["control"] if c in CONTROLS):
        yield f"Maps against strong controls: {beating.NO_STRONG}."
    yield from _own_areas(data)
    yield from _weak_controls(found)
    yield from _baseline(data)
    if len(data.sweep["perturb"]["fills"]) == 1:
        yield f"Places were filled with {data.first.fill} alone. Another fill may give another answer."
    if data.first.grid == "pixel" and len(data.explainers) > 1:
        yield ranking.PIXELS
    variants = data.trials.loc[data.trials["trial_id"].isin(data.models), "variant"]
    if variants.nunique() == len(variants):
        models = "this very model" if len(variants) == 1 else "these very models"
        yield f"Intervals hold for {models} on other patients; a model trained again may differ."
    if n := len(data.tables["errors"]):
        yield f"Rows of errors, listed under Limitations: {n}."


def _own_areas(data: RunData) -> Iterator[str]:
    """Models on which the primary explainer orders places worse than the reverse of its order."""
    rows = answers.primary_rows(data.summary, data.primary)
    rows = rows[(rows["control"] == "none") & (rows["explainer"] == data.primary.explainer)]
    for r in page.rows_of(rows[(rows["metric"] == "abpc") & (rows["upper"] < 0)]):
        yield (
            f"On {data.name(r.trial_id)} the maps order places worse than the reverse of their order: their own area "
            f"between perturbation curves is {page.mean(r)}, below 0. Where a map is worse than chance, being "
            "better than a control says little."
        )


def _weak_controls(found: list[Answer]) -> Iterator[str]:
    """Models on which a control that is not strong does better than the map, while a strong one does not."""
    for answer in found:
        stands = {r.control: answers.standing(r) for r in page.rows_of(answer.rows) if r.control in CONTROLS}
        strong = [s for c, s in stands.items() if CONTROLS[c].strong]
        better = [answers.phrase(c) for c, s in stands.items() if s == "worse" and not CONTROLS[c].strong]
        if better and strong and "worse" not in strong:
            yield (
                f"On {answer.model} {answers.listed(better)}, which no map made, do better than the map. The strong "
                "controls are easier to beat there."
            )


def _baseline(data: RunData) -> Iterator[str]:
    if data.primary.baseline_valid is False:
        yield baseline_sentence(data)
        return
    table = data.tables["baselines"]
    for r in page.rows_of(table[(table["fill"] == data.first.fill) & (table["target_rule"] == data.first.rule)]):
        if r.n_patients < MIN_PATIENTS:
            yield (
                f"That {data.name(r.trial_id)} scores an image filled with {r.fill} alone below the untouched one (a "
                f"valid baseline) rests on {page.counted(r.n, 'validation image')} of "
                f"{page.counted(r.n_patients, 'patient')}."
            )
    if data.primary.deletion_alone:
        return
    rows = answers.primary_rows(data.summary, data.primary)
    rows = rows[(rows["control"] == "none") & (rows["explainer"] == data.primary.explainer)]
    few = rows[rows["n_valid_baseline"] < VALID_SHARE * rows["n"]]
    counts = ", ".join(
        f"{page.count(r.n_valid_baseline)} of {page.count(r.n)} of {data.name(r.trial_id)}"
        for r in page.rows_of(few[few["trial_id"].isin(data.whole)])
    )
    if counts:
        yield (
            f"The fully filled image is not a neutral baseline. Filled with {data.first.fill}, these test images score "
            f"at least 1 log-odds below the untouched one: {counts}. For the others insertion also rewards keeping "
            "what the model sees in the filled image: read it apart from deletion."
        )


def baseline_sentence(data: RunData) -> str:
    """What the primary fill is on the validation split, and what follows."""
    rows = data.tables["baselines"].to_dict("records")
    named = [{**row, "trial_id": data.name(row["trial_id"])} for row in rows]
    return baselines.sentence(named, data.first.rule, data.first.fill)


def findings(data: RunData) -> Iterator[str]:
    """Sequential verdicts, hypotheses that are asked, the fall under deletion, and the best explainer."""
    if not data.models:
        return
    trial_id = data.models[0]
    yield from sequential.headlines(data, trial_id)
    table = data.tables["hypotheses"]
    for r in page.rows_of(table[(table["role"] == "verdict") & (table["verdict"] != NOT_APPLICABLE)]):
        effect = page.interval(r.effect, r.lower, r.upper, sign=True)
        known = "" if pd.isna(r.effect) else f"; effect {effect} {r.unit}, {page.counted(r.n, 'image')}"
        known += "" if pd.isna(r.effect) or not pd.isna(r.lower) else ", too few for an interval"
        yield f"{r.hypothesis} ({r.subject}): {r.verdict}{known}."
    yield from _deletion(data, trial_id)
    yield from _best(data, trial_id)


def _deletion(data: RunData, trial_id: str) -> Iterator[str]:
    rows = data.first.rows(data.buckets[data.buckets["trial_id"] == trial_id])
    rows = rows[(rows["explainer"] == data.primary.explainer) & (rows["metric"] == "drop")]
    rows = rows[rows["level"] == data.primary.level]
    drop = {(str(r.bucket), str(r.scale)): r for r in page.rows_of(rows[rows["control"] == "none"])}
    if ("TP", "prob") in drop and ("FP", "prob") in drop:
        prob, logodds = ([drop[bucket, scale] for bucket in ("TP", "FP")] for scale in ("prob", "logodds"))
        few = "" if all(pd.notna(r.lower) for r in (*prob, *logodds)) else " Too few patients for some intervals."
        yield (
            f"Deletion of {page.percent(data.primary.level)} by {data.primary.explainer} on {data.name(trial_id)} "
            f"({data.first}): the probability of the target falls by {page.mean(prob[0], sign=False)} for TP "
            f"({page.count(prob[0].n)} images) and by {page.mean(prob[1], sign=False)} for FP "
            f"({page.count(prob[1].n)}); its log-odds fall by {page.mean(logodds[0], sign=False)} and "
            f"{page.mean(logodds[1], sign=False)}{_by_controls(rows, ('TP', 'FP'))}.{few}"
        )


def _by_controls(rows: pd.DataFrame, groups: Sequence[str]) -> str:
    """By how much log-odds fall under the control that takes the most, of each group of images."""
    rows = rows[(rows["control"] != "none") & (rows["scale"] == "logodds") & rows["control_mean"].notna()]
    most = [rows[rows["bucket"] == group].nlargest(1, "control_mean") for group in groups]
    if not all(len(of) for of in most):
        return ""
    told = [f"{page.number(r.control_mean)} ({r.control})" for of in most for r in page.rows_of(of)]
    return f"; under the control that takes the most, by {' and '.join(told)}"


def _best(data: RunData, trial_id: str) -> Iterator[str]:
    """Which explainer paired comparisons show to be the best."""
    ranks = data.first.rows(data.of_model("ranks", trial_id))
    ranks = ranks[ranks["bucket"] == "all"]
    if len(ranks):
        yield (
            f"Explainers compared with each other, not with controls, on the same images of {data.name(trial_id)}, in "
            f"{data.metric}, log-odds; "
            f"{data.first}. {ranking.best(ranks)}"
        )


def by_group(data: RunData) -> Iterator[str]:
    """Of the first model: the primary explainer over its hardest strong control, by group of images."""
    rows = data.primary_rows
    rows = rows[(rows["trial_id"] == data.models[0]) & (rows["control"] != "none")] if data.models else rows[:0]
    hardest = rows[rows["hardest"].eq(True) & (rows["explainer"] == data.primary.explainer)]
    for bucket in BUCKETS:
        for r in page.rows_of(hardest[hardest["bucket"] == bucket]):
            yield _of_group(r, rows)


def _of_group(r: Any, rows: pd.DataFrame) -> str:
    """The advantage over the hardest strong control, and how many strong ones are beaten."""
    strong = rows[(rows["explainer"] == r.explainer) & (rows["bucket"] == r.bucket)]
    strong = strong[strong["control"].map(lambda c: c in CONTROLS and CONTROLS[c].strong)]
    images = f"{page.counted(r.n, 'image')}, {page.counted(r.n_patients, 'patient')}"
    text = (
        f"{r.bucket} ({images}): advantage over the hardest strong control, {r.control}: {page.mean(r)}, win rate "
        f"{page.interval(r.win_rate, r.win_lower, r.win_upper)}: {beating.in_words(r)}"
    )
    if len(strong) == 1 or pd.isna(r.beaten):
        return f"{text}."
    return f"{text}; {int((strong['beaten'] == beating.YES).sum())} of {len(strong)} strong controls beaten."
