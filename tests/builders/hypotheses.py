"""Made-up tables whose verdicts are known."""

import json

import numpy as np
import pandas as pd

from cxr_ray.analysis import primary
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.schemas import HYPOTHESES
from cxr_ray.sweepfile import resolve

OUTCOMES = np.array([["TN", "FP"], ["FN", "TP"]])


def sweep(**changes):
    base = {
        "data": {"source": "phantom", "size": 64},
        "explain": {"explainers": ["saliency", "gradcam"]},
        "perturb": {"grids": ["pixel"], "fills": ["mean", "blur"], "levels": [0.25, 0.5, 0.75]},
        "controls": {"shifted": 5, "other_image": 5},
        "regions": {"names": ["border", "corners"], "draws": 2, "donors": 120},
        "search": {"scheduler": "none", "num_samples": 1},
    }
    return resolve({**base, **changes})


def names(n, split="test"):
    return pd.Series([f"{split}{i}" for i in range(n)], dtype=object)


def predictions(trial, logit_N, label_N, split="test"):
    prob = 1 / (1 + np.exp(-np.asarray(logit_N, float)))
    predicted = (prob >= 0.5).astype(int)
    return pd.DataFrame(
        {
            "trial_id": trial,
            "image_id": names(len(prob), split),
            "split": split,
            "label": label_N,
            "prob_pneumonia": prob.astype(np.float32),
            "logit_pneumonia": logit_N,
            "predicted": predicted,
            "outcome": OUTCOMES[np.asarray(label_N), predicted],
        }
    )


def trials(*ids, lr=1e-4):
    """Names such as plain-3: the variant and the seed; a name without a number is a given checkpoint."""
    parts = [n.partition("-") for n in ids]
    return pd.DataFrame(
        {
            "trial_id": ids,
            "variant": [p[0] for p in parts],
            "seed": [float(p[2]) if p[2] else np.nan for p in parts],
            "status": "completed",
            "config": [json.dumps({"train": {"lr": lr}}) for _ in ids],
        }
    )


def region_rows(trial, image_ids, effects, fill="patch_swap", target=1):
    """effects: (region, control, draw) to the fall of the log-odds of PNEUMONIA, one or one for each image."""
    sign = 1 if target == 1 else -1
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "trial_id": trial,
                    "image_id": pd.Series(image_ids, dtype=object),
                    "target": target,
                    "region": region,
                    "fill": fill,
                    "control": control,
                    "draw": draw,
                    "logit_full_image": sign * 5.0,
                    "logit_target": sign * (5.0 - np.broadcast_to(effect, len(image_ids))),
                }
            )
            for (region, control, draw), effect in effects.items()
        ]
    )


def donor_rows(trial, image_ids, contrast, region="corners", draws=2, outcome="TN", share_of_area=0.09):
    """Rows of donor_swaps whose contrasts are as given, one or one for each image; scores differ from draw to draw."""
    n, noise = len(image_ids), np.random.default_rng(1)
    contrast = np.broadcast_to(contrast, n)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "trial_id": trial,
                    "image_id": pd.Series(image_ids, dtype=object),
                    "outcome": outcome,
                    "region": region,
                    "donor_label": label,
                    "draw": draw,
                    "donor_id": [f"d{i}.{draw}.{label}" for i in range(n)],
                    "share_of_area": share_of_area,
                    "logit_pneumonia": label * contrast + shift,
                    "logit_full": -1.0,
                }
            )
            for draw in range(draws)
            for shift in [noise.normal(0, 1, n)]
            for label in (0, 1)
        ]
    )


def map_rows(trial, image_ids, shifted=0.5, other_image=0.75, enrichment=None, gap=0.1, p_value=0.5):
    """(saliency, faithfulness, lungs). Win rates over both controls; half of the maps are plausible unless told."""
    same = {"trial_id": trial, "image_id": pd.Series(image_ids, dtype=object), "target": 1}
    if enrichment is None:
        enrichment = np.where(np.arange(len(image_ids)) % 2, 0.5, 1.25)
    maps = pd.DataFrame({**same, "concentration": "compact"})
    lungs = [
        pd.DataFrame({**same, "control": "none", "mask": mask, "enrichment": enrichment})
        for mask in ("given", "dilated", "eroded")
    ]
    faith = [
        pd.DataFrame({**same, "control": control, "gap": gap, "win_rate": win_rate, "p_value": p_value})
        for control, win_rate in (("shifted", shifted), ("other_image", other_image))
    ]
    return maps, pd.concat(faith), pd.concat(lungs)


def inputs(config=None, trial_rows=None, predicted=(), regions=(), maps=(), patients=None, swaps=()):
    predicted = pd.concat(predicted, ignore_index=True) if len(predicted) else predictions("m", [], np.array([], int))
    ids = predicted["image_id"].unique()
    parts = zip(map_rows("m", []), *maps, strict=True)
    saliency, faith, lungs = (pd.concat(frames) for frames in parts)
    config = config or sweep()
    return Inputs(
        config,
        primary.resolve(config),
        trials("m") if trial_rows is None else trial_rows,
        predicted,
        pd.Series(ids, index=ids) if patients is None else patients,
        pd.concat(regions) if len(regions) else region_rows("m", [], {("border", "none", 0): 0.0}),
        saliency,
        faith,
        pd.concat(swaps) if len(swaps) else donor_rows("m", names(0), 0.0),
        lungs,
    )


def judged(given):
    """Verdict rows by hypothesis, after a check that all rows make a table with unique keys."""
    rows = hypothesis_rows(given, n_boot=200)
    HYPOTHESES.from_rows(rows)
    keys = [tuple(row[k] for k in HYPOTHESES.key) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row["reason"] for row in rows if row["lower"] is None)
    return {row["hypothesis"]: row for row in rows if row["role"] == "verdict"}, [
        row for row in rows if row["role"] == "secondary"
    ]


def false_positives(n, **more):
    """Model m takes n NORMAL images and n of PNEUMONIA for PNEUMONIA."""
    label = np.repeat([0, 1], n)
    return {"predicted": [predictions("m", np.full(2 * n, 2.0), label)], **more}


def pair_tables(n_seeds, shift, n=120, seed=0):
    """plain is balanced with its log-odds moved up by ``shift``: the same ranking, so only the threshold moves."""
    ids, tables = [], []
    for s in range(n_seeds):
        rng = np.random.default_rng((seed, s))
        for split in ("test", "val"):
            label = np.arange(n) % 2
            logit = rng.normal(np.where(label, 3.0, -2.5), 1.5)
            tables += [
                predictions(f"plain-{s}", logit + shift, label, split),
                predictions(f"balanced-{s}", logit, label, split),
            ]
        ids += [f"plain-{s}", f"balanced-{s}"]
    return {"trial_rows": trials(*ids), "predicted": tables}
