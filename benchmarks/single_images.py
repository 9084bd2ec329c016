"""Tests of single images by sequential draws: Besag and Clifford's p-value beside betting.

For one image the null says that the map is one more draw of its control. Its chance to beat a draw is then uniform over
images, not 1/2: an image whose map lies high among the draws wins again and again. So a bet on a win rate of 1/2, which
is right over patients, rejects far too many single images. A bet that is fair to the uniform chance is the ratio of
Beta integrals below: a chance to lose that is uniform up to C against one that is uniform up to 1 (the binomial mixture
of Fischer & Ramdas, arXiv 2401.07365).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks import common
from cxr_ray.analysis import betting
from cxr_ray.measure.sequential import sequential_p

ALPHA, C = 0.05, 0.045  # C a little under ALPHA, so that a finite number of draws can reach 1 / ALPHA
EXTREME, MOST = 10, 199  # the package's rule
LOSSES = (0.001, 0.01, 0.03)  # chances that a draw is as faithful as the map

Floats = NDArray[np.float64]


def beta_ratio(lost_ND: NDArray[np.bool_]) -> Floats:
    """Log e-value after each draw of "the map is one more draw": [N, D]."""
    draws_D = np.arange(1, lost_ND.shape[1] + 1)
    return np.asarray(binom.logsf(lost_ND.cumsum(1), draws_D + 1, C) - np.log(C))


def ways(value_N: Floats, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Each way's share of images rejected at 0.05 and mean draws; values: places of maps among draws, in [0, 1]."""
    draws_ND = rng.random((len(value_N), MOST))
    p_N, drawn_N, _ = sequential_p(value_N, draws_ND, True, EXTREME)
    found = {"Besag and Clifford": (float(np.mean(p_N <= ALPHA)), float(drawn_N.mean()))}
    lost_ND = draws_ND >= value_N[:, None]
    # Betting stops where it rejects, or where Besag and Clifford stop: ten draws as faithful are reason to give up.
    for name, log_e_ND in (("betting on 1/2", betting.e_process(~lost_ND)), ("Beta ratio", beta_ratio(lost_ND))):
        at_N = betting.crossing(log_e_ND, ALPHA)
        rejected_N = at_N <= drawn_N
        found[name] = (float(rejected_N.mean()), float(np.minimum(at_N, drawn_N).mean()))
    return found


def main() -> None:
    """The command."""
    args = common.arguments(__doc__, images=(int, 20_000, "images of each kind"))
    rng = np.random.default_rng(0)
    kinds = {"null": rng.random(args.images)} | {
        f"a draw in {1 / q:.0f} as faithful": np.full(args.images, 1 - q) for q in LOSSES
    }
    results = {f"{kind}, {way}": cell for kind, value_N in kinds.items() for way, cell in ways(value_N, rng).items()}
    ratios = {
        f"{way}: nulls rejected at 0.05": results[f"null, {way}"][0] for way in ("Besag and Clifford", "Beta ratio")
    }
    common.show(
        "single_images",
        {},
        ratios,
        dict.fromkeys(ratios, ALPHA),
        unit="",
        as_json=args.json,
        monte_carlo_error=f"{np.sqrt(ALPHA * (1 - ALPHA) / args.images):.4f} of a share of 0.05",
        **{cell: f"rejects {share:.3f}, {draws:.0f} draws" for cell, (share, draws) in results.items()},
    )


if __name__ == "__main__":
    main()
