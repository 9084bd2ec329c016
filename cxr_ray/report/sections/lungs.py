"""How much the maps lie on the lungs, beside their controls."""

from __future__ import annotations

from typing import Any

from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.measure.lung_enrichment import MASKS
from cxr_ray.report import page
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData

NOTE = (
    "Lung enrichment: the share of a map's positive mass in the lungs, over the lungs' share of the image; 1: no more "
    "than their area. A control gets the map's values in the order of its own ranking. Masks are shown as given, and "
    "dilated and eroded by 4 pixels of 224."
)


def enrichment(data: RunData, trial_id: str, rule: str) -> Block:
    """The table of one model and target rule, or a sentence where lung enrichment was not measured."""
    every = data.of_model("lung_summary", trial_id)
    part = every[every["target_rule"] == rule]
    if part.empty:
        return page.text("Lung enrichment was not measured in this run: it takes lung masks (regions.lungs).")
    cells = {(r.explainer, r.bucket, r.control, r.mask, r.quantity): r for r in page.rows_of(part)}
    controls = [c for c in dict.fromkeys(part["control"]) if c != "none"]
    rows: list[list[Cell]] = []
    for explainer in data.explainers:
        for bucket in BUCKETS:
            own = cells.get((explainer, bucket, "none", MASKS[0], "enrichment"))
            if own is None:
                continue
            given = [(explainer, bucket, c, MASKS[0], "enrichment") for c in controls]
            others = [(explainer, bucket, "none", mask, "enrichment") for mask in MASKS[1:]]
            above = [(explainer, bucket, "none", MASKS[0], quantity) for quantity in ("above_1", "above_1.5")]
            values = [_value(cells.get(key)) for key in (*given, *others, *above)]
            rows.append([explainer, bucket, page.images(own), page.number(own.area), _value(own), *values])
    head = ["explainer", "bucket", "maps (patients)", "area of the lungs", "enrichment [95% interval]", *controls]
    head += [*MASKS[1:], "share of maps above 1", "above 1.5"]
    return page.table(f"Lung enrichment; model {data.name(trial_id)}, target rule {rule}. {NOTE}", head, rows)


def _value(r: Any) -> str:
    return page.NONE if r is None else page.interval(r.value, r.lower, r.upper)
