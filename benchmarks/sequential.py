"""The sequential verdict beside the fixed design: wrong decisions, power and forward passes.

RUN is a run with the table faithfulness. Without it, win rates are simulated for a split like the test split: 428
patients with 624 images, log-odds of winning with random effects of patients and of images. The sequential verdict
takes patients in random order, one image each, until it is decided; the fixed design takes 5 draws for every image and
one sign-flip test at the end. With RUN, map and draw change sides at random for each patient, which is a true null with
the patients, images and ties of a real run; the answers to the run's own question stand beside.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from benchmarks import common
from cxr_ray.analysis import betting, primary
from cxr_ray.analysis.beating import N_PERM
from cxr_ray.analysis.resampling import holm, sign_flip
from cxr_ray.errors import RunError
from cxr_ray.results import open_run

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
    steps = x_RT.shape[1]
    better_R = betting.crossing(betting.e_process(x_RT), alpha)
    futile_R = betting.crossing(betting.e_process(1 - x_RT, 1 - betting.FUTILE), alpha)
    first_R = np.minimum(better_R, futile_R)
    decided_R = first_R <= steps
    return Outcome(decided_R & (better_R < futile_R), decided_R & (futile_R < better_R), np.minimum(first_R, steps))


def missed(x_RT: Floats, n_R: NDArray[np.int64], mean: float, alpha: float) -> float:
    """Share of series whose bounds, one-sided at alpha each, leave out the mean at the step where they stopped."""
    at = n_R[:, None] - 1
    sides = (np.take_along_axis(betting.e_process(x, m), at, 1) for x, m in ((x_RT, mean), (1 - x_RT, 1 - mean)))
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
                stopped = np.cumsum(x_RT, 1)[np.arange(runs), outcome.n - 1] / outcome.n
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
        p_RF[:, f] = np.exp(-np.maximum(highest_RT[np.arange(runs), outcome.n - 1], 0))
    by_holm_RF = np.array([holm(p) for p in p_RF]) <= 0.05
    rates = np.array(FAMILY)
    shares = {}
    for name, called_RF in (("Bonferroni", better_RF > 0), ("Holm", (better_RF > 0) | by_holm_RF & (futile_RF == 0))):
        wrong = called_RF[:, rates <= betting.CHANCE].any(1) | (futile_RF > 0)[:, rates >= betting.FUTILE].any(1)
        shares[f"{name}, any wrong"] = float(wrong.mean())
        for win_rate in sorted(set(FAMILY) - {0.5}):
            shares[f"{name}, better at {win_rate:g}"] = float(called_RF[:, rates == win_rate].mean())
    return shares


@dataclass(frozen=True)
class Series:
    """Win rates of one model and explainer over one control, an image a row.

    Attributes:
        name: of model, explainer and control.
        x_N: win rates, [N].
        patients_N: their patients, [N].
    """

    name: str
    x_N: Floats
    patients_N: NDArray[Any]


def of_run(path: str) -> list[Series]:
    """All series of a run's primary metric, grid and fill: the target PNEUMONIA where it was asked for."""
    run = open_run(path)
    settings = primary.of_run(run)
    wanted = (
        (pads.field("metric") == settings.metric)
        & (pads.field("scale") == settings.scale)
        & (pads.field("grid") == settings.grid)
        & (pads.field("fill") == settings.fill)
        & (pads.field("control") != "none")
    )
    columns = ["trial_id", "explainer", "control", "image_id", "target", "win_rate"]
    rows = run.pandas("faithfulness", columns, wanted).dropna(subset="win_rate")
    rows = rows[rows["target"] == rows.groupby(["trial_id", "explainer", "image_id"])["target"].transform("max")]
    patient_of = run.pandas("images", ["image_id", "patient_id"]).set_index("image_id")["patient_id"]
    return [
        Series(
            ", ".join(map(str, names)),
            part["win_rate"].to_numpy(float),
            patient_of.loc[part["image_id"]].to_numpy(object),
        )
        for names, part in rows.groupby(["trial_id", "explainer", "control"], observed=True)
    ]


def in_random_order(rng: np.random.Generator, series: Series) -> Floats:
    """Win rates of one random image of each patient, patients in random order: [T]."""
    shuffled = rng.permutation(len(series.x_N))
    _, first = np.unique(series.patients_N[shuffled].astype(str), return_index=True)
    return series.x_N[shuffled[np.sort(first)]]


def relabelled(series: Series, relabellings: int, seed: int) -> dict[str, float]:
    """Shares of true nulls rejected at 0.05: map and draws change sides at random for each patient."""
    rng = np.random.default_rng(seed)
    codes_N = pd.factorize(series.patients_N)[0]
    side_RP = rng.integers(0, 2, (relabellings, codes_N.max() + 1)) * 2 - 1
    x_RT = np.stack([in_random_order(rng, series) for _ in range(relabellings)])
    # An order is random, and so are the sides: step t may take those of patient t.
    x_RT = 0.5 + side_RP * (x_RT - 0.5)
    p_R = sign_flip((side_RP[:, codes_N] * (series.x_N - 0.5)).T, series.patients_N, N_PERM, seed=seed)
    return {
        "sequential": float(np.mean(betting.crossing(betting.e_process(x_RT), 0.05) <= x_RT.shape[1])),
        "fixed": float(np.mean(p_R <= 0.05)),
    }


def answers(all_series: list[Series]) -> dict[str, str]:
    """The sequential answer to each of a run's own questions beside the fixed one."""
    alpha = betting.family_alpha(0.05, len(all_series))
    shown = {}
    for series in all_series:
        d = betting.decide(in_random_order(np.random.default_rng(0), series), alpha)
        p = sign_flip(series.x_N[:, None] - 0.5, series.patients_N, N_PERM, seed=0)[0]
        total = len(set(series.patients_N))
        shown[series.name] = (
            f"{d.decision} after {d.n} of {total} patients, win rate {d.win_rate:.2f} [{d.lower:.2f}, {d.upper:.2f}]; "
            f"fixed: win rate {series.x_N.mean():.2f} over {len(series.x_N)} images, p {p:.4f}"
        )
    return shown


def show_run(args: argparse.Namespace) -> None:
    """Prints what relabelling and the run's own questions give."""
    try:
        all_series = of_run(args.run)
    except RunError as e:
        raise SystemExit(str(e)) from None
    if not all_series:
        raise SystemExit(f"{args.run}: no win rate of the primary metric; expected a run with controls.")
    nulls = {s.name: relabelled(s, args.runs, seed) for seed, s in enumerate(all_series)}
    n = args.runs * len(nulls)
    means = {way: float(np.mean([shares[way] for shares in nulls.values()])) for way in ("sequential", "fixed")}
    common.show(
        "sequential",
        {},
        {f"{way}: true nulls rejected at 0.05": share for way, share in means.items()},
        dict.fromkeys((f"{way}: true nulls rejected at 0.05" for way in means), 0.05),
        unit="",
        as_json=args.json,
        nulls=f"{args.runs} relabellings of {len(nulls)} series, which share their images",
        monte_carlo_error=f"{100 * np.sqrt(0.05 * 0.95 / n):.2f}% were the series independent",
        most_rejected={way: max(shares[way] for shares in nulls.values()) for way in means},
        level_of_bounds=f"{100 * (1 - 2 * betting.family_alpha(0.05, len(nulls))):.2f}%",
        **answers(all_series),
    )


def main() -> None:
    """The command."""
    args = common.arguments(
        __doc__,
        "a run's folder; none: win rates are simulated",
        runs=(int, 1000, "series of each win rate (nulls: twice as many), or relabellings of RUN"),
    )
    if args.run:
        show_run(args)
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
        **shown,
    )


if __name__ == "__main__":
    main()
