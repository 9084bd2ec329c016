"""Agreement of maps with experts beside their controls, and whether faithful maps are plausible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis.beating import YES, in_words
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.measured import Measured
from cxr_ray.analysis.statistics import plausibility_points
from cxr_ray.measure.controls import strong_first
from cxr_ray.measure.localisation import LOCALISATION, PRIMARY
from cxr_ray.report import page
from cxr_ray.report.figures import localisation as figures
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models

NOTE = (
    "Faithful and plausible are two questions. A map is faithful where what it shows moves the model's score; it is "
    "plausible where it lies on what experts marked. A model may use what no expert would, and a faithful map then "
    "shows that. Localisation is compared with the same controls as faithfulness: a control gets the map's values in "
    "the order of its own ranking. Images without an expert truth have no value and count in no mean."
)
PLOT = (
    "Each point is an image. Right: better localised than the control; up: more faithful than it. Points all over the "
    "four quarters: the one says little of the other."
)
NOT_MEASURED = (
    "Localisation was not measured in this run: it takes an expert truth of test images (truth.path: boxes, polygons "
    "or masks)."
)


def section(data: RunData, folder: Folder) -> Section:
    """Localisation of each model that is shown whole."""
    return Section(
        "localisation",
        "Do the maps lie where experts see the finding?",
        [NOTE],
        models=of_models(data, folder, of_model),
        otherwise=NOT_MEASURED,
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Tables of each target rule; the figure and the correlations of the primary one."""
    every = data.of_model("localisation_summary", trial_id)
    for rule in sorted(data.rules, key=lambda r: r != data.first.rule):
        part = every[every["target_rule"] == rule]
        if part.empty:
            continue
        where = f"model {data.name(trial_id)}, target rule {rule}"
        cells = {(r.explainer, r.bucket, r.metric, r.control): r for r in page.rows_of(part)}
        blocks = [_means(data, cells, where), _advantages(data, cells, PRIMARY, where)]
        more = [_advantages(data, cells, metric, where) for metric in LOCALISATION if metric != PRIMARY]
        blocks.append(page.details("Advantages in the other metrics of localisation", more))
        if rule != data.first.rule:
            yield page.details(f"target rule {rule}", blocks)
            continue
        yield from blocks
        yield from _beside_faithfulness(data, folder, trial_id)


def _means(data: RunData, cells: dict[Any, Any], where: str) -> Block:
    rows: list[list[Cell]] = []
    for explainer in data.explainers:
        for bucket in BUCKETS:
            found = [cells.get((explainer, bucket, metric, "none")) for metric in LOCALISATION]
            if (first := next((r for r in found if r is not None), None)) is not None:
                means = [page.NONE if r is None else page.mean(r, sign=False) for r in found]
                rows.append([explainer, bucket, page.images(first), page.number(first.area), *means])
    head = ["explainer", "bucket", "maps (patients)", "area of the truth"]
    caption = (
        f"Agreement with experts, mean [95% interval]; {where}. The truth's share of the image is what a map without "
        "information gets on average in the first three."
    )
    return page.table(caption, [*head, *(entry.label for entry in LOCALISATION.values())], rows)


def _advantages(data: RunData, cells: dict[Any, Any], metric: str, where: str) -> Block:
    controls = strong_first({control for *_, control in cells} - {"none"})
    rows: list[list[Cell]] = []
    for explainer in data.explainers:
        for bucket in BUCKETS:
            for control in controls:
                r = cells.get((explainer, bucket, metric, control))
                if r is None or not r.n:
                    continue
                look: Cell = {"text": page.mean(r), "strong": r.beaten == YES}
                wins = page.interval(r.win_rate, r.win_lower, r.win_upper)
                tests = [page.p_text(r.mean_p_holm), wins, page.p_text(r.p_holm), page.wrapped(in_words(r))]
                rows.append([explainer, bucket, control, page.images(r), page.number(r.control_mean), look, *tests])
    head = ["explainer", "bucket", "control", "maps (patients)", "control's mean"]
    head += ["mean advantage", "p, Holm", "win rate", "p, Holm", "the control is"]
    return page.table(f"Advantage in {LOCALISATION[metric].label} over each control; {where}.", head, rows)


def _beside_faithfulness(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    found = data.agreement("plausibility", trial_id)
    if found.empty:
        return
    points = plausibility_points(Measured(data.run), trial_id)
    controls = strong_first(set(points["control"]))
    shown = points[(points["metric"] == PRIMARY) & (points["control"] == controls[0])]
    where = f"{data.metric}, log-odds of the target; model {data.name(trial_id)}; {data.first}"
    label = LOCALISATION[PRIMARY].label
    yield folder.picture(
        figures.faithful_and_plausible(
            shown, data.explainers, f"{data.name(trial_id)}: advantages over {controls[0]}", label
        ),
        f"plausibility-{trial_id}.svg",
        f"Advantage in faithfulness against advantage in localisation over {controls[0]}, model {data.name(trial_id)}",
        f"Advantage over {controls[0]} in {where}, against that in {label}. {PLOT}",
    )
    yield _correlations(found, PRIMARY, where)
    others = [_correlations(found, metric, where) for metric in LOCALISATION if metric != PRIMARY]
    yield page.details("Faithful and plausible by the other metrics of localisation", others)


def _correlations(found: pd.DataFrame, metric: str, where: str) -> Block:
    part = found[found["axis"] == metric]
    cells = {(r.a, r.b, r.statistic): r for r in page.rows_of(part)}
    rows: list[list[Cell]] = []
    for explainer, control in dict.fromkeys(part[["a", "b"]].itertuples(index=False, name=None)):
        of_map = [cells[explainer, control, name] for name in ("spearman", "faithful_alone", "plausible_alone")]
        values = [page.interval(r.value, r.low, r.high, sign=r.statistic == "spearman") for r in of_map]
        rows.append([explainer, control, page.count(of_map[0].n), *values])
    head = ["explainer", "control", "images", "rank correlation", "faithful alone", "plausible alone"]
    caption = (
        f"Faithfulness beside {LOCALISATION[metric].label} [95% interval over patients]: rank correlation of the two "
        f"advantages over images, and shares of images whose map beats the control in one alone; {where}."
    )
    return page.table(caption, head, rows)
