"""A panel of a figure: marks in data coordinates, with ticks, labels and an entry for each name of the legend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cxr_ray.report.figures.drawing import Disc, Dots, Item, Label, Path, Point

Place = Callable[[float, float], Point]  # from data to pixels
Ticks = Sequence[tuple[float, str]]
SIDES = {"s": (4, 45), "D": (4, 0), "^": (3, -90), "v": (3, 90), "<": (3, 180), ">": (3, 0), "p": (5, -90)}


def marker(kind: str, x: float, y: float, colour: str, hollow: bool = False, radius: float = 3.6) -> list[Item]:
    """A mark in pixels: o, s, D, ^, v, <, >, p, *, or the crosses x and +."""
    fill = "paper" if hollow else colour
    if kind == "o":
        return [Disc(x, y, radius, colour, fill)]
    if kind in "x+":
        turn = math.pi / 4 if kind == "x" else 0.0
        arms = [(radius * math.cos(turn + q), radius * math.sin(turn + q)) for q in (0, math.pi / 2)]
        return [Path([(x - dx, y - dy), (x + dx, y + dy)], colour, width=1.5) for dx, dy in arms]
    n, start = SIDES.get(kind, (10, -90))
    reach = [radius * 1.25 if kind in SIDES or not i % 2 else radius * 0.55 for i in range(n)]
    turns = [math.radians(start + 360 * i / n) for i in range(n)]
    corners = [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(reach, turns, strict=True)]
    return [Path(corners, colour, fill, 1.5, closed=True)]


@dataclass
class Axes:
    """What a panel shows.

    Attributes:
        title, across, up: its texts; lines are parted by \\n.
        x_limits, y_limits: ends of the axes; None: what the marks need.
        x_ticks, y_ticks: places with their texts; None: round numbers.
        tick_texts: ticks are data's names or counts and no numbers of an axis.
        grid: lines at the ticks of x, y or both.
        frame: without one there are marks and texts alone.
        legend: a name to a function that draws its sample in pixels.
    """

    title: str = ""
    across: str = ""
    up: str = ""
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    x_ticks: Ticks | None = None
    y_ticks: Ticks | None = None
    named_x: bool = False
    named_y: bool = False
    grid: str = "xy"
    legend: dict[str, Callable[[float, float], list[Item]]] = field(default_factory=dict)
    _drawn: list[tuple[int, Callable[[Place], Iterable[Item]]]] = field(default_factory=list)
    _xs: list[float] = field(default_factory=list)
    _ys: list[float] = field(default_factory=list)
    _across_all: list[tuple[str, float, str, float, str]] = field(default_factory=list)

    def line(self, xs: Any, ys: Any, colour: str, name: str = "", **look: Any) -> None:
        """A line through points; look: width, dash, opacity."""
        points = _known(xs, ys)
        self._see(points)
        self._add(lambda at: [Path([at(*p) for p in points], colour, **look)] if len(points) > 1 else [])
        if name:
            self.legend.setdefault(name, lambda x, y: [Path([(x, y), (x + 20, y)], colour, **look)])

    def marks(self, xs: Any, ys: Any, kind: str, colour: str, name: str = "", hollow: bool = False) -> None:
        """A mark at each point."""
        points = _known(xs, ys)
        self._see(points)
        self._add(lambda at: itertools.chain.from_iterable(marker(kind, *at(*p), colour, hollow) for p in points), 2)
        if name:
            self.legend.setdefault(name, lambda x, y: marker(kind, x + 10, y, colour, hollow))

    def dots(self, xs: Any, ys: Any, colour: str, name: str = "", size: float = 2.6) -> None:
        """A dot at each of many points."""
        points = _known(xs, ys)
        self._see(points)
        self._add(lambda at: [Dots([at(*p) for p in points], size, colour)] if points else [])
        if name:
            self.legend.setdefault(name, lambda x, y: [Dots([(x + 10, y)], size, colour)])

    def point(self, y: float, bounds: Sequence[Any], colour: str, kind: str = "o", hollow: bool = False) -> None:
        """mean, lower, upper as a mark and a line; without an interval a cross, upright where hollow."""
        mean, lower, upper = bounds
        if pd.isna(mean):
            return
        if pd.isna(lower):
            self.marks([mean], [y], "+" if hollow else "x", colour)
            return
        self.line([lower, upper], [y, y], colour, width=1.8)
        self.marks([mean], [y], kind, colour, hollow=hollow)

    def band(self, xs: Any, lows: Any, highs: Any, colour: str, opacity: float = 0.25, name: str = "") -> None:
        """The area between two lines."""
        lower, upper = _known(xs, lows), _known(xs, highs)
        self._see([*lower, *upper])
        around = [*lower, *reversed(upper)]
        self._add(lambda at: [Path([at(*p) for p in around], "", colour, opacity=opacity, closed=True)], 0)
        if name:
            self.legend.setdefault(name, lambda x, y: _swatch(x, y, colour, opacity))

    def bar(self, start: float, end: float, y: float, colour: str, name: str = "", thick: float = 0.75) -> None:
        """A bar across at height y."""
        half = thick / 2
        corners = [(start, y - half), (end, y - half), (end, y + half), (start, y + half)]
        self._see([(start, y), (end, y)])
        self._add(lambda at: [Path([at(*p) for p in corners], "paper", colour, 0.8, closed=True)])
        if name:
            self.legend.setdefault(name, lambda x, y: _swatch(x, y, colour, 1.0))

    def text(self, x: float, y: float, text: str, ink: str, size: float = 10.0) -> None:
        """A text around a point."""

        def placed(at: Place) -> list[Item]:
            left, top = at(x, y)
            return [Label(left, top + 0.36 * size, text, size, "middle", ink)]

        self._add(placed, 3)

    def name(self, name: str, kind: str, colour: str, hollow: bool = False) -> None:
        """An entry of the legend alone."""
        self.legend.setdefault(name, lambda x, y: marker(kind, x + 10, y, colour, hollow))

    def across_all(self, axis: str, value: float, ink: str = "axis", width: float = 1.2, dash: str = "") -> None:
        """A line from end to end at a value of x or y."""
        self._across_all.append((axis, value, ink, width, dash))
        (self._xs if axis == "x" else self._ys).append(value)

    def rows(self, labels: Sequence[str], groups: Sequence[Any] = ()) -> None:
        """One labelled row each, the first on top; a line between groups."""
        self.y_ticks, self.named_y = [(float(i), label) for i, label in enumerate(labels)], True
        self.y_limits, self.grid = (len(labels) - 0.5, -0.5), "x"
        for y in range(1, len(groups)):
            if groups[y] != groups[y - 1]:
                self.across_all("y", y - 0.5, "grid", 1.5)

    def ends(self, axis: str) -> tuple[float, float]:
        """The ends of an axis: as they were set, or around the marks."""
        limits, seen = (self.x_limits, self._xs) if axis == "x" else (self.y_limits, self._ys)
        if limits is not None and limits[0] != limits[1]:
            return limits
        low, high = (min(seen), max(seen)) if seen else limits or (0.0, 1.0)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        return low - room, high + room

    def items(self, at: Place, ends_x: tuple[float, float], ends_y: tuple[float, float]) -> Iterable[Item]:
        """All marks in pixels, from the back to the front."""
        for axis, value, ink, width, dash in self._across_all:
            points = [(value, y) for y in ends_y] if axis == "x" else [(x, value) for x in ends_x]
            yield Path([at(*p) for p in points], ink, width=width, dash=dash)
        for _, draw in sorted(self._drawn, key=lambda entry: entry[0]):
            yield from draw(at)

    def _add(self, draw: Callable[[Place], Iterable[Item]], layer: int = 1) -> None:
        self._drawn.append((layer, draw))

    def _see(self, points: Iterable[Point]) -> None:
        for x, y in points:
            self._xs.append(x)
            self._ys.append(y)


def _known(xs: Any, ys: Any) -> list[Point]:
    """Points without those that are not finite."""
    pairs = zip(map(float, xs), map(float, ys), strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _swatch(x: float, y: float, colour: str, opacity: float) -> list[Item]:
    return [Path([(x, y - 5), (x + 20, y - 5), (x + 20, y + 5), (x, y + 5)], "", colour, opacity=opacity, closed=True)]
