"""Test and interval under a true null: stored draws are relabelled, no forward pass is made.

One draw of a control stands for the map and the other draws are its control. That is a true null where the draws of an
image are exchangeable: random pixels among pixel_random, random cells among cell_random, smooth fields among
smooth_random, and elements of a map's orbit among shifted. The map itself, the orbit's identity, is not among them: a
map that shows anything is no random element of its orbit. Gap and win rate - 1/2 of every image then have the mean 0
over relabellings, so that the sign-flip test must reject 5% at 5% and the interval of the mean gap cover 0 in 95%. The
test of the mean gap (both tails) must not reject more, nor the interval of the win rate cover less.
All images of a patient take the same draw. Where they share its masks, they win or lose together.

RUN is a run with the table curves. Without it, the draws come from a small network on phantoms. Patients have one to
nine images, as in the test split: the same anatomy at another place, exposure and noise, under the same masks. Images
as units of their own stand beside, and must not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray

from benchmarks import common
from cxr_ray.analysis.beating import N_PERM
from cxr_ray.analysis.resampling import CI_METHOD, mean_p, patient_bootstrap, patient_codes, patient_sums, sign_flip
from cxr_ray.analysis.shares import mean_shares
from cxr_ray.errors import RunError
from cxr_ray.measure.faithfulness import compare
from cxr_ray.measure.metrics import METRICS, evaluate
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import checkpoints
from cxr_ray.results import open_run
from cxr_ray.schemas import SHARED
from cxr_ray.sweepfile import resolve

EXCHANGEABLE = ("shifted", "pixel_random", "cell_random", "smooth_random")
PATIENTS = (20, 50, 200)
ALPHA = 0.05
PER_SUBSET = 10  # relabellings of one choice of patients; they share the bootstrap's samples
SIZE, N_PATIENTS, DRAWS = 64, 220, 10
SHARD = 20  # images

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Relabelled:
    """Each draw in turn as the map: win rate minus 1/2, and gap against the others, [N images, D draws, M]."""

    names: list[str]
    win_NDM: Floats
    gap_NDM: Floats


class Held(NamedTuple):
    """Shares of relabellings: tests of the win rate that reject at 5%, intervals of the mean gap that cover 0, tests of
    the mean gap that reject at 5%, intervals of the win rate that cover 1/2."""

    rejects: float
    covers: float
    mean_rejects: float
    win_covers: float


def relabelled(values_NDM: Floats, names: list[str]) -> Relabelled:
    """Metrics of each draw to win rate - 1/2 and gap; names: `abpc`, or `drop at 0.1`."""
    higher = np.array([METRICS[name.split()[0]].higher_is_faithful for name in names])
    others = [compare(values_NDM[:, d], np.delete(values_NDM, d, 1), higher) for d in range(values_NDM.shape[1])]
    win_rate_NDM, gap_NDM = (np.stack([c[what] for c in others], 1) for what in ("win_rate", "gap"))
    return Relabelled(names, win_rate_NDM - 0.5, gap_NDM)


def null(
    controls: Mapping[str, Relabelled],
    patients_N: NDArray[Any],
    n_patients: int,
    relabellings: int,
    seed: int,
    *,
    images_alone: bool = False,
) -> dict[str, Held]:
    """`control, metric` to how tests and intervals hold, over random patients.

    ``images_alone`` tests as if each image were a patient of its own, for contrast.
    """
    rng = np.random.default_rng((seed, n_patients))
    names = np.unique(patients_N)
    held, done = [], 0
    while done < relabellings:
        images = np.flatnonzero(np.isin(patients_N, rng.choice(names, n_patients, replace=False)))
        codes, _ = patient_codes(patients_N[images])
        turns = min(PER_SUBSET, relabellings - done)
        chosen = rng.random((turns, n_patients))[:, codes]
        win, gap = (
            np.concatenate([_pick(getattr(c, what)[images], chosen) for c in controls.values()], axis=2)
            for what in ("win_NDM", "gap_NDM")
        )  # [turns, images, controls x metrics]
        win_NK, gap_NK = (x.transpose(1, 0, 2).reshape(len(images), -1) for x in (win, gap))
        units = images if images_alone else codes
        p_K = sign_flip(win_NK, units, N_PERM, seed=seed + done)
        lower_K, upper_K = patient_bootstrap(gap_NK, units, seed=seed + done)
        mean_K, patients_K = gap_NK.mean(0), np.full(len(p_K), len(np.unique(units)))
        win_lower_K, win_upper_K = mean_shares(win_NK + 0.5, units)
        shares = (
            p_K <= ALPHA,
            (lower_K <= 0) & (upper_K >= 0),
            mean_p(mean_K, lower_K, patients_K) <= ALPHA,
            (win_lower_K <= 0.5) & (win_upper_K >= 0.5),
        )
        held.append(np.stack(shares).reshape(len(shares), turns, -1))
        done += turns
    cells = [f"{control}, {name}" for control, c in controls.items() for name in c.names]
    shares_4K = np.concatenate(held, axis=1).mean(1)
    return {cell: Held(*map(float, shares)) for cell, shares in zip(cells, shares_4K.T, strict=True)}


def within_patients(controls: Mapping[str, Relabelled], patients_N: NDArray[Any]) -> dict[str, float]:
    """Correlation of win rates of two images of a patient at the same draw, for each control's first metric."""
    codes, n = patient_codes(patients_N)
    found = {}
    for control, c in controls.items():
        win_ND = c.win_NDM[:, :, 0]
        sums_PD, counts_PD = patient_sums(win_ND, codes, n)
        squares_PD, _ = patient_sums(win_ND**2, codes, n)
        products = (sums_PD**2 - squares_PD).sum()  # over all ordered pairs of a patient's images
        pairs = (counts_PD * (counts_PD - 1)).sum()
        found[control] = round(float(products / pairs / np.mean(win_ND**2)), 3) if pairs else float("nan")
    return found


def _pick(values_NDM: Floats, chosen_TN: Floats) -> Floats:
    """The draw that each turn chooses of each image: [T, N, M]."""
    draw_TN = (chosen_TN * values_NDM.shape[1]).astype(int)
    return values_NDM[np.arange(len(values_NDM)), draw_TN]


def of_curves(curves: pd.DataFrame) -> tuple[dict[str, Relabelled], list[str]]:
    """Controls of the table `curves` (one trial, one explainer and `shared`), in log-odds, and the images in order.

    The first fill, pixels where they are ranked, and one target an image, PNEUMONIA where it is among them.
    """
    grid = "pixel" if "pixel" in set(curves["grid"]) else curves["grid"].iloc[0]
    curves = curves[(curves["fill"] == curves["fill"].iloc[0]) & (curves["grid"] == grid)]
    curves = curves[curves["target"] == curves.groupby("image_id")["target"].transform("max")]
    curves = curves.sort_values(["image_id", "draw", "direction", "level"])
    image_ids = sorted(set(curves["image_id"]))
    controls = {}
    for control, part in curves.groupby("control"):
        shape = [part[c].nunique() for c in ("image_id", "draw", "direction", "level")]
        if control not in EXCHANGEABLE or shape[0] < len(image_ids) or shape[1] < 2 or len(part) != np.prod(shape):
            continue
        scores = part["logit_target"].to_numpy(float).reshape(shape)
        levels, levels_done = (part[c].to_numpy(float)[: shape[3]] for c in ("level", "level_done"))
        by_order = {o: scores[:, :, i] for i, o in enumerate(sorted(set(part["direction"])))}
        names, values_NDM = evaluate(by_order, levels[1:-1].tolist(), levels_done)
        controls[str(control)] = relabelled(values_NDM, [n if np.isnan(at) else f"{n} at {at:g}" for n, at in names])
    return controls, image_ids


def of_run(path: str) -> tuple[dict[str, Relabelled], NDArray[Any]]:
    """Controls and patients of a run's first trial and explainer."""
    run = open_run(path)
    trial, explainer = run.pandas("trials")["trial_id"].iloc[0], run.sweep["explain"]["explainers"][0]
    wanted = (pads.field("trial_id") == trial) & pads.field("explainer").isin([explainer, SHARED])
    controls, image_ids = of_curves(run.pandas("curves", filter=wanted & pads.field("control").isin(EXCHANGEABLE)))
    return controls, run.pandas("images").set_index("image_id")["patient_id"].loc[image_ids].to_numpy(object)


def visit(phantoms_NHW: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """The same patients once more: moved by up to 3 pixels, another exposure, more noise; visit 0 is as given."""
    if number == 0:
        return phantoms_NHW
    rng = np.random.default_rng(number)
    moved = np.roll(phantoms_NHW, rng.integers(-3, 4, 2), axis=(1, 2)) * rng.uniform(0.9, 1.1)
    return np.clip(moved + rng.normal(0, 4, moved.shape), 0, 255).astype(np.uint8)


def of_phantoms(patients: int, draws: int) -> tuple[dict[str, Relabelled], NDArray[Any]]:
    """Draws of a ResNet-18 trained on phantoms, and the patients of the images.

    Masks are functions of an image's name. So each visit is measured under the names of the patients.
    """
    model = common.trained(common.phantoms(320, SIZE, 0), epochs=3, seed=0)
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": SIZE},
            "explain": {"explainers": ["gradcam"]},
            "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75]},
            "controls": dict.fromkeys(EXCHANGEABLE, draws),
            "regions": None,
        }
    )
    first = np.stack([p.image for p in common.phantoms(patients, SIZE, 10_000)])
    sizes_P = np.random.default_rng(0).permutation(common.patient_sizes(patients))
    frames = []
    with TemporaryDirectory() as folder:
        file = Path(folder, "m.safetensors")
        file.write_bytes(checkpoints.to_bytes(model))
        worker = Worker(sweep, {"m": ModelRef("m", str(file), None, SIZE)})
        for number in range(sizes_P.max()):
            seen = np.flatnonzero(sizes_P > number)
            pixels = np.repeat(visit(first, number)[:, None], 3, axis=1)
            for start in range(0, len(seen), SHARD):
                some = seen[start : start + SHARD]
                names = [f"{p:016x}" for p in some]
                tables = worker(Shard("m", "test", names, names, (some % 2).tolist(), pixels[some]))
                curves = [table.to_pandas() for (name, _), table in tables.items() if name == "curves"]
                frames += [frame.assign(image_id=frame["image_id"] + f"-{number}") for frame in curves]
    controls, image_ids = of_curves(pd.concat(frames, ignore_index=True))
    return controls, np.array([name.split("-")[0] for name in image_ids])


def main() -> None:
    """The command."""
    args = common.arguments(
        __doc__,
        "a run's folder; none: draws are made on phantoms",
        relabellings=(int, 1000, "relabellings of each number of patients"),
        patients=(int, N_PATIENTS, "of phantoms, without RUN"),
        draws=(int, DRAWS, "draws of each control, without RUN"),
    )
    try:
        controls, patients = of_run(args.run) if args.run else of_phantoms(args.patients, args.draws)
    except RunError as e:
        raise SystemExit(str(e)) from None
    sizes = [n for n in PATIENTS if n <= len(np.unique(patients))]
    if not controls or not sizes:
        raise SystemExit(f"{args.run}: no control of {', '.join(EXCHANGEABLE)} with 2 draws, or under 20 patients.")
    results = {
        f"{cell}, {n} patients": shares
        for n in sizes
        for cell, shares in null(controls, patients, n, args.relabellings, seed=0).items()
    }
    alone = null(controls, patients, sizes[-1], args.relabellings, seed=0, images_alone=True)
    error = float(np.sqrt(ALPHA * (1 - ALPHA) / args.relabellings))
    rejects, covers, mean_rejects, win_covers = (np.array(column) for column in zip(*results.values(), strict=True))
    ratios = {
        "rejections at 5%, farthest from 5% in Monte Carlo errors": float(np.abs(rejects - ALPHA).max() / error),
        "coverage of 95%, farthest from 95% in Monte Carlo errors": float(np.abs(covers - 1 + ALPHA).max() / error),
        "rejections of the mean gap at 5%, above 5% in Monte Carlo errors": float((mean_rejects.max() - ALPHA) / error),
        "coverage of the win rate, below 95% in Monte Carlo errors": float((1 - ALPHA - win_covers.min()) / error),
    }
    shown = {
        cell: f"win rate: rejects {100 * h.rejects:.1f}%, covers {100 * h.win_covers:.1f}%; "
        f"mean gap: rejects {100 * h.mean_rejects:.1f}%, covers {100 * h.covers:.1f}%"
        for cell, h in results.items()
    }
    common.show(
        "null",
        {},
        ratios,
        dict.fromkeys(ratios, 3.0),
        unit="",
        as_json=args.json,
        interval=CI_METHOD,
        monte_carlo_error=f"{100 * error:.2f}%",
        relabellings=args.relabellings,
        images=len(patients),
        patients=len(np.unique(patients)),
        correlation_within_patients={
            control: round(r, 2) for control, r in within_patients(controls, patients).items()
        },
        images_as_patients=f"rejects {100 * max(h.rejects for h in alone.values()):.1f}% at most, "
        f"covers {100 * min(h.covers for h in alone.values()):.1f}% at least, {sizes[-1]} patients",
        **shown,
    )


if __name__ == "__main__":
    main()
