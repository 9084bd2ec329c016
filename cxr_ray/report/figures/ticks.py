"""Round numbers along an axis."""

from __future__ import annotations

import math


def nice(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most ``most`` round numbers between the ends, with their texts.

    >>> nice(-0.3, 1.1, 4)
    [(0.0, '0'), (0.5, '0.5'), (1.0, '1')]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * m for m in (1, 2, 2.5, 5, 10, 20)]
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [(i * step, _text(i * step, step)) for i in range(first, last + 1)]
    return []


def _text(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += abs(round(step, digits) - step) > 1e-9 * step  # a step of 0.25 needs one digit more
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
