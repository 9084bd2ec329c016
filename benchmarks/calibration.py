"""Does H1 tell a working shortcut from none? Small networks trained on phantoms, judged as a sweep judges them.

With a shortcut, PNEUMONIA carries a marker and NORMAL carries none, so that the marker alone tells them apart. Without,
every image carries one and its glyph says nothing. Right is: above the margin with the shortcut; anything else without
it, of which within the margin says more than inconclusive. Whether a shortcut works is seen in the truth: the log-odds
of a NORMAL image drawn with the glyph of PNEUMONIA minus without any marker.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import common
from cxr_ray.analysis.hypotheses.h1_shortcuts import contrasts
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import ABOVE, VERDICTS
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.analysis.primary import resolve as primary_settings
from cxr_ray.data.phantoms import Phantom, render
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import Classifier
from cxr_ray.schemas import TABLES
from cxr_ray.sweepfile import resolve

SIZE, TRAIN, EPOCHS = 64, 320, 5
RECIPIENTS = 60  # each with a donor of either class


def drawn(shortcut: bool, n: int, first: int) -> list[Phantom]:
    """Phantoms, NORMAL and PNEUMONIA in turn."""
    if not shortcut:
        return common.phantoms(n, SIZE, first, marker_correlation=0.5)
    shown = ("none", "own")  # NORMAL, PNEUMONIA
    return [render(first + i, i % 2, SIZE, marker_correlation=1.0, marker=shown[i % 2]) for i in range(n)]  # type: ignore[arg-type]


def judge(model: Classifier, recipients: list[Phantom], donors: list[Phantom]) -> dict[str, Any]:
    """The verdict row of H1, and the contrast of each region. ``donors``: NORMAL and PNEUMONIA in turn."""
    ids, swaps, images = [], [], []
    for r, recipient in enumerate(recipients):
        for label, image in ((None, recipient), (0, donors[2 * r]), (1, donors[2 * r + 1])):
            ids.append(f"recipient{r}" if label is None else f"donor{r}.{label}")
            swap = {"image_id": f"recipient{r}", "draw": 0, "donor_label": label, "donor_patient": ids[-1]}
            swaps.append(None if label is None else swap)
            images.append(image)
    labels = [0 if s is None else int(str(s["donor_label"])) for s in swaps]
    masks = {name: np.stack([getattr(p, name) for p in images]) for name in ("marker", "lungs")}
    shard = Shard("m", "donors", ids, ids, labels, common.pixels(images), masks=masks, swaps=swaps)
    sweep = resolve(
        {"data": {"source": "phantom", "size": SIZE}, "explain": {"explainers": ["random"]}, "sanity": None}
    )
    with TemporaryDirectory() as folder:
        file = Path(folder, "m.safetensors")
        file.write_bytes(checkpoints.to_bytes(model))
        tables = Worker(sweep, {"m": ModelRef("m", str(file), None, SIZE)})(shard)
    found = tables["donor_swaps", ""].to_pandas().assign(trial_id="m")
    logit = found.drop_duplicates("image_id").set_index("image_id")["logit_full"]
    predictions = pd.DataFrame(
        {"trial_id": "m", "image_id": logit.index, "split": "test", "label": 0, "logit_pneumonia": logit.to_numpy()}
    ).assign(outcome="TN")
    trials = pd.DataFrame({"trial_id": ["m"], "variant": "m", "seed": np.nan, "status": "given", "config": "{}"})
    patients = pd.Series(ids, index=ids)
    regions, saliency, faithfulness, lungs = (
        pd.DataFrame(columns=["trial_id", *TABLES[name].columns])
        for name in ("regions", "saliency", "faithfulness", "lungs")
    )
    given = Inputs(
        sweep, primary_settings(sweep), trials, predictions, patients, regions, saliency, faithfulness, found, lungs
    )
    row = next(r for r in hypothesis_rows(given) if r["hypothesis"] == "H1" and r["role"] == "verdict")
    by_region = contrasts(found, patients).groupby("region")["contrast"].mean()
    return {"h1": row, "contrast": by_region.round(2).to_dict()}


def calibrate(seed: int, shortcut: bool) -> dict[str, Any]:
    """One network of one seed, trained and judged."""
    start = 10**6 * (seed + 1)
    model = common.trained(drawn(shortcut, TRAIN, start), EPOCHS, seed)
    seeds = range(start + 10**5, start + 10**5 + RECIPIENTS)
    with_glyph, without = (
        [render(s, 0, SIZE, marker_correlation=0.0, marker=shown) for s in seeds] for shown in ("own", "none")
    )
    with torch.inference_mode():
        on, off = (
            model.log_odds(model.normalize(torch.from_numpy(common.pixels(images)).float() / 255))
            for images in (with_glyph, without)
        )
    recipients = drawn(shortcut, 2 * RECIPIENTS, start + 2 * 10**5)[::2]
    donors = drawn(shortcut, 2 * RECIPIENTS, start + 3 * 10**5)
    return judge(model, recipients, donors) | {"true_effect": float((on - off).mean())}


def main() -> None:
    """The command."""
    args = common.arguments(__doc__, seeds=(int, 10, "networks of each kind"))
    names = {True: "shortcut", False: "no shortcut"}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for seed in range(args.seeds):
        for shortcut, name in names.items():
            result = calibrate(seed, shortcut)
            results[name].append(result)
            h1 = result["h1"]
            print(
                f"  seed {seed}, {name}: H1 {h1['verdict']} ({h1['reason']}); contrasts {result['contrast']}; true "
                f"effect of the marker {result['true_effect']:.2f} log-odds",
                flush=True,
            )
    verdicts = {name: {v: [r["h1"]["verdict"] for r in of].count(v) for v in VERDICTS} for name, of in results.items()}
    right = {
        "shortcut: H1 above margin": verdicts["shortcut"][ABOVE] / args.seeds,
        "no shortcut: H1 not above margin": 1 - verdicts["no shortcut"][ABOVE] / args.seeds,
    }
    show = {
        "verdicts": verdicts,
        "true_effect": {name: [round(r["true_effect"], 2) for r in of] for name, of in results.items()},
        "effect": {name: [round(r["h1"]["effect"], 2) for r in of] for name, of in results.items()},
        "contrast": {name: [r["contrast"] for r in of] for name, of in results.items()},
    }
    common.show("calibration", {}, right, dict.fromkeys(right, 1.0), unit="", as_json=args.json, **show)


if __name__ == "__main__":
    main()
