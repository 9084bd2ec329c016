"""Turns a run into one that schema version 2 wrote: its names of columns and values, and its tables alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LATER_TABLES = (
    *("saliency_summary", "region_summary", "sanity_summary", "agreement", "comparisons", "ranks"),
    *("lungs", "lung_summary", "localisation", "localisation_summary", "verdicts"),
    *("stability", "stability_summary"),
)
LATER_COLUMNS = {
    "classification": ("tp", "fp", "tn", "fn"),
    "faithfulness": ("overlap",),
    "hypotheses": ("lower_90", "upper_90", "margin_low", "margin_high", "about"),
    "summary": (
        *("control_mean", "overlap", "n_valid_baseline", "n_negative"),
        *("mean_p", "mean_p_holm", "win_lower", "win_upper", "hardest", "beaten"),
    ),
}
OLD_NAMES = {
    "saliency": {"concentration": "focus"},
    "curves": {"direction": "order"},
    "faithfulness": {"win_rate": "u"},
    "summary": {"win_rate": "effect"},
}
OLD_VALUES = {
    ("saliency", "focus"): {"compact": "localized"},
    ("regions", "fill"): {"patch_swap": "exchange", "counterfactual": "rerender"},
    ("hypotheses", "role"): {"secondary": "beside"},
    ("errors", "stage"): {"patch_swap": "exchange"},
}


def to_version_2(out: str | Path) -> str:
    """Rewrites the run in place; returns its path."""
    tables = Path(out, "tables")
    for name in LATER_TABLES:
        shutil.rmtree(tables / name)
    for file in tables.rglob("*.parquet"):
        name = file.relative_to(tables).parts[0]
        pq.write_table(older(name, pq.ParquetFile(file).read()), file)
    Path(out, "primary.json").unlink()
    provenance = Path(out, "provenance.json")
    provenance.write_text(json.dumps({**json.loads(provenance.read_text()), "schema_version": 2}))
    return str(out)


def older(name: str, table: pa.Table) -> pa.Table:
    """A table of today as version 2 wrote it."""
    table = table.drop_columns(list(LATER_COLUMNS.get(name, ())))
    if name == "faithfulness":
        table = _set(table, "win_rate", pc.subtract(table["win_rate"], 0.5).cast(pa.float32()))
    names = OLD_NAMES.get(name, {})
    table = table.rename_columns([names.get(c, c) for c in table.column_names])
    for (of_table, column), values in OLD_VALUES.items():
        for new, old in values.items() if of_table == name else ():
            table = _set(table, column, pc.if_else(pc.equal(table[column], new), old, table[column]))
    return table


def _set(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)
