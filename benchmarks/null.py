"""Test and interval under a true null: stored draws are relabelled, no forward pass is made.

One draw of a control stands for the map and the other draws are its control. That is a true null where the draws of an
image are exchangeable: random pixels among pixel_random, random cells among cell_random, smooth fields among
smooth_random, and elements of a map's orbit among shifted. The map itself, the orbit's identity, is not among them: a
map that shows anything is no random element of its orbit. Gap and win rate - 1/2 of every image then have the mean 0
over relabellings, so that the sign-flip test must reject 5% at 5% and the interval of the mean gap cover 0 in 95%.

RUN is a run with the table curves. Without it, the draws come from a small network trained on phantoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray

from benchmarks import common
from cxr_ray.analysis.beating import N_PERM
from cxr_ray.analysis.resampling import CI_METHOD, patient_bootstrap, sign_flip
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
SIZE, IMAGES, DRAWS = 64, 220, 10

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Relabelled:
    """Each draw in turn as the map: win rate minus 1/2, and gap against the others, [N images, D draws, M]."""

    names: list[str]
    win_NDM: Floats
    gap_NDM: Floats


def relabelled(values_NDM: Floats, names: list[str]) -> Relabelled:
    """Metrics of each draw to win rate - 1/2 and gap; names: `abpc`, or `drop at 0.1`."""
    higher = np.array([METRICS[name.split()[0]].higher_is_faithful for name in names])
    others = [compare(values_NDM[:, d], np.delete(values_NDM, d, 1), higher) for d in range(values_NDM.shape[1])]
    win_rate_NDM, gap_NDM = (np.stack([c[what] for c in others], 1) for what in ("win_rate", "gap"))
    return Relabelled(names, win_rate_NDM - 0.5, gap_NDM)


def null(
    controls: Mapping[str, Relabelled], patients_N: NDArray[Any], n_patients: int, relabellings: int, seed: int
) -> dict[str, tuple[float, float]]:
    """`control, metric` to the share of tests that reject and of intervals that cover 0, over random patients."""
    rng = np.random.default_rng((seed, n_patients))
    names = np.unique(patients_N)
    rejected, covered, done = [], [], 0
    while done < relabellings:
        images = np.flatnonzero(np.isin(patients_N, rng.choice(names, n_patients, replace=False)))
        turns = min(PER_SUBSET, relabellings - done)
        chosen = rng.random((turns, len(images)))
        win, gap = (
            np.concatenate([_pick(getattr(c, what)[images], chosen) for c in controls.values()], axis=2)
            for what in ("win_NDM", "gap_NDM")
        )  # [turns, images, controls x metrics]
        win_NK, gap_NK = (x.transpose(1, 0, 2).reshape(len(images), -1) for x in (win, gap))
        p_K = sign_flip(win_NK, patients_N[images], N_PERM, seed=seed + done)
        lower_K, upper_K = patient_bootstrap(gap_NK, patients_N[images], seed=seed + done)
        rejected.append((p_K <= ALPHA).reshape(turns, -1))
        covered.append(((lower_K <= 0) & (upper_K >= 0)).reshape(turns, -1))
        done += turns
    cells = [f"{control}, {name}" for control, c in controls.items() for name in c.names]
    shares = (np.concatenate(x).mean(0).tolist() for x in (rejected, covered))
    return dict(zip(cells, zip(*shares, strict=True), strict=True))


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


def of_phantoms(images: int, draws: int) -> tuple[dict[str, Relabelled], NDArray[Any]]:
    """Draws of a ResNet-18 trained on phantoms, each a patient of its own."""
    model = common.trained(common.phantoms(320, SIZE, 0), epochs=3, seed=0)
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": SIZE},
            "explain": {"explainers": ["gradcam"]},
            "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": [0.1, 0.3]},
            "controls": dict.fromkeys(EXCHANGEABLE, draws),
            "regions": None,
        }
    )
    test = common.pixels(common.phantoms(images, SIZE, 10_000))
    ids = [f"{i:016x}" for i in range(images)]
    frames = []
    with TemporaryDirectory() as folder:
        file = Path(folder, "m.safetensors")
        file.write_bytes(checkpoints.to_bytes(model))
        worker = Worker(sweep, {"m": ModelRef("m", str(file), None, SIZE)})
        for start in range(0, images, 20):
            shard = slice(start, start + 20)
            labels = (np.arange(images) % 2)[shard].tolist()
            tables = worker(Shard("m", "test", ids[shard], ids[shard], labels, test[shard]))
            frames += [table.to_pandas() for (name, _), table in tables.items() if name == "curves"]
    controls, image_ids = of_curves(pd.concat(frames, ignore_index=True))
    return controls, np.array(image_ids)


def main() -> None:
    """The command."""
    args = common.arguments(
        __doc__,
        "a run's folder; none: draws are made on phantoms",
        relabellings=(int, 1000, "relabellings of each number of patients"),
        images=(int, IMAGES, "phantoms, without RUN"),
        draws=(int, DRAWS, "draws of each control, without RUN"),
    )
    try:
        controls, patients = of_run(args.run) if args.run else of_phantoms(args.images, args.draws)
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
    error = float(np.sqrt(ALPHA * (1 - ALPHA) / args.relabellings))
    rejects, covers = (np.array(column) for column in zip(*results.values(), strict=True))
    ratios = {
        "rejections at 5%, farthest from 5% in Monte Carlo errors": float(np.abs(rejects - ALPHA).max() / error),
        "coverage of 95%, farthest from 95% in Monte Carlo errors": float(np.abs(covers - 1 + ALPHA).max() / error),
    }
    shown = {cell: f"rejects {100 * r:.1f}%, covers {100 * c:.1f}%" for cell, (r, c) in results.items()}
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
        **shown,
    )


if __name__ == "__main__":
    main()
