"""Tables of runs that an earlier version wrote, under today's names of columns and values."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.schemas import COUNTERFACTUAL, PATCH_SWAP, TABLES


def _renamed(table: pa.Table, old: str, new: str) -> pa.Table:
    return table.rename_columns([new if name == old else name for name in table.column_names])


def _replaced(table: pa.Table, column: str, values: dict[str, str]) -> pa.Table:
    text = table[column]
    for old, new in values.items():
        text = pc.if_else(pc.equal(text, old), new, text)
    return table.set_column(table.column_names.index(column), column, text)


def _saliency(table: pa.Table) -> pa.Table:
    """Version 2 called a map localized whose mass was half in 15% of the area, in one piece or many."""
    return _replaced(_renamed(table, "focus", "concentration"), "concentration", {"localized": "compact"})


def _faithfulness(table: pa.Table) -> pa.Table:
    """u was the win rate minus 1/2."""
    at = table.column_names.index("u")
    return table.set_column(at, "win_rate", pc.add(table["u"].cast(pa.float64()), 0.5).cast(pa.float32()))


FROM_2: dict[str, Callable[[pa.Table], pa.Table]] = {
    "saliency": _saliency,
    "curves": lambda table: _renamed(table, "order", "direction"),
    "faithfulness": _faithfulness,
    "regions": lambda table: _replaced(table, "fill", {"exchange": PATCH_SWAP, "rerender": COUNTERFACTUAL}),
    "summary": lambda table: _renamed(table, "effect", "win_rate"),
    "hypotheses": lambda table: _replaced(table, "role", {"beside": "secondary"}),
    "errors": lambda table: _replaced(table, "stage", {"exchange": PATCH_SWAP}),
}


def upgraded(name: str, table: pa.Table) -> pa.Table:
    """A table of schema version 2 in today's schema, partition columns last; what it did not hold is null."""
    table = FROM_2.get(name, lambda same: same)(table)
    wanted = [*TABLES[name].schema, *(pa.field(p, pa.string()) for p in TABLES[name].partitions)]
    columns = [table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type) for f in wanted]
    return pa.table(columns, schema=pa.schema([f.remove_metadata() for f in wanted]))
