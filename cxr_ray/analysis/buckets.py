"""Buckets of images by outcome, the target that a rule explains, and means over a bucket.

Shapes: N images; K quantities. NaN marks an image without a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxr_ray.analysis.resampling import CI_METHOD, patient_bootstrap

BUCKETS = ("all", "TP", "FP", "TN", "FN")  # all images, and those of one outcome at 0.5


def of_rule(frame: pd.DataFrame, test: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows whose target is the one that ``rule`` selects, with the outcome of their image.

    Args:
        frame: image_id and target at least; an outcome of its own is replaced.
        test: image_id, outcome and predicted of the model's predictions on the test split.
        rule: pneumonia (target 1) or predicted (each image's predicted class).
    """
    known = test[["image_id", "outcome", "predicted"]].rename(columns={"predicted": "chosen"})
    frame = frame.drop(columns="outcome", errors="ignore").merge(known, on="image_id")
    return frame[frame["target"] == (1 if rule == "pneumonia" else frame["chosen"])].drop(columns="chosen")


def by_bucket(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(bucket, its rows) for each bucket that has rows; the frame has a column outcome."""
    for bucket in BUCKETS:
        part = frame if bucket == "all" else frame[frame["outcome"] == bucket]
        if len(part):
            yield bucket, part


def means(values_NK: ArrayLike, patients_N: ArrayLike, seed: int, n_boot: int = 1000) -> list[dict[str, Any]]:
    """Mean of each quantity over the images that have it, with its interval over patients.

    Args:
        values_NK: the quantities.
        patients_N: each image's patient.
        seed: of the bootstrap.
        n_boot: bootstrap samples.

    Returns:
        K dicts: n, n_patients, mean, lower, upper (as ``resampling.patient_bootstrap``; NaN under 20 patients),
        ci_method, n_boot. The mean of nothing is NaN.
    """
    values_NK, patients_N = np.asarray(values_NK, dtype=np.float64), np.asarray(patients_N, dtype=object)
    lower_K, upper_K = patient_bootstrap(values_NK, patients_N, n_boot, seed=seed)
    rows = []
    for k, values_N in enumerate(values_NK.T):
        known_N = ~np.isnan(values_N)
        rows.append(
            {
                "n": int(known_N.sum()),
                "n_patients": len(set(patients_N[known_N])),
                "mean": float(values_N[known_N].mean()) if known_N.any() else np.nan,
                "lower": float(lower_K[k]),
                "upper": float(upper_K[k]),
                "ci_method": CI_METHOD,
                "n_boot": n_boot,
            }
        )
    return rows
