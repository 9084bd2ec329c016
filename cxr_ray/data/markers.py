"""Text markers in the corners of an image: bitmap glyphs on a dark plate, as technicians' lead letters leave them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

PLATE = 0.35  # a plate darkens what lies under it to this share

# Two glyphs in class order, E(rect) and P(ortable), then K, a technician's initial that means nothing.
GLYPHS = tuple(
    np.array([[char == "#" for char in row] for row in glyph.split()], dtype=np.float32)
    for glyph in (
        "##### #.... #.... ####. #.... #.... #####",
        "####. #...# #...# ####. #.... #.... #....",
        "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    )
)


def pasted_marker(size: int) -> tuple[Floats, tuple[slice, slice]]:
    """The marker P for the top left corner of any image: its ink, 0 to 1, and the rows and columns of its plate."""
    box = plate_box(0, 0.10, 0.03, 0.03, size)
    return 0.9 * ink(GLYPHS[1], box), box


def plate_box(corner: int, height: float, dx: float, dy: float, size: int) -> tuple[slice, slice]:
    """Rows and columns of a marker's plate in a corner (0 to 3, clockwise from the top left)."""
    rows = max(7, round(height * size)) + 2
    cols = max(5, round(height * size * 5 / 7)) + 2
    top, left = round(dy * size), round(dx * size)
    top = size - top - rows if corner in (2, 3) else top
    left = size - left - cols if corner in (1, 2) else left
    return slice(top, top + rows), slice(left, left + cols)


def stamp(grey: Floats, glyph: Floats, box: tuple[slice, slice], tone: float) -> None:
    """Write a glyph on a dark plate into `grey`, in place."""
    grey[box] = np.maximum(grey[box] * PLATE, tone * ink(glyph, box))


def ink(glyph: Floats, box: tuple[slice, slice]) -> Floats:
    """A glyph, 0 or 1, at the size of a box, with a margin of one pixel."""
    rows, cols = (part.stop - part.start - 2 for part in box)
    return np.pad(glyph[np.ix_(np.arange(rows) * 7 // rows, np.arange(cols) * 5 // cols)], 1)
