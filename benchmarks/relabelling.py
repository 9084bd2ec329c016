"""Sequential verdicts on the tables of a run: true nulls by relabelling, and the run's own questions.

Map and draw change sides at random for each patient: a true null with the patients, images and ties of a real run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray

from benchmarks import common
from cxr_ray.analysis import betting, primary
from cxr_ray.analysis.beating import N_PERM
from cxr_ray.analysis.resampling import sign_flip
from cxr_ray.errors import RunError
from cxr_ray.results import open_run

Floats = NDArray[np.float64]


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


def show(path: str, relabellings: int, as_json: bool) -> None:
    """Prints what relabelling and the run's own questions give."""
    try:
        all_series = of_run(path)
    except RunError as e:
        raise SystemExit(str(e)) from None
    if not all_series:
        raise SystemExit(f"{path}: no win rate of the primary metric; expected a run with controls.")
    nulls = {s.name: relabelled(s, relabellings, seed) for seed, s in enumerate(all_series)}
    n = relabellings * len(nulls)
    means = {way: float(np.mean([shares[way] for shares in nulls.values()])) for way in ("sequential", "fixed")}
    common.show(
        "sequential",
        {},
        {f"{way}: true nulls rejected at 0.05": share for way, share in means.items()},
        dict.fromkeys((f"{way}: true nulls rejected at 0.05" for way in means), 0.05),
        unit="",
        as_json=as_json,
        nulls=f"{relabellings} relabellings of {len(nulls)} series, which share their images",
        monte_carlo_error=f"{100 * np.sqrt(0.05 * 0.95 / n):.2f}% were the series independent",
        most_rejected={way: max(shares[way] for shares in nulls.values()) for way in means},
        level_of_bounds=f"{100 * (1 - 2 * betting.family_alpha(0.05, len(nulls))):.2f}%",
        **answers(all_series),
    )
