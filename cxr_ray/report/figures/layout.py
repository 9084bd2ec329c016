"""A figure: panels in a grid, each with room for its own texts, a title above them and a legend below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cxr_ray.report.figures.axes import Axes, Ticks
from cxr_ray.report.figures.drawing import Drawing, Item, Label, Path, height_of, width_of
from cxr_ray.report.figures.ticks import nice

WIDTH = 920.0  # pixels
TEXT, SMALL, TITLE = 11.5, 11.0, 13.0
TICK, PAD, GAP = 6.0, 5.0, 14.0
LEGEND_ROW = 18.0
End = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """Panels and what stands around them.

    Attributes:
        axes: the panels, row by row.
        columns: panels in a row.
        heights: of the plotting areas of each row, in pixels.
        title: above all; lines are parted by \\n.
        label: below all, of a common axis across.
        legend: names to functions that draw their samples.
        share_x, share_y: panels have the same ends.
        width: of the figure.
    """

    axes: Sequence[Axes]
    columns: int
    heights: Sequence[float]
    title: str = ""
    label: str = ""
    legend: dict[str, Callable[[float, float], list[Item]]] | None = None
    share_x: bool = False
    share_y: bool = False
    width: float = WIDTH

    def ends(self, panel: Axes, axis: str) -> End:
        """The ends of a panel's axis, of all panels where they share it."""
        if not (self.share_x if axis == "x" else self.share_y):
            return panel.ends(axis)
        every = [a.ends(axis) for a in self.axes]
        falls = every[0][0] > every[0][1]
        low, high = min(min(e) for e in every), max(max(e) for e in every)
        return (high, low) if falls else (low, high)

    def drawing(self) -> Drawing:
        """The figure in pixels."""
        header = height_of(self.title, TITLE) + (PAD if self.title else 0)
        down = header
        drawing = Drawing(self.width, 0)
        drawing.lines(Label(PAD, 0.9 * TITLE, self.title, TITLE, bold=True))
        for row, height in enumerate(self.heights):
            members = self.axes[row * self.columns : (row + 1) * self.columns]
            above = max(height_of(a.title, TEXT) for a in members) + PAD
            for i, panel in enumerate(members):
                left, right = self._sides(i)
                _panel(drawing, panel, self, (left, down + above, right, down + above + height))
            down += above + height + max(self._below(a) for a in members) + GAP
        if self.label:
            drawing.lines(Label(self.width / 2, down + TEXT, self.label, TEXT, "middle", "muted"))
            down += height_of(self.label, TEXT) + PAD
        drawing.height = _legend(drawing, self.legend or {}, down)
        return drawing

    def _sides(self, column: int) -> End:
        """Left and right of the plotting areas of a column."""
        rooms = self._rooms
        across = max((self.width - sum(rooms) - GAP * self.columns) / self.columns, 40.0)
        left = sum(rooms[: column + 1]) + column * (across + GAP) + PAD
        return left, left + across

    @cached_property
    def _rooms(self) -> list[float]:
        """What each column needs left of its plotting areas."""
        rooms = []
        for column in range(self.columns):
            members = self.axes[column :: self.columns]
            rooms.append(max((self._left(a, column) for a in members), default=0.0))
        return rooms

    def _left(self, panel: Axes, column: int) -> float:
        hidden = self.share_y and column > 0
        texts = [] if hidden else [text for _, text in self.y_ticks(panel)]
        widest = max((width_of(text, SMALL) for text in texts), default=0.0)
        return widest + TICK + (height_of(panel.up, SMALL) + PAD if panel.up else 0.0)

    def _below(self, panel: Axes) -> float:
        ticks = max((height_of(text, SMALL) for _, text in self.x_ticks(panel)), default=0.0)
        return TICK + ticks + (height_of(panel.across, SMALL) + PAD if panel.across else 0.0)

    def x_ticks(self, panel: Axes) -> Ticks:
        """Those of a panel across: as they were set, or round numbers."""
        across = self.width / self.columns - 60
        return panel.x_ticks if panel.x_ticks is not None else nice(*self.ends(panel, "x"), max(3, int(across / 55)))

    def y_ticks(self, panel: Axes) -> Ticks:
        """The same upwards."""
        ends = self.ends(panel, "y")
        return panel.y_ticks if panel.y_ticks is not None else nice(min(ends), max(ends), 6)


def _panel(drawing: Drawing, panel: Axes, figure: Figure, box: tuple[float, float, float, float]) -> None:
    """Frame, ticks, texts and marks of a panel in its place."""
    left, top, right, bottom = box
    ends_x, ends_y = figure.ends(panel, "x"), figure.ends(panel, "y")

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - ends_x[0]) / (ends_x[1] - ends_x[0])
        return left + across * (right - left), bottom - (y - ends_y[0]) / (ends_y[1] - ends_y[0]) * (bottom - top)

    for value, text in figure.x_ticks(panel):
        x = at(value, ends_y[0])[0]
        if "x" in panel.grid:
            drawing.add(Path([(x, top), (x, bottom)], "grid"))
        inside = min(x, drawing.width - width_of(text, SMALL) / 2)  # the last is not cut off
        tick = Label(inside, bottom + TICK + 0.8 * SMALL, text, SMALL, "middle", "muted", tick=not panel.named_x)
        drawing.lines(tick)
    shown = not (figure.share_y and left > figure._sides(0)[0])
    for value, text in figure.y_ticks(panel):
        y = at(ends_x[0], value)[1]
        if "y" in panel.grid:
            drawing.add(Path([(left, y), (right, y)], "grid"))
        if shown:
            first = y + 0.36 * SMALL - (height_of(text, SMALL) / 2 - 0.65 * SMALL)
            ink = "ink" if panel.named_y else "muted"
            drawing.lines(Label(left - TICK, first, text, SMALL, "end", ink, tick=not panel.named_y))
    drawing.add(*panel.items(at, ends_x, ends_y))
    drawing.add(Path([(left, top), (left, bottom), (right, bottom)], "axis"))
    above = top - height_of(panel.title, TEXT) + 0.8 * TEXT
    drawing.lines(Label((left + right) / 2, above, panel.title, TEXT, "middle"))
    ticks = max((height_of(text, SMALL) for _, text in figure.x_ticks(panel)), default=0.0)
    below = bottom + TICK + ticks + PAD + 0.7 * SMALL
    middle = min((left + right) / 2, drawing.width - width_of(panel.across, SMALL) / 2)  # none is cut off
    drawing.lines(Label(middle, below, panel.across, SMALL, "middle", "muted"))
    for i, line in enumerate(panel.up.split("\n") if panel.up else []):
        x = left - figure._left(panel, 0 if shown else 1) + SMALL * (0.9 + 1.3 * i)
        drawing.add(Label(x, (top + bottom) / 2, line, SMALL, "middle", "muted", turned=True))


def _legend(drawing: Drawing, legend: dict[str, Callable[[float, float], list[Item]]], down: float) -> float:
    """The entries in rows, and the height below them."""
    x, y = PAD, down + LEGEND_ROW / 2
    for name, sample in legend.items():
        wide = 26 + width_of(name, SMALL) + GAP
        if x > PAD and x + wide > drawing.width:
            x, y = PAD, y + LEGEND_ROW
        drawing.add(*sample(x, y), Label(x + 26, y + 0.36 * SMALL, name, SMALL))
        x += wide
    return y + LEGEND_ROW / 2 + PAD if legend else down
