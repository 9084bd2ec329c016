"""Whether maps change when the model's weights are randomised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cxr_ray.analysis.sanity_summary import FAITHFULNESS, LIKENESS
from cxr_ray.measure.metrics import METRICS
from cxr_ray.report import page
from cxr_ray.report.figures import maps
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.page import Block, Cell
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models

QUANTITIES = (*LIKENESS, *FAITHFULNESS)
COMPARED = {"cascade": "weights randomised down to", "labels": "a model of shuffled labels:"}
NOTE = (
    "A map that does not change when the weights do cannot explain the model (sanity checks for saliency maps, Adebayo "
    "et al. 2018)."
)


def section(data: RunData, folder: Folder) -> Section:
    """Figure and table of each model that is shown whole."""
    return Section(
        "sanity",
        "Sanity: do maps depend on the weights?",
        [NOTE],
        models=of_models(data, folder, of_model),
        otherwise="The run has no randomised models (sanity: null, or an older run).",
        level=3,
    )


def of_model(data: RunData, folder: Folder, trial_id: str) -> Iterator[Block]:
    """Likeness and advantage by explainer and layer."""
    rule = data.first.rule
    rows = data.of_model("sanity_summary", trial_id)
    rows = rows[rows["target_rule"] == rule]
    if rows.empty:
        return
    means = _wide(rows)
    cascade = means[means["mode"] == "cascade"]
    if len(cascade):
        layers = (data.sweep.get("sanity") or {}).get("layers") or list(dict.fromkeys(cascade["layer"]))
        title = f"{data.name(trial_id)}: maps of a randomised model, target rule {rule}"
        yield folder.picture(
            maps.sanity(cascade, layers, data.explainers, title),
            f"sanity-{trial_id}.svg",
            f"Likeness and advantage of maps as weights are randomised, model {data.name(trial_id)}",
            "Left and middle: likeness to the trained model's own map (1: nothing changed, so the map does not depend "
            "on the weights). Right: the randomised model's map put through the same test on the trained model; none: "
            "the trained model's own map. Mean and 95% interval over patients (no bar: under 20 patients).",
        )
    measured = rows[rows["control"].notna()]
    yield _table(means, f"target rule {rule}{_setting(measured)}", data.name(trial_id))


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each explainer, mode and layer; a column for each quantity and its bounds."""
    columns = ["explainer", "mode", "layer", "n", "n_patients", "control"]
    columns += [f"{q}{end}" for q in QUANTITIES for end in ("", "_lower", "_upper")]
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in page.rows_of(rows):
        row = found.setdefault(
            (r.explainer, r.mode, r.layer), {"explainer": r.explainer, "mode": r.mode, "layer": r.layer}
        )
        row |= {r.quantity: r.mean, f"{r.quantity}_lower": r.lower, f"{r.quantity}_upper": r.upper}
        if r.quantity == LIKENESS[0]:
            row |= {"n": r.n, "n_patients": r.n_patients}
        elif page.known(r.control):
            row["control"] = r.control
    return pd.DataFrame(list(found.values()), columns=columns)


def _setting(measured: pd.DataFrame) -> str:
    """What the advantage was measured with; empty where it was not."""
    if measured.empty:
        return ""
    r = next(page.rows_of(measured))
    level = "" if pd.isna(r.level) else f" at level {r.level:g}"
    return (
        f"; advantage: in {METRICS[r.metric].label}{level}, {SCALES[r.scale]}, grid {r.grid}, fill {r.fill}, over "
        f"{', '.join(dict.fromkeys(measured['control']))}; above 0: more faithful than the control"
    )


def _table(means: pd.DataFrame, where: str, name: str) -> Block:
    rows: list[list[Cell]] = [
        [
            r["explainer"],
            f"{COMPARED.get(r['mode'], r['mode'])} {r['layer']}",
            f"{page.count(r['n'])} ({page.count(r['n_patients'])})",
            *(page.bounds(r, q, sign=q.endswith("gap")) for q in QUANTITIES),
        ]
        for r in means.to_dict("records")
    ]
    head = ["explainer", "compared with", "images (patients)", "Spearman", "Spearman of |map|", "SSIM"]
    head += ["advantage of its map", "advantage of the model's own map, same images"]
    caption = (
        f"Sanity: likeness of the maps of a model without training to those of {name} (1: the same "
        "map) [95% "
        f"interval]; {where}."
    )
    return page.table(caption, head, rows)
