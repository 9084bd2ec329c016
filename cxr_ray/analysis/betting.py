"""Sequential tests and intervals of a win rate by betting: valid however often one looks, and wherever one stops.

A gambler bets on every patient's win rate, at odds that are fair if the mean is the null's. Under the null no strategy
makes money on average, so that the capital, the e-value, reaches 1 / alpha with a probability of at most alpha, at any
time (Ville's inequality). The capital here is spread evenly over fixed bets (Waudby-Smith & Ramdas, J. R. Statist.
Soc. B 86 (2024), 1: the hedged capital of section 4, with a mixture over bets in place of one predictable bet).

The steps have to be patients in random order, one value each. Images of one patient depend on each other, and as steps
of their own they reject far too many true nulls (`benchmarks.sequential`).

Shapes: ... any batch of series; B series; T steps; L bets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHANCE = 0.5
FUTILE = 0.6  # a win rate shown to lie below it is not worth further patients

_BETS_L = np.arange(1, 20) / 20  # shares of what may be staked without ruin: 0.05 to 0.95
_HALVINGS = 20  # of [0, 1] until a bound is found: to 1e-6

Verdict = Literal["better", "futile", "undecided"]


@dataclass(frozen=True)
class Decision:
    """What a series of win rates shows at the step at which it is decided, or at its end.

    The decision and the bounds say the same: `lower` is 1/2 or more if and only if the decision is "better", and
    `upper` is `futile` or less if and only if it is "futile" (to within 1e-6). Two-sided bounds at 1 - alpha would hold
    1/2 at every "better": they need twice the capital, and a step multiplies it by 1.95 at most.

    Attributes:
        decision: "better" than chance, "futile" (below the win rate of interest), or "undecided".
        n: steps used: up to the decision, or all.
        log_e: largest log e-value against "at most chance" up to that step, natural logarithm.
        log_e_futile: largest log e-value against "at least futile" up to that step.
        win_rate: mean of the steps used. At a stop it lies too far from chance on average; the bounds are right.
        lower: all smaller means are rejected at alpha, whenever one looks. Never above win_rate.
        upper: all greater means are rejected at alpha, whenever one looks. Never below win_rate.
        level: of lower and upper together, 1 - 2 alpha.
    """

    decision: Verdict
    n: int
    log_e: float
    log_e_futile: float
    win_rate: float
    lower: float
    upper: float
    level: float


def e_process(x_T: ArrayLike, mean: float = CHANCE) -> Floats:
    """Log e-value of "the mean given the past is at most `mean`" after each step, natural logarithm, [..., T].

    K_t = mean over lambda in {0.05, ..., 0.95} of prod over s <= t of (1 + (lambda / mean)(x_s - mean)). High: the mean
    is greater. P(K_t >= 1 / alpha at any t) <= alpha under the null.

    Args:
        x_T: values in [0, 1], [..., T]; every series of a batch is on its own.
        mean: of the null, above 0 and below 1.

    Raises:
        ValueError: a value outside [0, 1] or NaN, or such a mean.

    >>> np.exp(e_process([1, 1])).round(4).tolist()  # 1 + mean(lambda), mean((1 + lambda)^2)
    [1.5, 2.325]
    """
    x_T = _checked(x_T)
    if not 0 < mean < 1:
        raise ValueError(f"got a mean of {mean} to bet against; expected 0 < mean < 1; test another mean.")
    ratio_T = x_T / mean - 1
    log_e_T = np.full(x_T.shape, -np.inf)
    for bet in _BETS_L:  # one at a time: memory is that of the values
        np.logaddexp(log_e_T, np.cumsum(np.log1p(bet * ratio_T), axis=-1), out=log_e_T)
    return log_e_T - np.log(len(_BETS_L))


def crossing(log_e_T: Floats, alpha: float) -> Ints:
    """First step, counted from 1, at which the e-value reaches 1 / alpha; T + 1 where it never does: [...]."""
    reached_T = log_e_T >= -np.log(_checked_alpha(alpha))
    never = np.ones((*reached_T.shape[:-1], 1), dtype=bool)
    return np.concatenate([reached_T, never], axis=-1).argmax(axis=-1) + 1


def confidence_sequence(x_T: ArrayLike, alpha: float = 0.05) -> tuple[Floats, Floats]:
    """Bounds that hold the mean at all times at once with probability 1 - alpha: lower and upper, [..., T] each.

    All means that betting does not reject at any time up to t, half of the capital on either side: the larger of
    K_t(m) / 2 against "at most m" and the same against "at least m" stays below 1 / alpha. The one falls and the other
    rises with m, so that what is left is an interval, found by bisection and rounded outwards by at most 1e-6. It may
    leave out the mean so far, and be empty (lower above upper) where the mean drifts. Takes about half a second for a
    series of 400 steps; `decide` has the bounds at its step alone.

    Args:
        x_T: values in [0, 1], [..., T].
        alpha: of both sides together.

    Raises:
        ValueError: a value outside [0, 1] or NaN, or such an alpha.
    """
    x_T = _checked(x_T)
    threshold = 2 / _checked_alpha(alpha)
    bounds_2BT = np.empty((2, *x_T.reshape(-1, x_T.shape[-1]).shape))
    for bound_BT, values_T in zip(bounds_2BT, (x_T, 1 - x_T), strict=True):
        for bound_T, series_T in zip(bound_BT, values_T.reshape(bound_BT.shape), strict=True):
            lower = 0.0
            for t in range(len(series_T)):
                bound_T[t] = lower = _lower(series_T[: t + 1], threshold, lower)
    lower_T, upper_T = bounds_2BT[0], 1 - bounds_2BT[1]
    return lower_T.reshape(x_T.shape), upper_T.reshape(x_T.shape)


def decide(x_T: ArrayLike, alpha: float, futile: float = FUTILE) -> Decision:
    """Whether a win rate is better than chance, or futile, at the first step that shows either.

    "better": the e-value against "at most 1/2" reaches 1 / alpha. "futile": the e-value against "at least `futile`",
    which is `e_process` of 1 - x and 1 - futile, does. No mean is both, so that P(a wrong decision) <= alpha over both.
    Steps after the decision are ignored: the answer does not depend on how many came at once.

    Args:
        x_T: win rates of patients in random order, one each, in [0, 1], [T].
        alpha: chance of a wrong decision; for several series see `family_alpha`.
        futile: win rate above chance.

    Raises:
        ValueError: a value outside [0, 1] or NaN, a batch, no step at all, or such an alpha or futile.
    """
    x_T = _checked(x_T)
    if x_T.ndim != 1 or not len(x_T):
        raise ValueError(f"got win rates of shape {x_T.shape}; expected one series of a step or more; give [T].")
    if not 0 < alpha < 0.5:
        raise ValueError(f"got alpha {alpha}; expected 0 < alpha < 0.5; 0.05 is usual.")
    if not CHANCE < futile < 1:
        raise ValueError(f"got futile {futile}; expected a win rate above {CHANCE} and below 1; choose another.")
    log_e_T, log_e_futile_T = e_process(x_T), e_process(1 - x_T, 1 - futile)
    better, worse = int(crossing(log_e_T, alpha)), int(crossing(log_e_futile_T, alpha))
    n = min(better, worse, len(x_T))
    decision: Verdict = "undecided" if min(better, worse) > n else "better" if better < worse else "futile"
    return Decision(
        decision=decision,
        n=n,
        log_e=float(log_e_T[:n].max()),
        log_e_futile=float(log_e_futile_T[:n].max()),
        win_rate=float(x_T[:n].mean()),
        lower=_lower(x_T[:n], 1 / alpha),
        upper=1 - _lower(1 - x_T[:n], 1 / alpha),
        level=1 - 2 * alpha,
    )


def family_alpha(alpha: float, size: int) -> float:
    """Bonferroni's share of alpha for each of `size` series: P(any wrong decision) <= alpha, however they depend.

    It lets every series stop on its own. Holm's correction of 1 / max K is valid too, and decides more only where a
    series was left undecided (`benchmarks.sequential` has the figures).

    >>> family_alpha(0.05, 20)
    0.0025
    """
    if size < 1:
        raise ValueError(f"got a family of {size}; expected 1 or more; count the series that are decided together.")
    return _checked_alpha(alpha) / size


def _lower(x_T: Floats, threshold: float, least: float = 0.0) -> float:
    """Largest mean from `least` up that the whole series rejects from below, or `least`: the capital falls with it."""

    def rejected(mean: float) -> bool:
        capital_L = np.log1p(_BETS_L[:, None] * (x_T / mean - 1)).sum(axis=1)
        return bool(np.logaddexp.reduce(capital_L) - np.log(len(_BETS_L)) >= np.log(threshold))

    if least > 0 and not rejected(least):
        return least
    lower, upper = least, 1.0
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if rejected(middle) else (lower, middle)
    return lower


def _checked(x_T: ArrayLike) -> Floats:
    """Values as float64, all of them in [0, 1]."""
    x_T = np.atleast_1d(np.asarray(x_T, dtype=np.float64))
    wrong = x_T[~((x_T >= 0) & (x_T <= 1))]
    if len(wrong):
        raise ValueError(f"got {wrong[0]} among the steps; expected values from 0 to 1; leave such steps out.")
    return x_T


def _checked_alpha(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"got alpha {alpha}; expected 0 < alpha < 1; 0.05 is usual.")
    return alpha
