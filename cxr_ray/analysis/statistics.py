"""From an opened run to the rows of its statistics tables, one function a table.

Memory holds one trial's rows per image at a time, of `faithfulness` a group of them (``groups``), and for `hypotheses`,
which compare trials, the rows of the primary settings.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow.dataset as pads

from cxr_ray import results
from cxr_ray.analysis import (
    buckets,
    localisation_summary,
    lung_summary,
    primary,
    region_summary,
    saliency_summary,
    sanity_summary,
    stability_summary,
)
from cxr_ray.analysis.agreement import accuracy, plausibility, ranking, reliability, sign, truth, twins
from cxr_ray.analysis.classification import classification_rows
from cxr_ray.analysis.groups import groups
from cxr_ray.analysis.hypotheses import verdicts
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.measured import SCALE, Measured, Rows
from cxr_ray.analysis.summary import Model, Sampling, summarize
from cxr_ray.config import Sweep
from cxr_ray.errors import RunError
from cxr_ray.schemas import TABLES


def tables(measured: Measured, sweep: Sweep) -> Iterator[tuple[str, Rows]]:
    """(name, rows) of each statistics table; each is to be written before the next is asked for: some read others."""
    yield "classification", classification(measured)
    yield "summary", summary(measured)
    yield "hypotheses", hypothesis_rows(measured, sweep)
    for name, rows_of in DERIVED.items():
        yield name, rows_of(measured)


def classification(measured: Measured) -> Rows:
    """The rows of `classification`."""
    rows: Rows = []
    for trial_id in measured.explained:
        predictions = measured.predictions_of(trial_id)
        known = predictions[predictions["image_id"].isin(measured.patients.index)]
        known = known.assign(patient_id=known["image_id"].map(measured.patients))
        rows += classification_rows(known, trial_id, measured.seed)
    return rows


def summary(measured: Measured) -> Rows:
    """The rows of `summary`: families of tests lie within a model, grid and fill, which are read one at a time."""
    perturb = measured.sweep["perturb"]
    patients = measured.patients.reset_index()
    rows: Rows = []
    for trial_id in measured.explained:
        chosen = pads.field("trial_id") == trial_id
        degenerate = measured.run.pandas("saliency", ["explainer", "image_id", "target", "degenerate"], chosen)
        trial: Any = measured.trials.loc[trial_id]
        model = Model(trial_id, trial["variant"], None if pd.isna(trial["seed"]) else int(trial["seed"]))
        predictions = measured.predictions_of(trial_id)
        for grid, fill in itertools.product(map(str, perturb["grids"]), perturb["fills"]):
            found = [
                row
                for faithfulness in groups(measured.run, trial_id, grid, fill)
                for row in summarize(
                    faithfulness,
                    predictions,
                    patients,
                    degenerate,
                    model,
                    target_rules=measured.target_rules,
                    sampling=Sampling(measured.seed),
                )
            ]
            rows += sorted(found, key=_place(found))
    return rows


def _place(rows: Rows) -> Callable[[Mapping[str, Any]], int]:
    """Orders rows by bucket as one group has them, also where several follow one another."""
    key = operator.itemgetter("target_rule", "bucket", "matched")
    places = {block: i for i, block in enumerate(dict.fromkeys(map(key, rows)))}
    return lambda row: places[key(row)]


def hypothesis_rows(measured: Measured, sweep: Sweep) -> Rows:
    """The rows of `hypotheses`; of the large tables no more is read than they need."""
    chosen = of_explainer = pads.field("explainer") == measured.primary.explainer
    settings = measured.primary
    setting = {"scale": settings.scale, "grid": settings.first_grid, "fill": settings.fill}
    for name, value in setting.items():
        chosen &= pads.field(name) == value
    chosen &= settings.expression
    maps = ["trial_id", "explainer", "image_id", "target", "concentration"]
    gaps = ["trial_id", "image_id", "target", "control", "gap", "win_rate", "p_value"]
    lungs = ["trial_id", "image_id", "target", "control", "mask", "enrichment"]
    return verdicts.hypothesis_rows(
        Inputs(
            sweep,
            settings,
            measured.trials.reset_index(),
            measured.run.pandas("predictions"),
            measured.patients,
            measured.run.pandas("regions"),
            measured.run.pandas("saliency", maps, of_explainer),
            measured.run.pandas("faithfulness", gaps, chosen),
            _donor_swaps(measured),
            measured.run.pandas("lungs", lungs, of_explainer),
        )
    )


def _donor_swaps(measured: Measured) -> pd.DataFrame:
    """The table; no rows where an older version measured the run."""
    try:
        return measured.run.pandas("donor_swaps")
    except RunError:
        return pd.DataFrame(columns=[*TABLES["donor_swaps"].columns, "trial_id"])


def saliency_rows(measured: Measured) -> Rows:
    """The rows of `saliency_summary`."""
    rows: Rows = []
    for trial_id in measured.explained:
        maps = measured.of_trial("saliency", trial_id, list(saliency_summary.COLUMNS))
        lung_area = lung_summary.area_of(measured.of_trial("lungs", trial_id, list(lung_summary.OF_AREA)))
        for rule in measured.target_rules:
            same = {"trial_id": trial_id, "target_rule": rule}
            of_rule = buckets.of_rule(maps, measured.test_of(trial_id), rule)
            found = saliency_summary.saliency_rows(of_rule, measured.patients, lung_area, measured.seed)
            rows += [{**same, **row} for row in found]
    return rows


def lung_rows(measured: Measured) -> Rows:
    """The rows of `lung_summary`."""
    rows: Rows = []
    for trial_id in measured.explained:
        lungs = measured.of_trial("lungs", trial_id)
        for rule in measured.target_rules if len(lungs) else []:
            same = {"trial_id": trial_id, "target_rule": rule}
            of_rule = buckets.of_rule(lungs, measured.test_of(trial_id), rule)
            rows += [{**same, **row} for row in lung_summary.lung_rows(of_rule, measured.patients, measured.seed)]
    return rows


def localisation_rows(measured: Measured) -> Rows:
    """The rows of `localisation_summary`."""
    rows: Rows = []
    for trial_id in measured.explained:
        localisation = measured.of_trial("localisation", trial_id)
        for rule in measured.target_rules if len(localisation) else []:
            same = {"trial_id": trial_id, "target_rule": rule}
            of_rule = buckets.of_rule(localisation, measured.test_of(trial_id), rule)
            found = localisation_summary.localisation_rows(
                of_rule, measured.patients, f"{trial_id}, {rule}", measured.seed
            )
            rows += [{**same, **row} for row in found]
    return rows


def plausibility_points(measured: Measured, trial_id: str) -> pd.DataFrame:
    """Faithfulness in the primary settings beside localisation, image by image; no rows without expert truth."""
    settings = measured.primary
    localisation = measured.of_trial("localisation", trial_id)
    if localisation.empty:
        return localisation
    test = measured.test_of(trial_id)
    chosen = (pads.field("trial_id") == trial_id) & settings.expression & (pads.field("scale") == settings.scale)
    chosen &= (pads.field("grid") == settings.grid) & (pads.field("fill") == settings.fill)
    columns = ["image_id", "target", "explainer", "control", "gap", "win_rate"]
    faithfulness = measured.run.pandas("faithfulness", columns, chosen)
    return plausibility.points(
        *(buckets.of_rule(frame, test, settings.target_rule) for frame in (faithfulness, localisation))
    )


def region_rows(measured: Measured) -> Rows:
    """The rows of `region_summary`."""
    rows: Rows = []
    for trial_id in measured.explained:
        regions = measured.of_trial("regions", trial_id)
        if regions.empty:
            continue
        effects = region_summary.region_effects(regions)
        for rule in measured.target_rules:
            same = {"trial_id": trial_id, "target_rule": rule}
            of_rule = buckets.of_rule(effects, measured.test_of(trial_id), rule)
            rows += [{**same, **row} for row in region_summary.region_rows(of_rule, measured.patients, measured.seed)]
    return rows


def sanity_rows(measured: Measured) -> Rows:
    """The rows of `sanity_summary`."""
    rows: Rows = []
    for trial_id in measured.explained:
        sanity = measured.of_trial("sanity", trial_id)
        if sanity.empty:
            continue
        own = _own_gaps(measured, trial_id, sanity)
        for rule in measured.target_rules:
            same = {"trial_id": trial_id, "target_rule": rule}
            test = measured.test_of(trial_id)
            own_of_rule = buckets.of_rule(own, test, rule).set_index(["explainer", "image_id", "control"])["gap"]
            found = sanity_summary.sanity_rows(
                buckets.of_rule(sanity, test, rule), own_of_rule, measured.patients, measured.seed
            )
            rows += [{**same, **row} for row in found]
    return rows


def _own_gaps(measured: Measured, trial_id: str, sanity: pd.DataFrame) -> pd.DataFrame:
    """Gaps of a model's own maps in the setting of its rows of `sanity`, of the same images."""
    columns = ["image_id", "target", "explainer", "control", "gap"]
    compared = sanity[sanity["control"].notna()]
    if compared.empty:
        return pd.DataFrame(columns=columns)
    chosen = (pads.field("trial_id") == trial_id) & pads.field("image_id").isin(list(set(sanity["image_id"])))
    for name in ("scale", "metric", "grid", "fill"):
        chosen &= pads.field(name) == compared[name].iloc[0]
    if not pd.isna(level := compared["level"].iloc[0]):
        chosen &= pads.field("level") == level
    return measured.run.pandas("faithfulness", columns, chosen)


def stability_rows(measured: Measured) -> Rows:
    """The rows of `stability_summary`."""
    rows: Rows = []
    for trial_id in measured.explained:
        stability = measured.of_trial("stability", trial_id)
        for rule in measured.target_rules if len(stability) else []:
            same = {"trial_id": trial_id, "target_rule": rule}
            of_rule = buckets.of_rule(stability, measured.test_of(trial_id), rule)
            found = stability_summary.stability_rows(of_rule, measured.patients, measured.seed)
            rows += [{**same, **row} for row in found]
    return rows


def agreement(measured: Measured) -> Rows:
    """The rows of `agreement`; reads `classification` and `summary`."""
    settings, rows = measured.primary, []
    for trial_id in measured.explained:
        ranked = (pads.field("trial_id") == trial_id) & (pads.field("bucket") == "all")
        rows += ranking.ranking_rows(measured.run.pandas("summary", filter=ranked), trial_id, settings.key)
        rows += sign.sign_rows(
            measured.run.pandas("summary", filter=drop_contrasts(trial_id, settings)),
            trial_id,
            settings.explainer,
            settings.grid,
        )
        values = buckets.of_rule(measured.map_values(trial_id), measured.test_of(trial_id), settings.target_rule)
        primary_rows = ranked & settings.expression & (pads.field("scale") == SCALE)
        primary_rows &= (pads.field("target_rule") == settings.target_rule) & ~pads.field("contrast")
        advantages = measured.run.pandas("summary", filter=primary_rows)
        rows += reliability.reliability_rows(values, measured.patients, advantages, trial_id, measured.seed)
        regions = measured.of_trial("regions", trial_id)
        if len(regions):
            effects = region_summary.region_effects(regions)
            of_rule = buckets.of_rule(effects, measured.test_of(trial_id), settings.target_rule)
            rows += truth.truth_rows(truth.truth_points(of_rule), trial_id, settings.target_rule)
        both = plausibility_points(measured, trial_id)
        if len(both):
            rows += plausibility.plausibility_rows(
                both, measured.patients, trial_id, settings.target_rule, measured.seed
            )
    over_all = settings.expression & (pads.field("bucket") == "all")
    models = accuracy.accuracy_and_gaps(
        measured.run.pandas("classification"),
        measured.trials.reset_index(),
        measured.run.pandas("summary", filter=over_all),
        settings,
    )
    rows += accuracy.accuracy_rows(models)
    logits = ["trial_id", "image_id", "logit_pneumonia"]
    test = measured.run.pandas("predictions", logits, pads.field("split") == "test")
    return rows + twins.twin_rows(test, measured.explained)


def drop_contrasts(trial_id: str, settings: primary.PrimarySettings) -> pads.Expression:
    """The rows of `summary` that kind sign of `agreement` is about."""
    chosen = (pads.field("trial_id") == trial_id) & pads.field("contrast") & (pads.field("metric") == "drop")
    chosen &= (pads.field("explainer") == settings.explainer) & (pads.field("grid") == settings.grid)
    return chosen & (pads.field("control") == "none")


DERIVED: dict[str, Callable[[Measured], Rows]] = {
    "saliency_summary": saliency_rows,
    "lung_summary": lung_rows,
    "localisation_summary": localisation_rows,
    "region_summary": region_rows,
    "sanity_summary": sanity_rows,
    "stability_summary": stability_rows,
    "comparisons": lambda measured: measured.ranked[0],
    "ranks": lambda measured: measured.ranked[1],
    "agreement": agreement,
}


def table(run: results.Run, name: str) -> pd.DataFrame:
    """A table of DERIVED: the run's own, or computed from its other tables where an older version wrote the run.

    Raises:
        RunError: the run lacks a table that these come from.
    """
    try:
        return run.pandas(name)
    except RunError:
        if name not in DERIVED:
            raise
        return TABLES[name].from_rows(DERIVED[name](Measured(run))).to_pandas()


def test_metrics(measured: Measured, classes: Rows) -> dict[str, Any]:
    """The best trial's figures on the test split: chosen by val_auroc, never by test."""
    at_half = {r["trial_id"]: r for r in classes if r["split"] == "test" and r["threshold_rule"] == "half"}
    candidates = measured.trials[measured.trials.index.isin(list(at_half))]
    if candidates.empty:
        return {}
    best = candidates.sort_values("val_auroc", ascending=False, kind="stable", na_position="last").index[0]
    outcome = measured.test_of(best)["outcome"]
    outcomes = {name: int((outcome == name).sum()) for name in ("TP", "FP", "TN", "FN")}
    figures = {name: value for name, value in at_half[best].items() if name.upper() not in outcomes}
    return {**figures, **outcomes, "chosen_by": "val_auroc"}
