"""Tables of made-up values."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from cxr_ray.schemas import TABLES, Table


def explainers(name: str) -> tuple[str, ...]:
    return ("gradcam", "saliency") if "explainer" in TABLES[name].partitions else ("",)


def made_table(table: Table, rows: Iterable[int]) -> pa.Table:
    """Row i of made-up values: names that end in i, the numbers i and i + 0.5, a null in every fourth float."""

    def value(field: pa.Field, i: int) -> Any:
        if pa.types.is_string(field.type):
            return f"{field.name}{i}"
        if pa.types.is_boolean(field.type):
            return i % 2 == 0
        if pa.types.is_list(field.type):
            return [float(i), i + 0.5]
        if pa.types.is_floating(field.type):
            return None if i % 4 == 3 else i + 0.5
        return i

    return table.build({field.name: [value(field, i) for i in rows] for field in table.schema})
