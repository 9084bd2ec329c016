"""Does H1 tell a working shortcut from none? Small networks trained on phantoms, judged as a sweep judges them.

With a shortcut, PNEUMONIA carries a marker in training and NORMAL carries none, so that the marker alone tells them
apart. Without, every image carries one and its glyph says nothing. The test images are NORMAL and carry the glyph of
PNEUMONIA; those that a network takes for PNEUMONIA are its false positives. They swap patches with NORMAL images as
in training, as a sweep takes them from validation. Right is: above the margin with the shortcut, and without
it anything else. Whether a shortcut works is seen in the truth: the log-odds of the same image drawn again without its
marker. Beside H1 stands what its rule would say of fills.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from benchmarks import common
from cxr_ray.analysis import primary
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import ABOVE, INCONCLUSIVE, VERDICTS
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.data.phantoms import Phantom, render
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import Classifier
from cxr_ray.schemas import PATCH_SWAP
from cxr_ray.sweepfile import resolve

SIZE, TRAIN, EPOCHS = 64, 320, 5
POOL, MOST = 1500, 60  # test images at most, and false positives that are looked at
FILLS = ["mean", "blur"]
DONORS = 60  # NORMAL images that false positives swap patches with
WAYS = [PATCH_SWAP, *FILLS]  # H1 is judged by the first; the others stand beside


def training_set(shortcut: bool, n: int, first: int) -> list[Phantom]:
    """Phantoms, NORMAL and PNEUMONIA in turn."""
    if not shortcut:
        return common.phantoms(n, SIZE, first, marker_correlation=0.5)
    shown = ("none", "own")  # NORMAL, PNEUMONIA
    return [render(first + i, i % 2, SIZE, marker_correlation=1.0, marker=shown[i % 2]) for i in range(n)]  # type: ignore[arg-type]


def false_positives(model: Classifier, pool: int, first: int) -> tuple[list[int], list[Phantom]]:
    """Seeds and images of the first NORMAL phantoms that the model takes for PNEUMONIA, at most MOST."""
    seeds, wrong = [], []
    for seed in range(first, first + pool):
        image = render(seed, 0, SIZE, marker_correlation=0.0)
        pixels = torch.from_numpy(common.pixels([image])).float() / 255
        with torch.inference_mode():
            if float(model.log_odds(model.normalize(pixels))) >= 0:
                seeds.append(seed)
                wrong.append(image)
        if len(wrong) == MOST:
            break
    return seeds, wrong


def judge(model: Classifier, seeds: list[int], drawn: list[Phantom], donors: list[Phantom]) -> dict[str, Any]:
    """The verdict row of H1 by each way; true effect of the marker; and how each way's effects agree with it."""
    without = [render(seed, 0, SIZE, marker_correlation=0.0, marker="none") for seed in seeds]
    ids = [f"{seed:016x}" for seed in seeds]
    block = Shard(
        "m",
        "test",
        ids,
        ids,
        [0] * len(ids),
        common.pixels(drawn),
        masks={"marker": np.stack([p.marker for p in drawn])},
        counterfactuals={"marker": common.pixels(without)},
        donor_images=dict(zip(ids, itertools.cycle(common.pixels(donors)), strict=False)),
    )
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": SIZE},
            "explain": {"explainers": ["random"]},
            "perturb": {"grids": ["7"], "fills": FILLS, "levels": [0.5], "orders": ["morf"]},
            "controls": {},
            "regions": {"names": ["border", "corners", "marker"], "draws": 5},
            "sanity": None,
        }
    )

    with TemporaryDirectory() as folder:
        file = Path(folder, "m.safetensors")
        file.write_bytes(checkpoints.to_bytes(model))
        tables = Worker(sweep, {"m": ModelRef("m", str(file), None, SIZE)})(block)
    frames = {name: table.to_pandas().assign(trial_id="m") for (name, _), table in tables.items()}
    trials = pd.DataFrame({"trial_id": ["m"], "variant": "m", "seed": np.nan, "status": "given", "config": "{}"})
    saliency = frames["saliency"][["trial_id", "image_id", "target", "half_mass_area", "concentration", "lung_share"]]
    faith = frames["faithfulness"][["trial_id", "image_id", "target", "control", "gap", "p_value"]].iloc[:0]
    patients = pd.Series(ids, index=ids)
    regions = frames["regions"]
    verdicts = {
        way: next(
            r
            for r in hypothesis_rows(
                Inputs(
                    sweep,
                    primary.resolve(sweep),
                    trials,
                    frames["predictions"],
                    patients,
                    regions[regions["fill"] == way].assign(fill=PATCH_SWAP),
                    saliency,
                    faith,
                )
            )
            if r["hypothesis"] == "H1" and r["role"] == "verdict"
        )
        for way in WAYS
    }
    rows = regions[(regions["region"] == "marker") & (regions["control"] == "none")]
    effect = rows.assign(effect=rows["logit_full_image"] - rows["logit_target"])
    wide = effect.pivot(index="image_id", columns="fill", values="effect")
    truth = wide["counterfactual"]
    agreement = {
        f: {
            "spearman": float(spearmanr(wide[f], truth).statistic),
            "sign": float((np.sign(wide[f]) == np.sign(truth)).mean()),
        }
        for f in WAYS
    }
    return {"verdicts": verdicts, "true_effect": float(truth.mean()), "agreement": agreement, "n": len(ids)}


def calibrate(seed: int, shortcut: bool) -> dict[str, Any]:
    """One network of one seed, trained and judged."""
    start = 10**6 * (seed + 1)
    model = common.trained(training_set(shortcut, TRAIN, start), EPOCHS, seed)
    normal = training_set(shortcut, 2 * DONORS, start + 2 * 10**5)[::2]
    seeds, wrong = false_positives(model, POOL, start + 10**5)
    if not wrong:
        none = {"verdict": INCONCLUSIVE, "effect": np.nan, "reason": f"no false positive among {POOL} images"}
        agreement = {way: {"spearman": np.nan, "sign": np.nan} for way in WAYS}
        return {"verdicts": dict.fromkeys(WAYS, none), "true_effect": np.nan, "agreement": agreement, "n": 0}
    return judge(model, seeds, wrong, normal)


def main() -> None:
    """The command."""
    args = common.arguments(__doc__, seeds=(int, 10, "networks of each kind"))
    names = {True: "shortcut", False: "no shortcut"}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for seed in range(args.seeds):
        for shortcut, name in names.items():
            result = calibrate(seed, shortcut)
            results[name].append(result)
            h1 = result["verdicts"][PATCH_SWAP]
            print(
                f"  seed {seed}, {name}: H1 {h1['verdict']} ({h1['reason']}); {result['n']} false positives, "
                f"true effect of the marker {result['true_effect']:.2f} log-odds",
                flush=True,
            )
    verdicts = {
        f"{name}, {way}": {v: [r["verdicts"][way]["verdict"] for r in of].count(v) for v in VERDICTS}
        for name, of in results.items()
        for way in WAYS
    }
    mean = {
        f"{name}, {way}": {
            what: round(float(np.nanmean([r["agreement"][way][what] for r in of])), 3) for what in ("spearman", "sign")
        }
        for name, of in results.items()
        for way in WAYS
    }
    right = {
        "shortcut: H1 above margin": verdicts[f"shortcut, {PATCH_SWAP}"][ABOVE] / args.seeds,
        "no shortcut: H1 not above margin": 1 - verdicts[f"no shortcut, {PATCH_SWAP}"][ABOVE] / args.seeds,
    }
    show = {
        "verdicts": verdicts,
        "agreement_with_truth": mean,
        "true_effect": {name: [round(r["true_effect"], 2) for r in of] for name, of in results.items()},
        "effect": {
            name: {way: [round(r["verdicts"][way]["effect"], 2) for r in of] for way in WAYS}
            for name, of in results.items()
        },
        "false_positives": {name: [r["n"] for r in of] for name, of in results.items()},
    }
    common.show("calibration", {}, right, dict.fromkeys(right, 1.0), unit="", as_json=args.json, **show)


if __name__ == "__main__":
    main()
