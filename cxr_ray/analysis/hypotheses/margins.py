"""The rule of all verdicts: an effect with its intervals against a margin."""

from __future__ import annotations

from dataclasses import dataclass

ALPHA = 0.05  # of every test and, two-sided, of every interval

ABOVE, WITHIN, BELOW = "above margin", "within margin", "below margin"
INCONCLUSIVE, NOT_APPLICABLE = "inconclusive", "not applicable"
VERDICTS = {
    ABOVE: "the whole 95% interval lies above the margin's upper end, and p_holm < 0.05",
    WITHIN: "the whole 90% interval lies between the margin's two ends (two one-sided tests at 0.05)",
    BELOW: "the whole 95% interval lies below the margin's lower end, and p_holm < 0.05",
    INCONCLUSIVE: "none of these, or too little for an interval",
    NOT_APPLICABLE: "nothing in this sweep asks it",
}

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Margin:
    """The effects that do not count, from ``low`` to ``high``; where both are one value, a line."""

    low: float
    high: float

    @classmethod
    def around_zero(cls, half: float) -> Margin:
        """From -half to half."""
        return cls(-half, half)

    @classmethod
    def line(cls, value: float) -> Margin:
        """A line: effects lie above or below it, and none lies within."""
        return cls(value, value)

    def __str__(self) -> str:
        """In print.

        >>> str(Margin.around_zero(0.5)), str(Margin.line(0.6))
        ('-0.5 to 0.5', '0.6')
        """
        return f"{self.high:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"

    def p(self, effect: float, above: float, below: float) -> float:
        """p-value that the effect is not beyond the margin.

        Args:
            effect: the estimate.
            above: one-sided p against the upper end, small where the effect lies above it.
            below: one-sided p against the lower end, small where the effect lies below it.

        Returns:
            The p of the side on which the effect lies. At a line twice that, since the data choose the side; where the
            ends lie apart no effect can be near both.
        """
        one_sided = above if effect >= (self.low + self.high) / 2 else below
        return min(1.0, 2 * one_sided) if self.low == self.high else one_sided


def verdict(margin: Margin, interval: Bounds, equivalence: Bounds, p_holm: float) -> str:
    """One rule for all hypotheses: above, within or below the margin, or inconclusive.

    Args:
        margin: effects that do not count.
        interval: the 95% interval; NaN: none.
        equivalence: the 90% interval. It lies within the margin where both one-sided tests against its ends reject at
            0.05 (TOST: Schuirmann 1987).
        p_holm: p that the effect is not beyond the margin, after Holm's correction; NaN: none.

    >>> around, line = Margin.around_zero(0.5), Margin.line(0.6)
    >>> for case in [
    ...     (around, (0.51, 0.90), (0.55, 0.85), 0.01),
    ...     (around, (0.51, 0.90), (0.55, 0.85), 0.06),
    ...     (around, (0.20, 0.90), (0.25, 0.85), 0.01),
    ...     (around, (-0.52, 0.30), (-0.45, 0.25), 0.90),
    ...     (around, (-0.90, -0.51), (-0.85, -0.55), 0.01),
    ...     (line, (0.61, 0.90), (0.65, 0.85), 0.01),
    ...     (line, (0.40, 0.59), (0.42, 0.57), 0.01),
    ...     (line, (0.55, 0.65), (0.56, 0.64), 0.90),
    ... ]:
    ...     print(verdict(*case))
    above margin
    inconclusive
    inconclusive
    within margin
    below margin
    above margin
    below margin
    inconclusive
    """
    if p_holm < ALPHA and interval[0] > margin.high:
        return ABOVE
    if p_holm < ALPHA and interval[1] < margin.low:
        return BELOW
    return WITHIN if margin.low < equivalence[0] and equivalence[1] < margin.high else INCONCLUSIVE
