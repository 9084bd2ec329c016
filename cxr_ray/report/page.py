"""What a page is made of: numbers as texts, and blocks (tables, texts, details) that the template draws."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from cxr_ray.measure.controls import CONTROLS

Block = dict[str, Any]  # what the template draws: a table, a picture, a text, cards, or details with blocks


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign; one digit and a power of ten where it would round to 0; en dash for none."""
    if pd.isna(value):
        return "–"
    value = round(float(value), 12)  # what rounding left of a 0 is 0
    plus = "+" if sign and value else ""
    text = f"{value:{plus}.{digits}f}"
    return (text if float(text) or not value else f"{value:{plus}.0e}").replace("-", "−")


def interval(value: Any, lower: Any, upper: Any, *, sign: bool = False) -> str:
    """value [lower, upper]; the value alone where there is no interval."""
    text = number(value, sign=sign)
    return (
        text if pd.isna(lower) or pd.isna(value) else f"{text} [{number(lower, sign=sign)}, {number(upper, sign=sign)}]"
    )


def p_text(p: Any) -> str:
    """A p-value to three digits, never 0."""
    return "–" if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def value(r: Any, sign: bool = True) -> str:
    """The mean of a row of ``summary`` with its interval."""
    return interval(r.mean, r.lower, r.upper, sign=sign)


def bounds(r: Mapping[Any, Any], name: str, sign: bool = True) -> str:
    """A column of a record with those of its bounds."""
    return interval(r[name], r[f"{name}_lower"], r[f"{name}_upper"], sign=sign)


def share(count: int, of: int) -> str:
    """A count, and what share of the whole it is."""
    return f"{count} ({count / of:.0%})" if of else str(count)


def draws_text(n: int) -> str:
    """How many draws, in words."""
    return f"{n}\u00a0draw" + "s" * (n != 1)


def strength(control: str) -> tuple[int, str]:
    """Sorts controls, the strongest first."""
    return -CONTROLS[control].strength, control


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Block:
    """A cell is a text, or {"text", "sub", "strong", "wrap", "look"}."""
    rows = [list(r) for r in rows]
    first = [str(r[0]) for r in rows]
    grouped = len(set(first)) < len(first)  # then a line parts the groups
    return {"kind": "table", "caption": caption, "head": list(head), "rows": rows, "grouped": grouped}


def text(text: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "text": text}


def details(title: str, blocks: Iterable[Block]) -> Block:
    """Blocks that open on a click."""
    return {"kind": "details", "title": title, "blocks": list(blocks)}


def base64_of(content: bytes) -> str:
    """Bytes as a data URI holds them."""
    return base64.b64encode(content).decode()


def said(text: Any) -> str:
    """A text of a table, empty where it holds none."""
    return text if isinstance(text, str) else ""
