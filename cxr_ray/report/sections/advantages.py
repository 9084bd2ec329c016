"""The advantage of maps over their controls: forest plot and tables, setting by setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis import beating
from cxr_ray.analysis.baselines import VALID_SHARE
from cxr_ray.measure.metrics import METRICS, areas, no_areas
from cxr_ray.report import page
from cxr_ray.report.figures import advantages as figures
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData, Setting
from cxr_ray.report.section import Folder, Section, of_models

NOTE = (
    "In a cell: mean advantage over the control [95% interval over patients] and p_holm of its test; win rate, the "
    "share of control draws that the map beats, ties half, 0.5 is chance [95% interval], and p_holm of a one-sided "
    "sign-flip test over patients. Both are corrected by Holm over explainers x controls. They answer two questions: "
    "by how much on average, and how often. Bold: beaten, by both tests (p_holm < 0.05) and both intervals; differs: "
    "by one of the two. hardest strong: the strong control with the smallest mean advantage; a map is judged by it. "
    "not tested: an interval is lacking, so no p_holm is shown (it stands in the table summary). overlap: "
    "the mean share of the map's most salient 25% that the control's 25% covers (0.25 by chance); a control that "
    "covers much of the map has much of its effect."
)
BASELINE = (
    "An area ends on the wholly filled image. That image is a valid baseline where it scores at least 1 log-odds below "
    f"the untouched one. Where this holds for fewer than {VALID_SHARE:.0%} of a bucket's images, no absolute area is "
    "shown, only advantages, which share the end."
)


def section(data: RunData, folder: Folder) -> Section:
    """All models; those that are not shown whole with their primary table alone."""
    return Section(
        "controls",
        "Maps against controls",
        [NOTE],
        models=of_models(data, folder, of_model, data.models),
        otherwise="The table summary has no rows.",
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """For each setting the forest plot and tables, the primary setting first."""
    mine = data.buckets[data.buckets["trial_id"] == trial_id]
    whole = trial_id in data.whole
    for i, s in enumerate(data.settings if whole else data.settings[:1]):
        part = s.rows(mine)
        part = part[part["metric"].map(data.primary.shows).astype(bool)]
        if len(part):
            blocks = list(_of_setting(data, folder, trial_id, s, part))
            yield from [page.details(str(s), blocks)] if i else blocks


def _of_setting(data: RunData, folder: Folder, trial_id: str, s: Setting, part: pd.DataFrame) -> Iterator[Block]:
    where = f"model {data.name(trial_id)}; {s}"
    yield hardest_table(data, part, where)
    if not data.controls:
        yield page.text("The run has no controls, so there is no advantage to show.")
    elif data.drawn(trial_id, s):
        yield from forest(data, folder, trial_id, s, part)
    yield advantage_table(data, part[data.primary.chosen(part)], data.primary.metric, "logodds", where)
    if trial_id not in data.whole:
        yield page.text("Only the primary table is shown for this model. The table summary holds the rest.")
        return
    in_prob = [] if METRICS[data.primary.metric].leveled else [(data.primary.metric, "prob")]
    others = (*in_prob, *((m, s) for m in METRICS if METRICS[m].leveled for s in SCALES))
    more = [advantage_table(data, part, metric, scale, where) for metric, scale in others]
    yield page.details(f"In probability, and the drop at each level ({s})", [t for t in more if t["rows"]])
    if areas_of(part):
        absolute = [absolute_table(part, scale, where) for scale in SCALES]
        yield page.details(f"Areas of the maps themselves ({s})", [page.text(BASELINE), *absolute])
    else:
        yield page.text(no_areas(data.levels))


def areas_of(part: pd.DataFrame) -> list[str]:
    """The areas that are measured."""
    return [m for m in areas() if m in set(part["metric"])]


def forest(data: RunData, folder: Folder, trial_id: str, s: Setting, part: pd.DataFrame) -> Iterator[Block]:
    """Advantages in the primary metric, in log-odds; nothing without controls."""
    part = part[data.primary.chosen(part) & (part["scale"] == "logodds")]
    controls = [c for c in data.controls if c in set(part["control"])]
    if not controls:
        return
    label = f"advantage over the control in {data.metric},\nlog-odds of the target (right: the map is more faithful)"
    title = f"{data.name(trial_id)}: mean advantage, 95% interval over patients\n{s}"
    yield folder.picture(
        figures.forest(part, controls, label, title),
        f"advantages-{trial_id}-{s.slug}.svg",
        f"Mean advantage over each control by explainer and bucket, model {data.name(trial_id)}; {s}",
        f"Mean advantage in {data.metric} (log-odds of the target{of_area(data)}) over each control, with its 95% "
        f"interval, for model {data.name(trial_id)}; {s}. Filled: the hardest strong control of this explainer and "
        "bucket; hollow: the others. Crosses: under 20 patients, no interval.",
        inline=s == data.first and trial_id in data.whole,
    )


def hardest_table(data: RunData, part: pd.DataFrame, where: str) -> Block:
    """Each explainer and bucket against the strong control that is the hardest to beat, or why there is none."""
    part = part[data.primary.chosen(part) & (part["scale"] == "logodds") & (part["control"] != "none")]
    hardest = part[part["hardest"].eq(True)]
    if hardest.empty:
        known = part.empty or part["hardest"].notna().any()
        return page.text(f"Hardest strong control: {beating.NO_STRONG if known else 'not measured in this run'}.")
    rows: list[list[Cell]] = [
        [
            r.explainer,
            r.bucket,
            page.images(r),
            r.control,
            {"text": page.mean(r), "strong": r.beaten == beating.YES},
            _p_holm(r, "mean_p_holm"),
            page.interval(r.win_rate, r.win_lower, r.win_upper),
            _p_holm(r, "p_holm"),
            page.wrapped(beating.in_words(r)),
        ]
        for r in page.rows_of(hardest)
    ]
    caption = (
        "Maps against their hardest strong control, the one with the smallest mean advantage in "
        f"{data.metric}, log-odds of the target; {where}{of_area(data)}."
    )
    head = [
        "explainer",
        "bucket",
        "images (patients)",
        "hardest strong control",
        "advantage",
        "p_holm of the advantage",
    ]
    return page.table(caption, [*head, "win rate", "p_holm of the win rate", "in words"], rows)


def of_area(data: RunData) -> str:
    """What stands for the level of an area."""
    return "" if METRICS[data.primary.metric].leveled else "; level: none (area over all levels)"


def advantage_table(data: RunData, part: pd.DataFrame, metric: str, scale: str, where: str) -> Block:
    """Advantages over each control, one row an explainer and bucket (and level, for drops)."""
    part = part[(part["metric"] == metric) & (part["scale"] == scale)]
    leveled = METRICS[metric].leveled
    draws: dict[str, int] = {}
    groups: dict[Any, dict[str, Any]] = {}
    for r in page.rows_of(part):
        groups.setdefault((r.explainer, r.bucket, r.level if leveled else None), {})[str(r.control)] = r
        draws[r.control] = max(draws.get(r.control, 0), int(r.draws))
    controls = [c for c in data.controls if c in draws]
    rows: list[list[Cell]] = []
    for cells in groups.values():
        r = next((cells[c] for c in controls if c in cells), next(iter(cells.values())))
        row: list[Cell] = [r.explainer, r.bucket, *([f"{r.level:g}"] if leveled else []), page.images(r)]
        if leveled:
            row.append(page.mean(cells["none"]) if "none" in cells else page.NONE)
        rows.append([*row, *(_cell(cells.get(c)) for c in controls)])
    label = METRICS[metric].label
    level = "each level, share of cells perturbed" if leveled else "none (area over all levels)"
    caption = (
        f"Advantage over the control in {label}, {SCALES[scale]} of the target; {where}; level: {level}. Above 0: the "
        "map is more faithful than the control."
    )
    head = ["explainer", "bucket", *(["level"] if leveled else []), "images (patients)"]
    head += [f"{label} of the map itself, {SCALES[scale]}"] if leveled else []
    return page.table(caption, head + [f"advantage over {c} ({page.draws_text(draws[c])})" for c in controls], rows)


def absolute_table(part: pd.DataFrame, scale: str, where: str) -> Block:
    """Areas of the map itself, or why they are not shown."""
    part = part[(part["control"] == "none") & (part["scale"] == scale)]
    metrics = areas_of(part)
    rows: list[list[Cell]] = []
    groups: dict[Any, dict[str, Any]] = {}
    for r in page.rows_of(part):
        groups.setdefault((r.explainer, r.bucket), {})[str(r.metric)] = r
    for cells in groups.values():
        r = cells[metrics[-1]]
        valid = f"{page.count(r.n_valid_baseline)} of {page.count(r.n)}"
        values = [_area(cells[m], valid) for m in metrics if m in cells]
        rows.append([r.explainer, r.bucket, page.images(r), valid, *values])
    directions = "; ".join(
        f"{METRICS[m].label}: {'higher' if METRICS[m].higher_is_faithful else 'lower'} is more faithful"
        for m in metrics
    )
    caption = (
        f"Areas of the map itself, control none, {SCALES[scale]} of the target; {where}; level: none (area over all "
        f"levels). {directions}."
    )
    head = ["explainer", "bucket", "images (patients)", "valid baseline", *(METRICS[m].label for m in metrics)]
    return page.table(caption, head, rows)


def _area(r: Any, valid: str) -> str:
    hidden = pd.isna(r.mean) and r.n > 0
    signed = len(METRICS[r.metric].directions) > 1  # a difference of two areas
    return f"not shown: valid baseline for {valid}" if hidden else page.mean(r, sign=signed)


def _p_holm(r: Any, name: str) -> str:
    """A corrected p-value; none of what is not tested, as a sign-flip test of a few patients alone would be."""
    return page.NONE if pd.isna(r.beaten) else page.p_text(getattr(r, name))


def _cell(r: Any) -> Cell:
    if r is None or pd.isna(r.mean):
        return page.NONE
    win = page.interval(r.win_rate, r.win_lower, r.win_upper)
    if pd.isna(r.beaten):
        sub = f"win rate {win} · not tested"
    else:
        sub = f"p_holm {page.p_text(r.mean_p_holm)} · win rate {win}, p_holm {page.p_text(r.p_holm)}"
    sub += " · hardest strong" if r.hardest is True else ""
    sub += " · differs" if r.beaten == beating.DIFFERS else ""
    sub += "" if pd.isna(r.overlap) else f" · overlap {page.number(r.overlap, 2)}"
    if r.n_null or r.n_degenerate:
        sub += f" · {page.count(r.n_null)} null, {page.count(r.n_degenerate)} constant"
    return {"text": page.mean(r), "sub": sub, "strong": r.beaten == beating.YES}
