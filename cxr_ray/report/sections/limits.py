"""What the run cannot say, from what was run, and its errors."""

from __future__ import annotations

from collections.abc import Iterator

from cxr_ray.analysis import baselines
from cxr_ray.analysis.hypotheses.margins import NOT_APPLICABLE
from cxr_ray.data.sources import SOURCES
from cxr_ray.measure.controls import CONTROLS, strong_first
from cxr_ray.report import page
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section
from cxr_ray.report.sections import answer

MOST_REASONS = 50


def section(data: RunData, folder: Folder) -> Section:
    """A list of limits, then the errors."""
    limits = [*_data(data), *_choices(data), *_baselines(data), *_meaning(data), *_statistics(data)]
    blocks = [{"kind": "list", "items": limits}, *baseline_table(data), errors(data)]
    return Section("limitations", "Limitations", blocks=blocks)


def _data(data: RunData) -> Iterator[str]:
    settings = data.sweep["data"]
    source = SOURCES[settings["source"]]
    test = data.tables["images"]
    limit = settings.get("limit")
    variants = data.trials.loc[data.trials["trial_id"].isin(data.models), "variant"].nunique()
    models = "one model" if len(data.models) == 1 else f"{len(data.models)} models of {variants} variants"
    yield (
        f"One data set ({source.description}), {len(test)} test images of {test['patient_id'].nunique()} patients"
        + (f", of a split cut to {limit} images" if limit else "")
        + f", {models}. The results do not extend to images of another hospital."
    )
    yield from source.limits


def _choices(data: RunData) -> Iterator[str]:
    grids = [str(g) for g in data.sweep["perturb"]["grids"]]
    yield (
        f"Levels {', '.join(f'{x:g}' for x in data.levels)}; fills {', '.join(data.fills)}; grids {', '.join(grids)}; "
        f"targets {', '.join(data.rules)}. Results may differ under others; the tables above show how far they differ "
        "among these."
    )
    missing = [c for c in strong_first(CONTROLS) if c not in data.controls]
    if missing:
        yield f"Controls that were not measured: {', '.join(missing)}."
    if "pixel" in grids:
        alone = ", which this run does not have" if len(grids) == 1 else ""
        yield (
            "On grid pixel a rough map (of gradients, say) fills scattered pixels and so changes texture everywhere. "
            "That alone can move the score, against one control more than against another. Compare explainers with "
            f"each other on a grid of cells{alone}, and look at the curves, not at the area alone."
        )


def _baselines(data: RunData) -> Iterator[str]:
    table = data.tables["baselines"]
    if len(table):
        yield answer.baseline_sentence(data)
    else:
        yield "Whether fills are valid baselines on the validation split was not measured in this run."
    rows = data.buckets
    rows = rows[data.primary.chosen(rows) & (rows["scale"] == "logodds") & (rows["control"] == "none")]
    rows = rows[(rows["bucket"] == "all") & (rows["explainer"] == data.primary.explainer)]
    rows = rows[(rows["grid"] == data.first.grid) & (rows["target_rule"] == data.first.rule)]
    found: dict[str, list[str]] = {}
    for r in page.rows_of(rows[rows["trial_id"].isin(data.whole)]):
        counts = f"{r.fill} {page.count(r.n_valid_baseline)} of {page.count(r.n)}"
        found.setdefault(str(r.trial_id), []).append(counts)
    if found:
        each = "; ".join(f"{data.name(trial_id)} {', '.join(counts)}" for trial_id, counts in found.items())
        yield (
            "On test the fully filled image is a valid baseline (at least 1 log-odds below the untouched image) for "
            f"this number of images, by model and fill: {each}. For any others curves end on an image that the "
            "model still takes for the target. Advantages share that end, absolute areas do not."
        )


def baseline_table(data: RunData) -> Iterator[Block]:
    """Each fill as a baseline, by model and target rule; nothing of an older run."""
    rows: list[list[Cell]] = [
        [
            data.name(r.trial_id),
            r.target_rule,
            r.fill,
            f"{page.count(r.n)} ({page.count(r.n_patients)})",
            page.count(r.n_valid),
            page.interval(r.share, r.lower, r.upper),
            page.number(r.mean_drop, sign=True),
            "yes" if r.valid else "no",
        ]
        for r in page.rows_of(data.tables["baselines"])
    ]
    if rows:
        head = ["model", "target rule", "fill", "validation images (patients)", "at least 1 log-odds lower", "share"]
        caption = (
            "Fills as baselines, on the validation split: images whose wholly filled image scores at least 1 log-odds "
            "of the target below the untouched one [95% interval]. Target rule pneumonia: of the images predicted "
            f"PNEUMONIA. Valid: a share of at least {baselines.VALID_SHARE:.0%}. The primary fill is the "
            "first that is valid for every model."
        )
        yield page.table(caption, [*head, "mean fall in log-odds", "valid"], rows)


def _meaning(data: RunData) -> Iterator[str]:
    yield (
        "Filled images are unlike any X-ray: part of every change is the model's answer to the fill. Advantages share "
        "it, absolute values do not."
    )
    yield (
        "An advantage means that filling what the map ranks high changes the score more than the control does. It does "
        "not mean that the model looks at disease."
    )
    if outside := data.sweep["explain"].get("maps"):
        yield (
            f"Maps from outside ({', '.join(outside)}) do not follow randomised weights, so that sanity does not test "
            "them: whether they depend on the model is not shown. They are the same for every model and target."
        )
    sanity = data.sweep.get("sanity")
    if sanity:
        yield f"Maps of randomised models were made for at most {sanity['images']} test images a model."
    stability = data.sweep.get("stability")
    if stability:
        yield f"Stability and infidelity were measured on at most {stability['images']} test images a model."
    shares = data.tables["saliency_summary"]
    if shares.loc[shares["quantity"] == "lung_share", "value"].isna().all():
        yield "There were no lung masks: shares of mass in the lungs are unknown, and H3 is not applicable."


def _statistics(data: RunData) -> Iterator[str]:
    yield "Under 19 draws an image has no p-value of its own. Under 20 patients a bucket has no interval."
    yield (
        "Holm's correction holds within one model, bucket, target rule, grid, fill, metric, level and scale. A page "
        "full of tables holds many such families. H1 to H3 are a family of their own."
    )
    table = data.tables["hypotheses"]
    for r in page.rows_of(table[(table["role"] == "verdict") & (table["verdict"] == NOT_APPLICABLE)]):
        yield f"{r.hypothesis} ({r.subject}) is not applicable: {page.known(r.reason)}"
    if len(data.buckets):
        r = next(page.rows_of(data.buckets))
        method = page.known(r.ci_method) or "bootstrap over patients"
        yield (
            f"Intervals of drops and advantages: {method}, {page.count(r.n_boot)} samples. They cover the choice of "
            "patients, not of training seeds."
        )


def errors(data: RunData) -> Block:
    """Rows of errors by stage and reason, the most frequent first."""
    table = data.tables["errors"]
    if table.empty:
        return page.text("No errors.")
    groups = sorted(table.groupby(["stage", "reason"], dropna=False), key=lambda group: -len(group[1]))
    rows: list[list[Cell]] = [
        [
            str(stage),
            page.wrapped(reason),
            str(len(part)),
            page.wrapped(", ".join(str(p) for p in part["path"].iloc[:3])),
        ]
        for (stage, reason), part in groups[:MOST_REASONS]
    ]
    left = len(groups) - len(rows)
    caption = f"Errors: {len(table)} rows" + (f"; the table errors holds {left} more reasons." if left else ".")
    return page.table(caption, ["stage", "reason", "rows", "examples"], rows)
