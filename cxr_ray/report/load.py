"""Reads a run for its page. Of a run that an older version wrote, what it lacks is made from what it has."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.analysis import primary, statistics
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.config import explained
from cxr_ray.errors import RunError
from cxr_ray.report.rundata import WHOLE_MODELS, RunData
from cxr_ray.results import Run
from cxr_ray.schemas import TABLES

NEEDED = {"name", "data", "explain", "perturb", "controls", "seed"}  # sections of every sweep
FIRST_WITH_ALL = 3  # the schema version of the columns in LATER
LATER = {
    "classification": ("tp", "fp", "tn", "fn"),
    "summary": (
        *("control_mean", "n_valid_baseline", "n_negative"),
        *("mean_p", "mean_p_holm", "win_lower", "win_upper", "hardest", "beaten"),
    ),
}
REMADE = {"classification": statistics.classification, "summary": statistics.summary}


def load(run: Run) -> RunData:
    """The run's tables in the order of the page.

    Raises:
        RunError: the folder holds no finished run.
    """
    sweep = run.sweep
    images = run.pandas("images", ["image_id", "path", "patient_id"], pc.field("split") == "test")
    if lacking := NEEDED - set(sweep):
        raise RunError(
            f"got {run.path}/sweep.yaml without {', '.join(sorted(lacking))}; expected the sweep of a run; run the "
            "sweep again."
        )
    settings = primary.of_run(run)
    trials = run.pandas("trials").sort_values("val_auroc", ascending=False, kind="stable", na_position="last")
    predictions = run.pandas("predictions")
    explained = set(predictions["trial_id"])
    models = [t for t in trials["trial_id"] if t in explained]
    tables = {name: statistics.table(run, name) for name in statistics.DERIVED}
    tables |= {"classification": completed(run, "classification"), "images": images}
    tables |= {name: optional(run, name) for name in ("hypotheses", "verdicts", "baselines", "errors")}
    return RunData(
        run=run,
        sweep=sweep,
        provenance=provenance(run),
        primary=settings,
        models=models,
        trials=trials,
        summary=summary(run, settings, models),
        predictions=predictions[predictions["split"] == "test"],
        tables=tables,
    )


def summary(run: Run, settings: primary.PrimarySettings, models: list[str]) -> pd.DataFrame:
    """Sorted; of models after the first WHOLE_MODELS the primary metric alone."""
    wanted = pc.field("trial_id").isin(pa.array(models[:WHOLE_MODELS], pa.string()))
    wanted |= settings.expression & (pc.field("scale") == settings.scale)
    table, sweep = completed(run, "summary", wanted), run.sweep
    orders = {"explainer": explained(sweep), "bucket": BUCKETS, "fill": sweep["perturb"]["fills"]}
    ranks = {column: {name: i for i, name in enumerate(order)} for column, order in orders.items()}
    by = [*orders, "level"]
    return table.sort_values(by, key=lambda c: c.map(ranks[c.name]) if c.name in ranks else c, kind="stable")


def completed(run: Run, name: str, wanted: Any = None) -> pd.DataFrame:
    """A table, or the rows wanted of it; the columns that an older run lacks are computed, its own are kept."""
    table = run.pandas(name, filter=wanted)
    later = list(LATER[name])
    if run.schema_version >= FIRST_WITH_ALL or table.empty:
        return table
    key = list(TABLES[name].key)
    made = TABLES[name].from_rows(REMADE[name](statistics.Measured(run))).to_pandas()
    return table.drop(columns=later).merge(made[[*key, *later]], on=key, how="left")


def optional(run: Run, name: str) -> pd.DataFrame:
    """A table that an older run may lack; then one without rows."""
    try:
        return run.pandas(name)
    except RunError:
        return TABLES[name].from_rows([]).to_pandas()


def provenance(run: Run) -> dict[str, Any]:
    """Where the run was made; nothing where that was lost."""
    try:
        return run.json("provenance.json")
    except (OSError, RunError):
        return {}
