"""How a quantity grows with images and models: a line through measured sizes, judged, and read off further out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLAT = 0.1  # of the first value: less growth over the sizes that were measured is called flat
BENT = 1.25  # ratio of the last slope to the first from which growth is faster than linear


@dataclass(frozen=True)
class Fit:
    """A line ``fixed + an_image * images + a_pair * images * (models - 1)``.

    Attributes:
        name, unit: of the quantity.
        kind: flat, linear, faster or slower than linear over the images that were measured. What is flat, or grows
            by less than FLAT with the models, is extrapolated as a constant.
        fixed: at no image.
        an_image: added by an image of the first model, along the two largest sizes.
        a_pair: added by an image of each further model.
        bend: the slope between the two largest sizes over that between the two smallest; nan with two sizes.
        at_target: the line at the size of the target.
    """

    name: str
    unit: str
    kind: str
    fixed: float
    an_image: float
    a_pair: float
    bend: float
    at_target: float

    def __str__(self) -> str:
        bend = "" if np.isnan(self.bend) else f" (last slope / first: {self.bend:.2f})"
        return (
            f"  {self.name}: {self.kind}{bend}; {self.fixed:.4g} + {self.an_image:.3g} an image + {self.a_pair:.3g} an "
            f"image of each further model; extrapolated {self.at_target:.4g} {self.unit}"
        ).rstrip()


def fitted(
    name: str, unit: str, sizes: Sequence[tuple[int, int]], values: Sequence[float], target: tuple[int, int]
) -> Fit:
    """The fit of values at sizes (images, models), two or more of them of one model.

    The slope is that of the two largest sizes of one model: where growth bends, the small ones would flatter it.

    >>> line = fitted("shards", "", [(10, 1), (20, 1), (40, 1), (10, 3)], [15, 25, 45, 35], (100, 3))
    >>> line.kind, line.fixed, line.an_image, line.a_pair, line.at_target
    ('linear', 5.0, 1.0, 1.0, 305.0)
    """
    one = sorted((n, v) for (n, m), v in zip(sizes, values, strict=True) if m == 1)
    images, found = np.array(one, float).T
    slopes = np.diff(found) / np.diff(images)
    an_image = float(slopes[-1])
    fixed = float(found[-1] - an_image * images[-1])
    more = [(n * (m - 1), v, dict(one)[n]) for (n, m), v in zip(sizes, values, strict=True) if m > 1]
    added = [(v - of_one) / n if abs(v - of_one) > FLAT * abs(of_one) else 0.0 for n, v, of_one in more]
    a_pair = float(np.mean(added)) if added else float("nan")
    bend = float(slopes[-1] / slopes[0]) if len(slopes) > 1 and slopes[0] else float("nan")
    if abs(found[-1] - found[0]) <= FLAT * abs(found[0]):
        kind = "flat"
    elif np.isnan(bend) or 1 / BENT <= bend <= BENT:
        kind = "linear"
    else:
        kind = "faster than linear" if bend > BENT else "slower than linear"
    if kind == "flat":
        fixed, an_image = float(found[-1]), 0.0
    n, m = target
    return Fit(name, unit, kind, fixed, an_image, a_pair, bend, fixed + an_image * n + a_pair * n * (m - 1))
