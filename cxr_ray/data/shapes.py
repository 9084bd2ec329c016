"""Shapes that experts draw on images, and the pixels that they cover.

Coordinates are pixels, x to the right and y down, (0, 0) the corner of the first pixel; a pixel belongs to a shape that
holds its centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, right and bottom edge."""

    edges: tuple[float, float, float, float]

    @property
    def reach(self) -> tuple[float, float]:
        """How far it reaches to the right and down."""
        return self.edges[2:]

    @property
    def start(self) -> tuple[float, float]:
        """Its left and upper edge."""
        return self.edges[:2]

    def parts(self, width: int, height: int) -> Iterator[tuple[Mask, Mask]]:
        """(mask, its bounding box), bool [height, width] each; at least the pixel at its centre, where that is inside.

        >>> Box((1, 0, 3, 1)).mask(4, 2).astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
        """
        mask = self.mask(width, height)
        yield mask, mask

    def mask(self, width: int, height: int) -> Mask:
        """Where it is, bool [height, width]."""
        mask = np.zeros((height, width), dtype=bool)
        mask[_span(self.edges[1], self.edges[3]), _span(self.edges[0], self.edges[2])] = True
        return mask


@dataclass(frozen=True)
class Polygon:
    """A closed outline: points (x, y), three at least."""

    points: tuple[tuple[float, float], ...]

    @property
    def reach(self) -> tuple[float, float]:
        """How far it reaches to the right and down."""
        return max(x for x, _ in self.points), max(y for _, y in self.points)

    @property
    def start(self) -> tuple[float, float]:
        """Its left and upper end."""
        return min(x for x, _ in self.points), min(y for _, y in self.points)

    def parts(self, width: int, height: int) -> Iterator[tuple[Mask, Mask]]:
        """(mask, its bounding box), bool [height, width] each. The outline's own pixels belong to the mask."""
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).polygon([(x - 0.5, y - 0.5) for x, y in self.points], outline=1, fill=1)
        yield from with_boxes(np.asarray(image) > 0, whole=True)


@dataclass(frozen=True)
class Runs:
    """COCO's run lengths: pixels outside and inside in turn, column by column, of an image of its own size."""

    width: int
    height: int
    counts: tuple[int, ...]

    @property
    def reach(self) -> tuple[float, float]:
        """0: it is a mask of the whole image, whatever the image's size."""
        return 0.0, 0.0

    start = reach

    def parts(self, width: int, height: int) -> Iterator[tuple[Mask, Mask]]:
        """(mask, its bounding box) of each connected component, bool [height, width] each, by the nearest pixel.

        >>> [mask.astype(int).tolist() for mask, _ in Runs(2, 2, (1, 2, 1)).parts(2, 2)]
        [[[0, 1], [1, 0]]]
        """
        inside = np.arange(len(self.counts)) % 2 == 1
        mask = np.repeat(inside, self.counts).reshape(self.width, self.height).T
        if (self.width, self.height) != (width, height):
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        yield from with_boxes(mask)


Shape = Box | Polygon | Runs


def _span(low: float, high: float) -> slice:
    """Pixels whose centre lies between two edges; the one at their middle where there is none."""
    first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if last <= first:
        first = math.floor((low + high) / 2)
        last = first + 1
    return slice(max(first, 0), max(last, 0))


def with_boxes(mask: Mask, whole: bool = False) -> Iterator[tuple[Mask, Mask]]:
    """Each connected component (8 neighbours) of a mask and its bounding box; ``whole``: the mask as one of them."""
    from scipy import ndimage  # slow to import

    numbers, _ = (mask, 1) if whole else ndimage.label(mask, np.ones((3, 3), dtype=int))
    for number, place in enumerate(ndimage.find_objects(numbers.astype(np.int32)), start=1):
        if place is not None:
            box = np.zeros_like(mask)
            box[place] = True
            yield (mask if whole else numbers == number), box


def drawn(shapes: Sequence[Shape], width: int, height: int) -> tuple[Mask, Mask]:
    """The union of the shapes and the union of their bounding boxes, bool [height, width] each."""
    mask, boxes = np.zeros((2, height, width), dtype=bool)
    for shape in shapes:
        for part, box in shape.parts(width, height):
            mask |= part
            boxes |= box
    return mask, boxes


def run_lengths(text: str) -> tuple[int, ...]:
    """COCO's compressed run lengths: numbers in base 32, from the fourth on as differences from the last but one.

    Raises:
        ValueError: the text ends within a number, or holds another character.

    >>> run_lengths("PVWX6"), 2320 * 2828  # an empty mask of CheXlocalize
    ((6560960,), 6560960)
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"got the character {character!r} in run lengths; expected one from '0' to 'o'")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("got run lengths that end within a number; expected whole ones")
    return tuple(counts)
