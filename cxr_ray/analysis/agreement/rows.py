"""A row of the table `agreement`."""

from __future__ import annotations

from typing import Any

from cxr_ray.schemas import AGREEMENT


def row(kind: str, subject: str, axis: str, **values: Any) -> dict[str, Any]:
    """A row with these values; the other columns are null.

    Raises:
        ValueError: a column that the table does not have.
    """
    if unknown := set(values) - set(AGREEMENT.columns):
        raise ValueError(f"got the columns {sorted(unknown)}; expected those of the table agreement.")
    return {**dict.fromkeys(AGREEMENT.columns), "kind": kind, "subject": subject, "axis": axis, **values}
