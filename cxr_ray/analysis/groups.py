"""Rows of `faithfulness` in groups that fit into memory: whole families of tests, one model, grid and fill at a time.

Statistics of a family (metric, level, scale) need no row of another. A small run is one group; of a large one each
family is read on its own. A repeated text is held as a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from cxr_ray.analysis.cells import COLUMN
from cxr_ray.results import Run

ROWS = 2**21  # of a model, up to which its families are read together: about 250 MiB
FAMILY = ("metric", "level", "scale")
NUMBERS = ("value", "gap", "win_rate", "control_mean", "overlap", "baseline_valid", "n_draws")
USED = ("image_id", "target", *COLUMN, *NUMBERS)  # of the columns


def groups(run: Run, trial_id: str, grid: str, fill: str) -> Iterator[pd.DataFrame]:
    """USED columns of a model's rows in one grid and fill, families in ascending order; no rows, no group."""
    of_trial = pads.field("trial_id") == trial_id
    chosen = of_trial & (pads.field("grid") == grid) & (pads.field("fill") == fill)
    if run.count_rows("faithfulness", of_trial) <= ROWS:
        frame = coded(run, "faithfulness", USED, chosen)
        if len(frame):
            yield frame
        return
    for metric, level, scale in _families(run, chosen):
        of_level = pads.field("level").is_null() if np.isnan(level) else pads.field("level") == level
        yield coded(
            run,
            "faithfulness",
            USED,
            chosen & (pads.field("metric") == metric) & of_level & (pads.field("scale") == scale),
        )


def coded(run: Run, table: str, columns: Sequence[str], chosen: pads.Expression) -> pd.DataFrame:
    """Columns of the chosen rows, texts as categories in ascending order, read a batch at a time."""
    batches = run.batches(table, columns=list(columns), filter=chosen)
    parts = [_coded(batch) for batch in batches if len(batch)]
    if not parts:
        return run.pandas(table, list(columns), chosen)
    frame: pd.DataFrame = pa.Table.from_batches(parts).unify_dictionaries().to_pandas()
    for name in frame.select_dtypes("category"):
        frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
    return frame


def _coded(batch: pa.RecordBatch) -> pa.RecordBatch:
    arrays = [pc.dictionary_encode(a) if pa.types.is_string(a.type) else a for a in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _families(run: Run, chosen: pads.Expression) -> list[tuple[str, float, str]]:
    """Metric, level (NaN: an area) and scale of each family."""
    found: set[tuple[Any, ...]] = set()
    for batch in run.batches("faithfulness", columns=list(FAMILY), filter=chosen):
        rows = pa.Table.from_batches([batch]).group_by(list(FAMILY)).aggregate([]).to_pylist()
        found |= {tuple(row.values()) for row in rows}
    order = sorted(found, key=lambda f: (f[0], np.inf if f[1] is None else f[1], f[2]))
    return [(metric, np.nan if level is None else level, scale) for metric, level, scale in order]
