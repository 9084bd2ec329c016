"""Summaries of every combination of settings, whose means a function gives."""

import itertools

import numpy as np
import pandas as pd

from cxr_ray.schemas import SUMMARY

EXPLAINERS = ("gradcam", "occlusion", "saliency", "random")
CHOICES = {
    "target_rule": ("pneumonia", "predicted"),
    "grid": ("pixel", "7"),
    "fill": ("mean", "blur", "noise"),
    "scale": ("prob", "logodds"),
    "control": ("none", "pixel_random", "shifted"),
}


def summary(gap, trial_id="m", measures=(("abpc", np.nan), ("drop", 0.1), ("drop", 0.25), ("drop", 0.5))):
    """A summary of every combination, its mean given by gap(explainer's index, row)."""
    rows = []
    for *chosen, (metric, level), explainer in itertools.product(*CHOICES.values(), measures, EXPLAINERS):
        row = dict(zip(CHOICES, chosen, strict=True)) | {"metric": metric, "level": level, "explainer": explainer}
        row |= {"trial_id": trial_id, "bucket": "all", "contrast": False, "matched": False, "n": 30}
        rows.append({**dict.fromkeys(SUMMARY.columns), **row, "mean": gap(EXPLAINERS.index(explainer), row)})
    return pd.DataFrame(rows)
