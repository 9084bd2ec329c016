"""Statistics of a run: the tables that ``analysis`` computes from those of the shards, and test_metrics.json."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pyarrow.dataset as pads

from cxr_ray import results
from cxr_ray.analysis import class_order, statistics
from cxr_ray.config import Sweep
from cxr_ray.measure import sanity
from cxr_ray.storage import Store

N_TABLES = 3 + len(statistics.DERIVED)  # classification, summary, hypotheses, and what is derived from them


def write_statistics(sweep: Sweep, store: Store, told: Callable[[], None] = lambda: None) -> None:
    """Write the statistics tables, rows of sanity that compare stored maps, and test_metrics.json.

    ``told``: called after each of the N_TABLES.
    """
    run = results.open_run(store.out)
    measured = statistics.Measured(run)
    if sweep.sanity is not None and sweep.explain.keep_maps:
        pairs = sanity.shuffled_models(measured.trials.loc[measured.explained].reset_index())
        explainers = sanity.narrowed(sweep).explain.explainers
        for trial_id, table in sanity.label_rows(pairs, explainers, lambda t, e: _kept_maps(run, t, e)):
            store.write_part("sanity", trial_id, "labels", table)
    written = {}
    for name, rows in statistics.tables(measured, sweep):
        store.write_table(name, rows)
        written[name] = rows
        told()
    _ask_of_class_order(measured, pd.DataFrame(written["classification"]), store)
    store.write_json(statistics.test_metrics(measured, written["classification"]), "test_metrics.json")


def _ask_of_class_order(measured: statistics.Measured, classification: pd.DataFrame, store: Store) -> None:
    """Add a row to ``errors`` for each model that may have its classes the other way round."""
    asked = class_order.questions(classification, measured.trials.reset_index())
    before = [row for row in measured.run.arrow("errors").to_pylist() if not row["stage"].startswith(class_order.STAGE)]
    store.write_table("errors", [*before, *class_order.error_rows(asked)])


def _kept_maps(run: results.Run, trial_id: str, explainer: str) -> pd.DataFrame:
    chosen = (pads.field("trial_id") == trial_id) & (pads.field("explainer") == explainer)
    return run.pandas("saliency", ["image_id", "target", "map", "map_height", "map_width"], chosen)
