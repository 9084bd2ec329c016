"""Building blocks of the page: numbers as texts, and blocks (tables, texts, pictures) that the template draws."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pandas as pd
from markupsafe import Markup

from cxr_ray.report.figures.drawing import ink_styles

Block = dict[str, Any]  # a table, a picture, a text, cards, or details with blocks
Cell = str | dict[str, Any]  # a text, or {"text", "sub", "strong", "wrap", "look"}
NONE = "\N{EN DASH}"


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign; one digit and a power of ten where it would round to 0; en dash for none.

    >>> number(-1.5), number(0.5, 2, sign=True), number(0.00004), number(None)
    ('−1.500', '+0.50', '4e−05', '–')
    """
    if pd.isna(value):
        return NONE
    value = round(float(value), 12)  # rounding may have left a trace where the value is 0
    plus = "+" if sign and value else ""
    text = f"{value:{plus}.{digits}f}"
    return (text if float(text) or not value else f"{value:{plus}.0e}").replace("-", "−")


def interval(value: Any, lower: Any, upper: Any, *, sign: bool = False) -> str:
    """value [lower, upper]; the value alone where there is no interval.

    >>> interval(0.5, 0.25, 0.75), interval(0.5, None, None)
    ('0.500 [0.250, 0.750]', '0.500')
    """
    text = number(value, sign=sign)
    if pd.isna(lower) or pd.isna(value):
        return text
    return f"{text} [{number(lower, sign=sign)}, {number(upper, sign=sign)}]"


def bounds(r: Mapping[Any, Any], name: str, sign: bool = True) -> str:
    """A column of a record with its bounds."""
    return interval(r[name], r[f"{name}_lower"], r[f"{name}_upper"], sign=sign)


def mean(r: Any, sign: bool = True) -> str:
    """The mean of a row of a summary with its interval."""
    return interval(r.mean, r.lower, r.upper, sign=sign)


def count(value: Any) -> str:
    """A whole number; en dash for none.

    >>> count(3.0), count(None)
    ('3', '–')
    """
    return NONE if pd.isna(value) else str(int(value))


def images(r: Any) -> str:
    """Images and patients of a row: 60 (50)."""
    return f"{count(r.n)} ({count(r.n_patients)})"


def counted(n: Any, noun: str) -> str:
    """A number of things, in words.

    >>> counted(1, "image"), counted(2, "image")
    ('1 image', '2 images')
    """
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def percent(value: Any, digits: int = 0) -> str:
    """A share as a percentage; en dash for none.

    >>> percent(0.125), percent(0.125, 1)
    ('12%', '12.5%')
    """
    return NONE if pd.isna(value) else f"{value:.{digits}%}"


def p_text(p: Any) -> str:
    """A p-value to three digits, never 0.

    >>> p_text(0.0421), p_text(0.0001)
    ('0.042', '<0.001')
    """
    return NONE if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def draws_text(n: int) -> str:
    """A number of draws, in words."""
    return f"{n}\N{NO-BREAK SPACE}draw" + "s" * (n != 1)


def known(text: Any) -> str:
    """A text of a table, empty where it holds none."""
    return text if isinstance(text, str) else ""


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows, a column an attribute; their types are the tables', which pandas does not know.

    Column by column: ``itertuples`` takes each text of an Arrow column on its own.
    """
    columns = [frame[name].tolist() for name in frame.columns]
    yield from (SimpleNamespace(**dict(zip(frame.columns, row, strict=True))) for row in zip(*columns, strict=True))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Block:
    """A table; where the first column repeats, a line parts the groups."""
    rows = [list(r) for r in rows]
    first = [r[0] for r in rows if isinstance(r[0], str)]
    grouped = len(set(first)) < len(first)
    return {"kind": "table", "caption": caption, "head": list(head), "rows": rows, "grouped": grouped}


def text(text: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "text": text}


def note(text: str) -> Block:
    """A paragraph that must not be missed."""
    return {"kind": "note", "text": text}


def wrapped(text: Any) -> Cell:
    """A cell whose text may break into lines."""
    return {"text": str(text), "wrap": True}


def details(title: str, blocks: Iterable[Block]) -> Block:
    """Blocks that open on a click."""
    return {"kind": "details", "title": title, "blocks": list(blocks)}


def base64_of(content: bytes) -> str:
    """Bytes as a data URI holds them."""
    return base64.b64encode(content).decode()


def styles() -> Markup:
    """The CSS of pages, with the inks of figures in light and dark."""
    own = files("cxr_ray.report").joinpath("styles.css").read_text("utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {ink_styles(dark=True)} }}"
    return Markup(f"{own}\n{ink_styles()}\n{dark}")
