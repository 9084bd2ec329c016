"""Steps of a sequential verdict: one image of each patient, patients in random order, a win or a loss for each control.

A step is a patient: images of one patient depend on each other, and a bet on each of them would count a patient twice.

Shapes: P (image, target) pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from cxr_ray.config import Sweep
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.curves import Axes, Curves
from cxr_ray.measure.donors import DonorMaps
from cxr_ray.measure.faithfulness import compare
from cxr_ray.measure.map_rankings import MapRankings
from cxr_ray.measure.metrics import METRICS
from cxr_ray.measure.shards import Comparison
from cxr_ray.measure.shared import SharedControls
from cxr_ray.randomness import key

WINS = pa.schema(
    [
        ("image_id", pa.string()),
        ("explainer", pa.string()),
        ("target", pa.int32()),
        ("control", pa.string()),
        ("win", pa.float64()),  # 1: the map is more faithful than the draw; 1/2: a tie; null: no map, or no such draw
    ]
)
SECONDS = b"seconds"  # in the metadata of a table of wins: what it took the worker


def in_random_order(patient_of: Mapping[str, str], seed: int) -> list[str]:
    """One image of each patient, patients in random order: a function of the seed and the ids alone.

    Args:
        patient_of: image_id to patient_id.
        seed: the sweep's.

    >>> len(in_random_order({"a": "p", "b": "p", "c": "q"}, 0))
    2
    """
    first: dict[str, str] = {}
    for image_id in sorted(patient_of, key=lambda i: key(seed, i, "verdict image")):
        first.setdefault(patient_of[image_id], image_id)
    return [first[p] for p in sorted(first, key=lambda p: key(seed, p, "verdict patient"))]


def verdict_sweep(sweep: Sweep, grid: str, fill: str, metric: str) -> Sweep:
    """The sweep with what verdicts need alone: one grid and fill, one draw of each control.

    Args:
        sweep: with a section ``verdicts``.
        grid, fill: on which maps are compared.
        metric: by which; it says which directions are scored.
    """
    assert sweep.verdicts is not None  # else there are none
    directions = list(METRICS[metric].directions)
    return sweep.model_copy(
        update={
            "explain": sweep.explain.model_copy(update={"explainers": explainers_of(sweep), "maps": {}}),
            "perturb": sweep.perturb.model_copy(update={"grids": [grid], "fills": [fill], "orders": directions}),
            "controls": dict.fromkeys(sweep.verdicts.controls, 1),
            "sequential": None,
            "regions": None,
            "sanity": None,
            "stability": None,
        }
    )


def explainers_of(sweep: Sweep) -> list[str]:
    """The explainers and maps from outside of ``verdicts``, in the order of ``explain``."""
    asked = sweep.verdicts.explainers if sweep.verdicts else []
    return [e for e in sweep.explain.names if e in asked or not asked]


def narrowed(sweep: Sweep, comparisons: Iterable[Comparison]) -> Sweep:
    """A ``verdict_sweep`` with the explainers, target rules and controls of these comparisons alone."""
    comparisons = list(comparisons)
    rules, controls = ({getattr(c, name) for c in comparisons} for name in ("target_rule", "control"))
    targets = [rule for rule in sweep.explain.targets if rule in rules]
    return sweep.model_copy(
        update={
            "explain": sweep.explain.model_copy(update={"targets": targets}),
            "controls": {c: n for c, n in sweep.controls.items() if c in controls},
        }
    )


def wins(batch: Batch, comparisons: Iterable[Comparison], donor_maps: DonorMaps) -> pa.Table:
    """Each map against one draw of each control that is asked for, draw 0, as WINS.

    Args:
        batch: images of a ``narrowed`` sweep.
        comparisons: those that are not decided yet.
        donor_maps: the maps of all images.
    """
    started, comparisons = time.monotonic(), list(comparisons)
    axes = Axes.of(batch, batch.sweep.perturb.grids[0])
    shared = SharedControls(batch).on_grid(axes.grid)
    trial_id, compared = batch.shard.trial_id, []
    for explainer in dict.fromkeys(c.explainer for c in comparisons):
        maps = donor_maps.maps(trial_id, explainer, batch.pairs.keys())
        if maps is None:  # the explainer failed in the map pass: an entry in errors says so
            continue
        asked = {c.control for c in comparisons if c.explainer == explainer}
        map_rankings = MapRankings(batch, explainer, maps, donor_maps)
        map_rankings.controls = {c: 1 for c in map_rankings.controls if c in asked}
        curves = map_rankings.scored(axes)
        own = curves.pop("none")
        of_controls = curves | {control: of for control, of in shared.items() if control in asked}
        compared += [(explainer, control, own, of) for control, of in of_controls.items()]
    parts = [_rows(batch, *names_and_curves) for names_and_curves in compared]  # all under way before the first is read
    table = pa.concat_tables(parts) if parts else WINS.empty_table()
    return table.replace_schema_metadata({SECONDS: str(time.monotonic() - started)})


def _rows(batch: Batch, explainer: str, control: str, own: Curves, of_control: Curves) -> pa.Table:
    """The wins of one explainer over one control: those of ``faithfulness`` in the metric that is tested."""
    higher = np.array([METRICS[own.axes.primary[0]].higher_is_faithful])
    value_PM, control_PDM = own.primary[:, 0], of_control.primary
    win_P = compare(value_PM, control_PDM, higher)["win_rate"][:, 0]
    columns = {
        "image_id": batch.pairs.ids,
        "explainer": [explainer] * len(win_P),
        "target": batch.pairs.target,
        "control": [control] * len(win_P),
        "win": win_P,
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type, from_pandas=True) for f in WINS}, schema=WINS)
