"""Which bucket falls further under deletion, under every choice, and which choice turns the answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis.agreement.sign import sign_cells
from cxr_ray.measure.metrics import ORIGINAL_LEVEL
from cxr_ray.report import page
from cxr_ray.report.figures import drops
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models

MARKS = {
    1.0: ("above", "\N{BLACK UP-POINTING TRIANGLE} "),
    -1.0: ("below", "\N{BLACK DOWN-POINTING TRIANGLE} "),
    0.0: ("zero", "\N{WHITE CIRCLE} "),
}
VALUES = {"True": "yes", "False": "no", **SCALES}
AXES = {"contrast_of": "contrast", "target_rule": "target rule", "matched": "matched on log-odds"}
NOTE = (
    "Two published findings differ in sign. The Grad-CAM findings study reports that deletion lowers the probability "
    "of true positives less than that of false positives (TP − FP below 0; level 0.25, probability; it names no fill). "
    "RAD-XAI reports that correct predictions fall further than wrong ones (correct − wrong above 0; grey fill, level "
    "0.5, predicted class, probability). Here both contrasts stand under every choice."
)


def section(data: RunData, folder: Folder) -> Section:
    """Figure and tables of each model that is shown whole."""
    return Section(
        "sign",
        "Which bucket falls further: the sign under every choice",
        [NOTE],
        models=of_models(data, folder, of_model),
        otherwise="There is no contrast of buckets: no deletion was measured, or a bucket is empty.",
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """The counts, the figure, every cell, and pairs of cells that differ in one choice."""
    rows = data.summary[data.summary["trial_id"] == trial_id]
    same = (rows["explainer"] == data.primary.explainer) & (rows["grid"] == data.first.grid)
    cells = sign_cells(rows[same])
    if cells.empty:
        return
    order = {name: i for i, name in enumerate([*data.fills, *data.rules])}
    cells = cells.sort_values(
        ["target_rule", "fill", "level"], key=lambda c: c if c.name == "level" else c.map(order), kind="stable"
    )
    where = f"{data.primary.explainer}, grid {data.first.grid}, model {data.name(trial_id)}, control none"
    agreement = data.agreement("sign", trial_id)
    yield from _counts(agreement[agreement["axis"] == "all"])
    yield folder.picture(
        drops.signs(cells, f"Difference of mean drops: {where}"),
        f"signs-{trial_id}.svg",
        f"Difference of mean drops between buckets under every target rule, fill, level and scale, model "
        f"{data.name(trial_id)}",
        f"Drop of the first bucket minus that of the second [95% interval over patients]: {where}. Round: all images; "
        "square: pairs matched on the log-odds of the target before deletion. Rows: target rule, fill, level.",
    )
    yield _cells(cells, where)
    yield _turns(agreement[agreement["axis"] != "all"], where)


def _counts(rows: pd.DataFrame) -> Iterator[Block]:
    counts = {r.statistic: page.count(r.count) for r in page.rows_of(rows)}
    if counts:
        yield page.text(
            f"Of {page.count(rows['n'].iloc[0])} cells, {counts['above']} lie wholly above 0 (the first bucket falls "
            f"further), {counts['below']} wholly below; the interval of {counts['holds_0']} holds 0, and "
            f"{counts['no_interval']} have no interval (under 20 patients in a bucket)."
        )


def _cells(cells: pd.DataFrame, where: str) -> Block:
    columns = list(itertools.product(("prob", "logodds"), ("TP-FP", "correct-wrong"), (False, True)))
    columns = [c for c in columns if c[1] in set(cells["contrast_of"])]
    rows: list[list[Cell]] = []
    for (rule, fill, level), part in cells.groupby(["target_rule", "fill", "level"], sort=False, observed=True):
        found = {(r.scale, r.contrast_of, r.matched): r for r in page.rows_of(part)}
        row: list[Cell] = [str(rule), str(fill), {"text": f"{level:g}", "sub": _published(str(rule), str(fill), level)}]
        rows.append([*row, *(_cell(found.get(c)) for c in columns)])
    head = ["target rule", "fill", "level"]
    head += [f"{c.replace('-', ' − ')}, {SCALES[s]}, {'matched' if m else 'all'}" for s, c, m in columns]
    above, below, zero = (mark.strip() for _, mark in MARKS.values())
    caption = (
        f"Difference of mean drops [95% interval] and images: {where}. {above} blue: wholly above 0, the first bucket "
        f"falls further; {below} orange: wholly below, the second does; {zero}: the interval holds 0; no mark: no "
        "interval."
    )
    return page.table(caption, head, rows)


def _published(rule: str, fill: str, level: Any) -> str:
    """Whose setting a row is."""
    if (rule, level) == ("pneumonia", ORIGINAL_LEVEL):
        return "Grad-CAM findings"
    return "RAD-XAI" if (rule, fill, level) == ("predicted", "grey", 0.5) else ""


def _turns(turns: pd.DataFrame, where: str) -> Block:
    pairs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in page.rows_of(turns):
        pairs.setdefault((str(r.axis), str(r.a), str(r.b)), {})[str(r.statistic)] = r
    rows = [
        [
            *(AXES.get(axis, axis), VALUES.get(a, a), VALUES.get(b, b)),
            *(page.count(found["turned"].n), _share(found["turned"]), _share(found["clearly"])),
        ]
        for (axis, a, b), found in pairs.items()
    ]
    caption = (
        f"Which choice turns the sign: pairs of cells that differ in one choice alone; {where}. Clearly: both "
        "intervals lie wholly on opposite sides of 0. TP and FP are all predicted PNEUMONIA, so their contrast is "
        "the same under both target rules."
    )
    return page.table(caption, ["choice", "from", "to", "pairs", "sign of the mean turns", "clearly"], rows)


def _share(r: Any) -> str:
    return page.count(r.count) + ("" if pd.isna(r.value) else f" ({page.percent(r.value)})")


def _cell(r: Any) -> Cell:
    if r is None or pd.isna(r.mean):
        return page.NONE
    look, mark = MARKS.get(r.sign, ("", ""))
    return {"text": mark + page.mean(r), "sub": f"n = {page.count(r.n)}", "look": look}
