"""Whether maps stay when the image hardly changes, and infidelity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from cxr_ray.measure.controls import strong_first
from cxr_ray.report import page
from cxr_ray.report.figures import stability as figures
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models

NOTE = (
    "A map that changes when the image hardly does says little of either image. That it stays says nothing of its "
    "faithfulness: a map that never reads the image stays as it is. So the map of the altered image is compared with "
    "the map, and in its place with the controls: above chance is a map that is more like itself than a control is. "
    "Controls have the map's values in their own order. Infidelity asks whether a map's sums over squares of the image "
    "tell how the score falls when these are filled (max-sensitivity and infidelity: Yeh et al. 2019)."
)
COLUMNS = {  # quantity to its column
    "max_sensitivity": "max-sensitivity",
    "spearman": "Spearman",
    "ssim": "SSIM",
    "logit_change": "change of the score, log-odds",
}


def section(data: RunData, folder: Folder) -> Section:
    """Figure and tables of each model that is shown whole."""
    return Section(
        "stability",
        "Stability: do maps stay when the image hardly changes?",
        [NOTE],
        models=of_models(data, folder, of_model),
        otherwise="The run made no maps of altered images (stability: null, or an older run).",
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """The figure, maps of altered images, and infidelity, where they were measured."""
    rule = data.first.rule
    rows = data.of_model("stability_summary", trial_id)
    rows = rows[rows["target_rule"] == rule]
    if rows.empty:
        return
    controls = strong_first(set(rows["control"]) - {"none"})
    title = f"{data.name(trial_id)}: maps under small changes of the image, target rule {rule}"
    yield folder.picture(
        figures.stability(rows, data.explainers, title),
        f"stability-{trial_id}.svg",
        f"Stability and infidelity of maps beside their controls, model {data.name(trial_id)}",
        "Colour: the explainer's map, mean and 95% interval over patients (a cross: no interval, under 20 patients). "
        "Hollow: the mean of each control in its place.",
    )
    where = f"model {data.name(trial_id)}, target rule {rule}"
    changes = rows[rows["perturbation"] != "square"]
    if len(changes):
        yield _of_changes(changes, controls, where)
    squares = rows[rows["perturbation"] == "square"]
    if len(squares):
        yield _of_squares(squares, controls, where, data.first.fill)


def _of_changes(rows: pd.DataFrame, controls: Sequence[str], where: str) -> Block:
    cells = _cells(rows)
    body: list[list[Cell]] = []
    for explainer, perturbation, size in _settings(rows):
        found = {q: cells.get((explainer, perturbation, size, q, "none")) for q in COLUMNS}
        over = [_value(cells.get((explainer, perturbation, size, "spearman", c)), sign=True) for c in controls]
        images = page.images(found["spearman"])
        values = [_value(r) for r in found.values()]
        body.append([explainer, f"{perturbation} {size:g}", images, *values, *over])
    head = ["explainer", "change", "images (patients)", *COLUMNS.values()]
    head += [f"advantage in Spearman over {c}" for c in controls]
    caption = (
        f"Maps of altered images beside those of the images, mean [95% interval]; {where}. noise: uniform, up to the "
        "share of a pixel's range; shift: up, down, right and left by the share of the side, and taken back. "
        "max-sensitivity: largest distance over the copies, relative to the map; lower is more stable. "
        "Spearman, SSIM: mean over the copies (1: nothing changed). Change of the score: mean size, of the target."
    )
    return page.table(caption, head, body)


def _of_squares(rows: pd.DataFrame, controls: Sequence[str], where: str, fill: str) -> Block:
    cells = _cells(rows)
    body: list[list[Cell]] = []
    for explainer, perturbation, size in _settings(rows):
        own = [cells[explainer, perturbation, size, q, "none"] for q in ("unexplained", "infidelity")]
        over = [_value(cells.get((explainer, perturbation, size, "unexplained", c)), sign=True) for c in controls]
        body.append([explainer, page.images(own[0]), *(_value(r) for r in own), *over])
    head = ["explainer", "images (patients)", "share unexplained", "infidelity, log-odds squared"]
    head += [f"advantage in the share over {c}" for c in controls]
    caption = (
        f"Infidelity: what the map's sums over squares leave unexplained of the squares' effects, mean [95% interval]; "
        f"{where}, fill {fill}. Each map has the factor that suits it best, from 0. Share: of the mean squared effect; "
        "lower is more faithful. Advantage: above 0 the map leaves less unexplained than the control."
    )
    return page.table(caption, head, body)


def _cells(rows: pd.DataFrame) -> dict[tuple[Any, ...], Any]:
    return {
        (r.explainer, r.perturbation, None if pd.isna(r.size) else r.size, r.quantity, r.control): r
        for r in page.rows_of(rows)
    }


def _settings(rows: pd.DataFrame) -> list[tuple[str, str, Any]]:
    return list(dict.fromkeys(key[:3] for key in _cells(rows)))


def _value(r: Any, sign: bool = False) -> str:
    return page.NONE if r is None else page.mean(r, sign=sign)
