"""Pictures as lists of paths, discs, dots and texts, written as SVG for the page and for files, or as PDF.

Lengths are in pixels, y runs down. A colour is an INK, which the page turns with light and dark, or a hex code.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

INKS = {  # in light, in dark
    "ink": ("#1a1a1a", "#e8e8e8"),
    "muted": ("#555555", "#b4b8be"),
    "axis": ("#808080", "#8a9099"),
    "grid": ("#e6e6e6", "#30353c"),
    "paper": ("#ffffff", "#15181d"),
    "margin": ("#cfe3f1", "#1f3d52"),
}
FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
LINE = 1.3  # height of a line, in sizes of its font
NARROW, WIDE = frozenset("iljtfr.,:;'|![]() "), frozenset("mwMWGOQ@%—→←+−=<>")
Point = tuple[float, float]


@dataclass(frozen=True)
class Path:
    """Straight lines through points; closed: an area."""

    points: Sequence[Point]
    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    dash: str = ""
    opacity: float = 1.0
    closed: bool = False


@dataclass(frozen=True)
class Disc:
    """A circle."""

    x: float
    y: float
    radius: float
    stroke: str
    fill: str


@dataclass(frozen=True)
class Dots:
    """Many small marks of one look, such as one an image."""

    points: Sequence[Point]
    size: float
    colour: str
    opacity: float = 0.7


@dataclass(frozen=True)
class Label:
    """A line of text; ``anchor``: start, middle or end; ``tick``: a number of an axis, which stands in no table."""

    x: float
    y: float
    text: str
    size: float = 11.0
    anchor: str = "start"
    ink: str = "ink"
    bold: bool = False
    turned: bool = False
    tick: bool = False


Item = Path | Disc | Dots | Label


@dataclass
class Drawing:
    """A picture of a size, with its items from the back to the front."""

    width: float
    height: float
    items: list[Item] = field(default_factory=list)

    def add(self, *items: Item) -> None:
        """Draw over what is there."""
        self.items.extend(items)

    def moved(self, right: float, down: float) -> Iterable[Item]:
        """The items at another place."""
        for item in self.items:
            if isinstance(item, Path | Dots):
                yield replace(item, points=[(x + right, y + down) for x, y in item.points])
            else:
                yield replace(item, x=item.x + right, y=item.y + down)

    def lines(self, label: Label) -> None:
        """A label of several lines, the first at its place."""
        for i, line in enumerate(label.text.split("\n")):
            self.add(replace(label, y=label.y + i * LINE * label.size, text=line))

    def svg(self, alt: str, alone: bool = False) -> str:
        """SVG, to stand in a page that declares the inks (``ink_styles``); ``alone``: a file of its own, in light."""
        head = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" aria-label="{html.escape(alt)}"'
        style = back = ""
        if alone:
            head += f' xmlns="http://www.w3.org/2000/svg" width="{_n(self.width)}" height="{_n(self.height)}"'
            style = f"<style>{ink_styles()}text {{ font-family: {FONT}; }}</style>"
            back = '<rect width="100%" height="100%" class="f-paper"/>'
        return f"<svg {head}>{style}{back}{''.join(map(_element, self.items))}</svg>"

    def pdf(self) -> bytes:
        """PDF with its fonts, in light."""
        from matplotlib import rc_context  # half a second, for one file
        from matplotlib.figure import Figure

        with rc_context({"pdf.fonttype": 42}):
            figure = Figure(figsize=(self.width / 96, self.height / 96))
            for artist in _artists(self.items, self.width, self.height):
                artist.set_transform(figure.transSubfigure)
                figure.add_artist(artist)
            sink = io.BytesIO()
            figure.savefig(sink, format="pdf", metadata={"CreationDate": None})
        return sink.getvalue()


def ink_styles(dark: bool = False) -> str:
    """CSS of the inks as fill (.f-) and stroke (.s-)."""
    colours = {name: pair[dark] for name, pair in INKS.items()}
    return "".join(f".f-{n} {{ fill: {c}; }} .s-{n} {{ stroke: {c}; }} " for n, c in colours.items())


def width_of(text: str, size: float) -> float:
    """At least the width of the longest line in any common sans-serif."""
    return size * max((_relative(line) for line in text.split("\n")), default=0.0)


def height_of(text: str, size: float) -> float:
    """Height of a text; 0 of none."""
    return LINE * size * (text.count("\n") + 1) if text else 0.0


@lru_cache(maxsize=4096)
def _relative(line: str) -> float:
    return sum(0.38 if c in NARROW else 0.9 if c in WIDE else 0.7 if c.isupper() else 0.61 for c in line)


def _n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _paint(**colours: str) -> str:
    """Attributes of fill and stroke."""
    classes = " ".join(f"{kind[0]}-{c}" for kind, c in colours.items() if c in INKS)
    own = "".join(f' {kind}="{c or "none"}"' for kind, c in colours.items() if c not in INKS)
    return (f' class="{classes}"' if classes else "") + own


def _path(points: Iterable[Point], closed: bool) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + ("Z" if closed else "")


def _element(item: Item) -> str:
    if isinstance(item, Label):
        anchor = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
        turned = f' transform="rotate(-90 {_n(item.x)} {_n(item.y)})"' if item.turned else ""
        bold = ' font-weight="600"' if item.bold else ""
        kind = ' data-tick=""' if item.tick else ""
        where = f'x="{_n(item.x)}" y="{_n(item.y)}" font-size="{_n(item.size)}"'
        return f"<text {where}{anchor}{turned}{bold}{_paint(fill=item.ink)}{kind}>{html.escape(item.text)}</text>"
    if isinstance(item, Disc):
        where = f'cx="{_n(item.x)}" cy="{_n(item.y)}" r="{_n(item.radius)}"'
        return f'<circle {where}{_paint(fill=item.fill, stroke=item.stroke)} stroke-width="1.5"/>'
    if isinstance(item, Dots):
        # A line of no length with round ends is a dot; dots on one pixel are one.
        places = dict.fromkeys(f"M{_n(x)} {_n(y)}h0" for x, y in item.points)
        look = f'stroke-width="{_n(item.size)}" stroke-linecap="round" opacity="{item.opacity:g}"'
        return f'<path d="{"".join(places)}"{_paint(fill="", stroke=item.colour)} {look}/>'
    look = f' stroke-width="{item.width:g}"' if item.stroke else ""
    look += f' stroke-dasharray="{item.dash}"' if item.dash else ""
    look += f' opacity="{item.opacity:g}"' if item.opacity < 1 else ""
    return f'<path d="{_path(item.points, item.closed)}"{_paint(fill=item.fill, stroke=item.stroke)}{look}/>'


def _artists(items: Iterable[Item], width: float, height: float) -> Iterable[Any]:
    """The items as matplotlib's, in shares of the figure; its lengths are points."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon
    from matplotlib.text import Text

    def place(x: float, y: float) -> Point:
        return x / width, 1 - y / height

    def light(colour: str) -> str:
        return INKS[colour][0] if colour in INKS else colour or "none"

    anchors = {"start": "left", "middle": "center", "end": "right"}
    for item in items:
        look: dict[str, Any]
        if isinstance(item, Label):
            look = {"ha": anchors[item.anchor], "va": "baseline", "weight": "bold" if item.bold else "normal"}
            look |= {"rotation": 90 if item.turned else 0, "fontsize": 0.72 * item.size, "color": light(item.ink)}
            yield Text(*place(item.x, item.y), item.text, **look)
        elif isinstance(item, Disc):
            look = {"mfc": light(item.fill), "mec": light(item.stroke), "ms": 1.5 * item.radius, "mew": 1.1}
            yield Line2D(*[[v] for v in place(item.x, item.y)], marker="o", ls="none", **look)
        elif isinstance(item, Path) and item.closed:
            look = {"fc": light(item.fill), "ec": light(item.stroke), "alpha": item.opacity, "lw": 0.75 * item.width}
            yield Polygon([place(*p) for p in item.points], closed=True, **look)
        else:
            xs, ys = zip(*(place(*p) for p in item.points), strict=True)
            if isinstance(item, Dots):
                look = {"color": light(item.colour), "marker": ".", "ms": item.size, "ls": "none"}
            else:
                dash = (0, tuple(0.75 * float(d) for d in item.dash.split())) if item.dash else "-"
                look = {"color": light(item.stroke), "lw": 0.75 * item.width, "ls": dash}
            yield Line2D(xs, ys, alpha=item.opacity, **look)
