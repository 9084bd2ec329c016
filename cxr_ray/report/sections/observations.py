"""What the maps look like: spatial concentration and shares of mass, by bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.measure.concentration import COMPACT_AREA, CONCENTRATIONS, MANY_COMPONENTS
from cxr_ray.measure.regions import BORDER, CENTRE, CORNER
from cxr_ray.report import page
from cxr_ray.report.figures import maps
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models
from cxr_ray.report.sections import lungs

SHARES = {"border_share": "border", "corner_share": "corners", "centre_share": "centre", "lung_share": "lungs"}
NOTE = (
    "Spatial concentration of a map's positive mass, by rule. degenerate: there is no positive mass, or the map is "
    "constant; border: the share of mass in the border is at least twice the border's share of the area; scattered: "
    f"the smallest area that holds half of the mass has more than {MANY_COMPONENTS} components; compact: that area has "
    f"one component and covers at most {COMPACT_AREA:.0%} of the image; diffuse: all others. Border: the outer "
    f"{BORDER:.0%} on each side; corners: squares of {CORNER:.0%}; centre: the middle {CENTRE:.0%} x {CENTRE:.0%}. A "
    "share of mass is to be compared with the share of the area. A constant map is ranked by a smooth random field "
    "alone; it is kept in every mean and counted. A map that is not finite has no value."
)


def section(data: RunData, folder: Folder) -> Section:
    """Figure and table of each model that is shown whole."""
    models = of_models(data, folder, of_model)
    return Section("observations", "Observations by bucket", [NOTE], models=models, otherwise="No model was explained.")


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Over all test images; the primary target rule in the open."""
    every = data.of_model("saliency_summary", trial_id)
    for rule in sorted(data.rules, key=lambda r: r != data.first.rule):
        part = every[every["target_rule"] == rule]
        if part.empty:
            continue
        cells = {(r.explainer, r.bucket, r.quantity): r for r in page.rows_of(part)}
        keys = [(e, b) for e in data.explainers for b in BUCKETS if (e, b, CONCENTRATIONS[0]) in cells]
        table = _table(cells, keys, f"model {data.name(trial_id)}, target rule {rule}")
        tables = [table, lungs.enrichment(data, trial_id, rule)]
        if rule != data.first.rule:
            yield page.details(f"target rule {rule}", tables)
            continue
        yield folder.picture(
            maps.concentration(
                _counts(cells, keys), f"{data.name(trial_id)}: spatial concentration by bucket, target rule {rule}"
            ),
            f"concentration-{trial_id}-{rule}.svg",
            f"Share of maps of each spatial concentration by bucket for model {data.name(trial_id)}",
            "Every test image. A map that is not finite is left out; the table counts them.",
        )
        yield from tables


def _counts(cells: dict[Any, Any], keys: list[tuple[str, str]]) -> pd.DataFrame:
    rows = []
    for key in keys:
        counts = {kind: int(cells[*key, kind].count) for kind in CONCENTRATIONS}
        rows.append({"explainer": key[0], "bucket": key[1], "n": int(cells[*key, CONCENTRATIONS[0]].n), **counts})
    return pd.DataFrame(rows)


def _table(cells: dict[Any, Any], keys: list[tuple[str, str]], where: str) -> Block:
    rows: list[list[Cell]] = []
    for key in keys:
        first = cells[*key, CONCENTRATIONS[0]]
        rows.append(
            [
                *key,
                page.images(first),
                *(_share(cells.get((*key, kind))) for kind in CONCENTRATIONS),
                *(_mean(cells.get((*key, share))) for share in SHARES),
                *(_count(cells.get((*key, kind))) for kind in ("constant", "not_finite")),
                _mean(cells.get((*key, "tied"))),
            ]
        )
    areas = {s: next((r.area for r in cells.values() if r.quantity == s), None) for s in SHARES}
    head = [
        "explainer",
        "bucket",
        "maps (patients)",
        *CONCENTRATIONS,
        *(f"mass in {name}" + _area(areas[share]) for share, name in SHARES.items()),
        "constant (kept)",
        "not finite (left out)",
        "median tied share",
    ]
    caption = (
        "Maps of each spatial concentration (share of the bucket's), and mean share of "
        f"the maps' positive mass by region; {where}, every test image."
    )
    return page.table(caption, head, rows)


def _area(area: Any) -> str:
    return "" if pd.isna(area) else f" ({page.percent(area)} of the area)"


def _share(r: Any) -> Cell:
    if r is None or pd.isna(r.value):
        return page.NONE
    return f"{page.count(r.count)} ({page.percent(r.value)})"


def _mean(r: Any) -> str:
    return page.NONE if r is None else page.number(r.value, 2)


def _count(r: Any) -> str:
    return page.NONE if r is None else page.count(r.count)
