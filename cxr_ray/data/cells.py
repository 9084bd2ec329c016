"""The cells of tables that people bring: Parquet as text, and what separates the cells of a text file."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

_SEPARATORS = ",;\t"


def separator_of(text: str) -> str:
    r"""What separates cells: comma, semicolon or tab, as the first line has most of.

    >>> separator_of("image;x;y\na,b;1;2")
    ';'
    """
    return max(_SEPARATORS, key=text.split("\n", 1)[0].count)


def parquet_cells(data: bytes) -> pd.DataFrame:
    """A Parquet file's cells as text, empty where there is nothing; whole numbers are exact, also beside empty cells.

    Raises:
        ValueError, OSError, pa.ArrowException: no Parquet file, or a column of lists.
    """
    table = pq.read_table(io.BytesIO(data))
    columns = {}
    for n, name in enumerate(table.column_names):
        cells = table.column(n).to_pylist()  # pandas makes float64 of int64 beside an empty cell
        if any(isinstance(cell, list) for cell in cells):
            raise ValueError(f"the column {name!r} holds lists, not one value a row")
        columns[n] = [_text(cell) for cell in cells]
    return pd.DataFrame(columns, dtype=str).set_axis(table.column_names, axis=1)


def _text(cell: Any) -> str:
    if isinstance(cell, bytes):  # text that its writer did not mark as such
        return cell.decode(errors="replace")
    return "" if cell is None or cell != cell or cell is pd.NaT else str(cell)  # NaN differs from itself
