"""Effects of regions and edits beside their matched controls; on phantoms, against the ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis import buckets
from cxr_ray.analysis.agreement.truth import truth_points
from cxr_ray.analysis.region_summary import region_effects
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.regions import REGIONS
from cxr_ray.report import page
from cxr_ray.report.figures import regions as figures
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models
from cxr_ray.schemas import COUNTERFACTUAL, PATCH_SWAP

EDIT = "edit"  # the fill of whole-image edits
KEY = ["region", "fill", "bucket"]
NAMES = {PATCH_SWAP: "patch swap"}


def section(data: RunData, folder: Folder) -> Section:
    """Figure and tables of each model that is shown whole."""
    return Section(
        "regions",
        "Regions: what removing a part of the image does",
        models=of_models(data, folder, of_model),
        otherwise="The run measured no regions (regions: null, or an older run).",
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Regions by fill, edits, and agreement with counterfactual renderings."""
    rule = data.first.rule
    rows = data.of_model("region_summary", trial_id)
    means = _wide(rows[rows["target_rule"] == rule])
    where = f"model {data.name(trial_id)}, target rule {rule}"
    removed = means[~means["fill"].isin([COUNTERFACTUAL, EDIT])]
    if len(removed):
        yield folder.picture(
            figures.regions(
                removed, f"{data.name(trial_id)}: effect of filling or swapping a region, target rule {rule}"
            ),
            f"regions-{trial_id}.svg",
            f"Effect of changing each region and that of its matched control, model {data.name(trial_id)}",
            "Log-odds of the target of the untouched image minus those of the changed one, mean and 95% interval over "
            "patients (crosses: under 20 patients). The matched control changes the same area and shape elsewhere. "
            "Patch swap: the same pixels of a NORMAL validation image of another patient (the donor image).",
        )
        yield _table(removed, "logodds", where)
        yield page.details("In probability", [_table(removed, "prob", where)])
    if len(edits := means[means["fill"] == EDIT]):
        yield _edits(edits, where)
    yield from _truth(data, folder, trial_id, where)


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each region, fill and bucket; columns <quantity>_<scale> with their bounds."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in page.rows_of(rows):
        row = found.setdefault((r.region, r.fill, r.bucket), {"region": r.region, "fill": r.fill, "bucket": r.bucket})
        name = f"{r.quantity}_{r.scale}"
        row |= {name: r.mean, f"{name}_lower": r.lower, f"{name}_upper": r.upper}
        if r.quantity == "effect":
            row |= {"n": r.n, "n_patients": r.n_patients, "share_of_area": r.share_of_area, "draws": r.draws}
    scales, ends = SCALES, ("", "_lower", "_upper")
    values = [f"{q}_{s}{end}" for q in ("effect", "matched", "advantage") for s in scales for end in ends]
    wide = pd.DataFrame(list(found.values()), columns=[*KEY, "n", "n_patients", "share_of_area", "draws", *values])
    order = {bucket: i for i, bucket in enumerate(buckets.BUCKETS)}
    ranks = {name: i for i, name in enumerate([*REGIONS, *EDITS])}
    return wide.sort_values(
        KEY,
        key=lambda c: c.map(order) if c.name == "bucket" else c.map(ranks) if c.name == "region" else c,
        kind="stable",
    )


def _table(means: pd.DataFrame, scale: str, where: str) -> Block:
    """Effect, matched control and their difference, by region, fill and bucket."""
    rows: list[list[Cell]] = [
        [
            r["region"],
            NAMES.get(r["fill"], r["fill"]),
            r["bucket"],
            page.percent(r["share_of_area"], 1),
            f"{page.count(r['n'])} ({page.count(r['n_patients'])})",
            *(page.bounds(r, f"{quantity}_{scale}") for quantity in ("effect", "matched", "advantage")),
        ]
        for r in means.to_dict("records")
    ]
    head = ["region", "fill", "bucket", "share of the area", "images (patients)", "effect", "matched control"]
    caption = (
        f"Effect of filling or swapping a region, {SCALES[scale]} of the target (untouched minus changed) [95% "
        f"interval]; {where}; level: the region's own area. Matched control: the same area and shape elsewhere, mean "
        f"of {page.draws_text(int(means['draws'].max()))}. Above 0: the target's score fell. Advantage: effect minus "
        "matched control; above 0: the score fell further than under the control."
    )
    return page.table(caption, [*head, "advantage"], rows)


def _edits(edits: pd.DataFrame, where: str) -> Block:
    rows: list[list[Cell]] = [
        [
            r["region"],
            r["bucket"],
            f"{page.count(r['n'])} ({page.count(r['n_patients'])})",
            *(page.bounds(r, f"effect_{scale}") for scale in SCALES),
        ]
        for r in edits.to_dict("records")
    ]
    caption = (
        f"Edits of the whole image: score of the untouched image minus that of the edited one [95% interval]; {where}. "
        "Above 0: the edit lowered the target's score; below 0: it raised it. There is no control."
    )
    return page.table(
        caption, ["edit", "bucket", "images (patients)", *(f"effect, {s}" for s in SCALES.values())], rows
    )


def _truth(data: RunData, folder: Folder, trial_id: str, where: str) -> Iterator[Block]:
    """The figure's points are those of the table regions; the numbers are those of the table agreement."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in page.rows_of(data.agreement("truth", trial_id)):
        if r.target_rule == data.first.rule:
            row = found.setdefault((r.axis, r.b, r.a), {"region": r.axis, "truth_of": r.b, "fill": r.a, "n": r.n})
            row["rho" if r.statistic == "spearman" else r.statistic] = r.value
    if not found:
        return
    agreed = pd.DataFrame(list(found.values()))
    rule = data.first.rule
    effects = region_effects(data.regions(trial_id))
    points = truth_points(buckets.of_rule(effects, data.test_of(trial_id), rule))
    title = f"{data.name(trial_id)}: region effects against counterfactual renderings, log-odds of the target"
    yield folder.picture(
        figures.truth(points, agreed, title),
        f"truth-{trial_id}.svg",
        f"Region effects against the ground truth of phantoms, model {data.name(trial_id)}",
        "One point an image. Across: log-odds of the target of the image minus those of its counterfactual rendering, "
        "the same phantom drawn without the thing (or with the other glyph). Up: the effect of filling or swapping the "
        f"region; target rule {rule}.",
    )
    yield page.table(
        f"Agreement of region effects with counterfactual renderings, log-odds; {where}.",
        ["region", "counterfactual rendering", "fill", "images", "Spearman", "same sign"],
        [
            [
                r.region,
                figures.rendering(r),
                NAMES.get(r.fill, r.fill),
                page.count(r.n),
                page.number(r.rho, 2),
                page.percent(r.same_sign),
            ]
            for r in page.rows_of(agreed)
        ],
    )
