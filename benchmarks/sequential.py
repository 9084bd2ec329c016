"""The sequential verdict beside the fixed design: wrong decisions, power and forward passes.

RUN is a run with the table faithfulness. Without it, win rates are simulated for a split like the test split: 428
patients with 624 images, log-odds of winning with random effects of patients and of images. The sequential verdict
takes patients in random order, one image each, until it is decided; the fixed design takes 5 draws for every image and
one sign-flip test at the end. With RUN, map and draw change sides at random for each patient, which is a true null with
the patients, images and ties of a real run; the answers to the run's own question stand beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from benchmarks import common, relabelling
from cxr_ray.analysis import betting
from cxr_ray.analysis.beating import N_PERM
from cxr_ray.analysis.resampling import holm, sign_flip

WIN_RATES = (0.5, 0.55, 0.6, 0.7, 0.8)
ALPHAS = (0.05, 0.0025)  # one series; one of a family of 20
DRAWS = (1, 5)  # of a control for each image
FIXED_DRAWS = 5
PASSES = 10  # of a curve: 5 levels, 2 directions
SDS = {"no effects": (0.0, 0.0), "SD 1 and 1": (1.0, 1.0), "SD 3 and 0": (3.0, 0.0)}  # of patients and of images
CLUSTERED = SDS["SD 1 and 1"]
SIZES_P = common.patient_sizes()
FAMILY = (0.5,) * 8 + (0.55,) * 4 + (0.6,) * 4 + (0.7,) * 4
RUNS_OF_TYPE_I = 2  # times the runs of a win rate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Decisions of many series, [R] each: whether better, whether futile, and steps used."""

    better: NDArray[np.bool_]
    futile: NDArray[np.bool_]
    n: NDArray[np.int64]


def intercept(win_rate: float, sd: float) -> float:
    """Log-odds whose mean win rate over normal effects of that SD is ``win_rate``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    return float(brentq(lambda centre: weights @ expit(centre + sd * nodes) - win_rate, -30, 30))


def probabilities(
    rng: np.random.Generator, runs: int, sizes_P: NDArray[np.int64], win_rate: float, sds: tuple[float, float]
) -> Floats:
    """Chance that a map beats a draw, for every image, patient after patient: [runs, images]."""
    effect_RP = rng.normal(0, sds[0], (runs, len(sizes_P)))
    effect_RN = np.repeat(effect_RP, sizes_P, axis=1) + rng.normal(0, sds[1], (runs, int(sizes_P.sum())))
    return np.asarray(expit(intercept(win_rate, float(np.hypot(*sds))) + effect_RN))


def one_image_each(
    rng: np.random.Generator, runs: int, draws: int, win_rate: float, sds: tuple[float, float] = CLUSTERED
) -> Floats:
    """Win rates of one image of each patient over so many draws: [runs, patients]."""
    chance_RP = probabilities(rng, runs, np.ones_like(SIZES_P), win_rate, sds)
    return rng.binomial(draws, chance_RP) / draws


def sequential(x_RT: Floats, alpha: float) -> Outcome:
    """`betting.decide` of many series at once, without its bounds."""
    return decided(betting.e_process(x_RT), betting.e_process(1 - x_RT, 1 - betting.FUTILE), alpha)


def decided(log_e_RT: Floats, log_e_futile_RT: Floats, alpha: float) -> Outcome:
    """The first of two e-processes that reaches 1 / alpha."""
    steps = log_e_RT.shape[1]
    better_R, futile_R = betting.crossing(log_e_RT, alpha), betting.crossing(log_e_futile_RT, alpha)
    first_R = np.minimum(better_R, futile_R)
    decided_R = first_R <= steps
    return Outcome(decided_R & (better_R < futile_R), decided_R & (futile_R < better_R), np.minimum(first_R, steps))


def plug_in(_: float, __: Floats, variance_RT: Floats, t_T: Floats, alpha: float) -> Floats:
    """The paper's predictable plug-in: the bet that is best at step t for that variance."""
    return np.asarray(np.sqrt(2 * np.log(1 / alpha) / (variance_RT * t_T * np.log(1 + t_T))))


def agrapa(mean: float, mean_RT: Floats, variance_RT: Floats, *_: Floats | float) -> Floats:
    """The paper's aGRAPA: the bet of the largest log capital to second order."""
    return np.asarray((mean_RT - mean) / (variance_RT + (mean_RT - mean) ** 2))


def predictable(x_RT: Floats, mean: float, alpha: float, stake: Callable[..., Floats]) -> Floats:
    """Log e-values of a bet made of the steps before, between 0 and 0.95 / mean: [R, T].

    The mean and variance of the steps before begin with one step of mean 1/2 and variance 1/4, as in the paper.
    """
    t_T = np.arange(1.0, x_RT.shape[1] + 1)
    mean_RT = (0.5 + x_RT.cumsum(1)) / (t_T + 1)
    variance_RT = (0.25 + ((x_RT - mean_RT) ** 2).cumsum(1)) / (t_T + 1)
    starts = ((0.5, mean_RT), (0.25, variance_RT))
    before = (np.hstack([np.full((len(x_RT), 1), start), of_RT[:, :-1]]) for start, of_RT in starts)
    bet_RT = np.clip(stake(mean, *before, t_T, alpha), 0, 0.95 / mean)
    return np.asarray(np.log1p(bet_RT * (x_RT - mean)).cumsum(1))


def bets(rng: np.random.Generator, runs: int, alpha: float = 0.0025) -> dict[str, str]:
    """The package's mixture of bets beside the paper's predictable ones: decisions and patients, one draw."""
    found = {}
    for win_rate in WIN_RATES[2:]:
        x_RT = one_image_each(rng, runs, 1, win_rate)
        outcomes = {"mixture": sequential(x_RT, alpha)}
        for stake in (plug_in, agrapa):
            better_RT = predictable(x_RT, betting.CHANCE, alpha, stake)
            futile_RT = predictable(1 - x_RT, 1 - betting.FUTILE, alpha, stake)
            outcomes[stake.__name__] = decided(better_RT, futile_RT, alpha)
        for name, outcome in outcomes.items():
            found[f"{name}, {win_rate:g}"] = f"better {outcome.better.mean():.3f}, {outcome.n.mean():.0f} patients"
    return found


def at_stop(values_RT: Floats, n_R: NDArray[np.int64]) -> Floats:
    """Values at the step where each series stopped: [R]."""
    return values_RT[np.arange(len(n_R)), n_R - 1]


def missed(x_RT: Floats, n_R: NDArray[np.int64], mean: float, alpha: float) -> float:
    """Share of series whose bounds, one-sided at alpha each, leave out the mean at the step where they stopped."""
    sides = (at_stop(betting.e_process(x, m), n_R) for x, m in ((x_RT, mean), (1 - x_RT, 1 - mean)))
    return float(np.mean(np.maximum(*sides) >= -np.log(alpha)))


def fixed(rng: np.random.Generator, runs: int, win_rate: float) -> Floats:
    """p-values of the fixed design: all images, 5 draws each, one sign-flip test: [runs]."""
    chance_RN = probabilities(rng, runs, SIZES_P, win_rate, CLUSTERED)
    win_RN = rng.binomial(FIXED_DRAWS, chance_RN) / FIXED_DRAWS - 0.5
    return sign_flip(win_RN.T, np.repeat(np.arange(len(SIZES_P)), SIZES_P), N_PERM, seed=0)


def type_one(rng: np.random.Generator, runs: int) -> dict[str, float]:
    """Share of true nulls called better, without the stop for futility, which could only make it smaller."""
    shares = {}
    for name, sds in SDS.items():
        for draws in DRAWS:
            log_e_RT = betting.e_process(one_image_each(rng, runs, draws, 0.5, sds))
            for alpha in ALPHAS:
                rejected = betting.crossing(log_e_RT, alpha) <= log_e_RT.shape[1]
                shares[f"{name}, {draws} draw{'s' * (draws > 1)}, alpha {alpha:g}"] = float(rejected.mean())
    return shares


def contrasts(rng: np.random.Generator, runs: int) -> dict[str, float]:
    """Share of true nulls rejected at 0.05 by designs that do not hold: 40 patients of 15 images, SD 3 of patients."""
    patients, images = 40, 15
    chance_RN = probabilities(rng, runs, np.full(patients, images), 0.5, SDS["SD 3 and 0"])
    x_RN = rng.binomial(1, chance_RN).astype(float)
    means_RP = x_RN.reshape(runs, patients, images).mean(2)
    look_RP = one_image_each(rng, runs, 1, 0.5) - 0.5
    looks = range(40, look_RP.shape[1] + 1, 40)
    p_LR = [sign_flip(look_RP[:, :n].T, np.arange(n), 999, seed=n) for n in looks]
    cells = {
        "patients' means as steps": betting.crossing(betting.e_process(means_RP), 0.05) <= patients,
        "images as steps": betting.crossing(betting.e_process(x_RN), 0.05) <= patients * images,
        "images as steps, shuffled": betting.crossing(betting.e_process(rng.permuted(x_RN, axis=1)), 0.05)
        <= patients * images,
        f"sign-flip test, {len(looks)} looks": np.min(p_LR, axis=0) <= 0.05,
    }
    return {name: float(np.mean(rejected)) for name, rejected in cells.items()}


def power(rng: np.random.Generator, runs: int) -> dict[str, dict[str, float]]:
    """`win rate, draws, alpha` to shares of decisions, patients and passes, beside the fixed design."""
    passes_fixed = int(SIZES_P.sum()) * (1 + FIXED_DRAWS) * PASSES
    cells = {}
    for win_rate in WIN_RATES:
        p_R = fixed(rng, runs, win_rate)
        for draws in DRAWS:
            x_RT = one_image_each(rng, runs, draws, win_rate)
            for alpha in ALPHAS:
                outcome = sequential(x_RT, alpha)
                patients = outcome.n.mean()
                stopped = at_stop(np.cumsum(x_RT, 1), outcome.n) / outcome.n
                cells[f"win rate {win_rate:g}, {draws} draw{'s' * (draws > 1)}, alpha {alpha:g}"] = {
                    "better": float(outcome.better.mean()),
                    "futile": float(outcome.futile.mean()),
                    "patients": float(patients),
                    "patients_error": float(outcome.n.std() / np.sqrt(runs)),
                    "passes": float(patients * (1 + draws) * PASSES),
                    "share_of_fixed": float(patients * (1 + draws) * PASSES / passes_fixed),
                    "bounds_miss": missed(x_RT, outcome.n, win_rate, alpha),
                    "win_rate_at_stop": float(stopped.mean()),
                    "fixed_power": float(np.mean(p_R <= alpha)),
                }
    return cells


def family(rng: np.random.Generator, runs: int) -> dict[str, float]:
    """Bonferroni, which lets every series stop alone, beside Holm of 1 / max K for those it leaves undecided."""
    alpha = betting.family_alpha(0.05, len(FAMILY))
    better_RF, futile_RF, p_RF = (np.zeros((runs, len(FAMILY))) for _ in range(3))
    for f, win_rate in enumerate(FAMILY):
        x_RT = one_image_each(rng, runs, 1, win_rate)
        outcome = sequential(x_RT, alpha)
        highest_RT = np.maximum.accumulate(betting.e_process(x_RT), axis=1)
        better_RF[:, f], futile_RF[:, f] = outcome.better, outcome.futile
        p_RF[:, f] = np.exp(-np.maximum(at_stop(highest_RT, outcome.n), 0))
    by_holm_RF = np.array([holm(p) for p in p_RF]) <= 0.05
    rates = np.array(FAMILY)
    shares = {}
    for name, called_RF in (("Bonferroni", better_RF > 0), ("Holm", (better_RF > 0) | by_holm_RF & (futile_RF == 0))):
        wrong = called_RF[:, rates <= betting.CHANCE].any(1) | (futile_RF > 0)[:, rates >= betting.FUTILE].any(1)
        shares[f"{name}, any wrong"] = float(wrong.mean())
        for win_rate in sorted(set(FAMILY) - {0.5}):
            shares[f"{name}, better at {win_rate:g}"] = float(called_RF[:, rates == win_rate].mean())
    return shares


def main() -> None:
    """The command."""
    args = common.arguments(
        __doc__,
        "a run's folder; none: win rates are simulated",
        runs=(int, 1000, "series of each win rate (nulls: twice as many), or relabellings of RUN"),
    )
    if args.run:
        relabelling.show(args.run, args.runs, args.json)
        return
    rng = np.random.default_rng(0)
    nulls = RUNS_OF_TYPE_I * args.runs
    type_I, cells = type_one(rng, nulls), power(rng, args.runs)
    largest = max(share for name, share in type_I.items() if name.endswith("alpha 0.05"))
    ratios = {"type I at 0.05, the largest of all": largest}
    targets = {"type I at 0.05, the largest of all": 0.05}
    for win_rate, aim in ((0.7, 0.04), (0.8, 0.02)):
        name = f"passes over the fixed design's, win rate {win_rate}, alpha 0.0025"
        ratios[name] = cells[f"win rate {win_rate}, 1 draw, alpha 0.0025"]["share_of_fixed"]
        targets[name] = aim
    shown = {
        name: f"better {c['better']:.3f}, futile {c['futile']:.3f} (fixed: better {c['fixed_power']:.3f}); "
        f"{c['patients']:.0f} +- {c['patients_error']:.0f} patients, {c['passes']:.0f} passes, "
        f"{c['share_of_fixed']:.1%} of the fixed design's; win rate at the stop {c['win_rate_at_stop']:.3f}, "
        f"bounds miss {c['bounds_miss']:.3f}"
        for name, c in cells.items()
    }
    common.show(
        "sequential",
        {},
        ratios,
        targets,
        unit="",
        as_json=args.json,
        split=f"{len(SIZES_P)} patients, {SIZES_P.sum()} images",
        runs=f"{args.runs} of each win rate, {nulls} nulls",
        monte_carlo_error=f"{np.sqrt(0.05 * 0.95 / nulls):.4f} of a type I error of 0.05, "
        f"{0.5 / np.sqrt(args.runs):.3f} at most of other shares",
        type_I=type_I,
        nulls_rejected_by_designs_that_do_not_hold=contrasts(rng, args.runs),
        family_of_20=family(rng, args.runs // 2),
        bets_at_alpha_0025=bets(rng, args.runs // 2),
        **shown,
    )


if __name__ == "__main__":
    main()
