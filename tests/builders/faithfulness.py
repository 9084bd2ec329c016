"""Trials made by hand: predictions, images and rows of `faithfulness`, and their summary."""

import itertools

import numpy as np
import pandas as pd

from cxr_ray.analysis.summary import Model, Sampling, summarize
from cxr_ray.schemas import SUMMARY

MODEL = Model("plain-1", "plain", 3)


def images_of(outcomes, logits=None, patients=None):
    """predictions and images for test images i0, i1, ... with these outcomes."""
    n = len(outcomes)
    outcomes = np.array(outcomes)
    predicted = np.isin(outcomes, ["TP", "FP"]).astype(int)
    logits = np.where(predicted, 2.0, -2.0) if logits is None else np.asarray(logits)
    image_id = [f"i{i:04d}" for i in range(n)]
    predictions = pd.DataFrame(
        {
            "image_id": image_id,
            "split": "test",
            "label": np.isin(outcomes, ["TP", "FN"]).astype(int),
            "prob_pneumonia": 1 / (1 + np.exp(-logits)),
            "logit_pneumonia": logits.astype(np.float32),
            "predicted": predicted,
            "outcome": outcomes,
        }
    )
    return predictions, pd.DataFrame(
        {"image_id": image_id, "patient_id": patients if patients is not None else image_id}
    )


def faithfulness_of(predictions, seed=0, **choices):
    """Rows for each image and combination of choices, random values in float32 as the table holds them.

    ``choices``: explainer, grid, scale, control, target and (metric, level), as tuples; those not given are one each.
    """
    given = {
        "explainer": ("gradcam",),
        "grid": ("14",),
        "scale": ("logodds",),
        "control": ("none", "shifted"),
        "target": (1,),
        "metric": (("abpc", np.nan),),
        **choices,
    }
    combinations = [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]
    combinations = [{**c, "metric": c["metric"][0], "level": c["metric"][1]} for c in combinations]
    n, k = len(predictions), len(combinations)
    rng = np.random.default_rng(seed)
    columns = {name: np.repeat(np.array([c[name] for c in combinations]), n) for name in combinations[0]}
    none = columns["control"] == "none"
    return pd.DataFrame(
        {
            "image_id": np.tile(predictions["image_id"].to_numpy(), k),
            **columns,
            "fill": "mean",
            "outcome": np.tile(predictions["outcome"].to_numpy(), k),
            "value": rng.normal(1, 1, n * k).astype(np.float32),
            "gap": np.where(none, np.nan, rng.normal(0.2, 1, n * k)).astype(np.float32),
            "win_rate": np.where(none, np.nan, rng.choice([0.0, 0.4, 0.6, 0.8, 1.0], n * k)).astype(np.float32),
            "control_mean": np.where(none, np.nan, rng.normal(0.5, 1, n * k)).astype(np.float32),
            "overlap": np.where(none, np.nan, rng.uniform(0, 0.5, n * k)).astype(np.float32),
            "n_draws": np.where(none, 0, 5),
            "baseline_valid": True,
        }
    )


def nothing_degenerate():
    return pd.DataFrame({"explainer": [], "image_id": [], "target": [], "degenerate": []}).astype({"degenerate": bool})


def summary_of(faithfulness, predictions, images, degenerate=None, rules=("pneumonia",), n_boot=200):
    rows = summarize(
        faithfulness,
        predictions,
        images,
        nothing_degenerate() if degenerate is None else degenerate,
        MODEL,
        target_rules=list(rules),
        sampling=Sampling(0, n_boot),
    )
    assert all(set(row) == set(SUMMARY.columns) for row in rows)
    frame = SUMMARY.from_rows(rows).to_pandas()
    assert not frame.duplicated(list(SUMMARY.key)).any()
    return frame


def one(frame, **where):
    where = {"contrast": False, "matched": False} | where
    (row,) = frame.loc[np.logical_and.reduce([frame[k] == v for k, v in where.items()])].to_dict("records")
    return row
