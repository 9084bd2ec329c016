"""The table `baselines`: on how many validation images each fill makes a valid baseline, before test is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.cells import targets
from cxr_ray.analysis.shares import SHARE_METHOD, patient_share
from cxr_ray.measure.faithfulness import VALID_BASELINE

VALID_SHARE = 0.95  # of images, below which a fill is not valid
METHOD = f"share of images; interval: {SHARE_METHOD}; valid: share of at least {VALID_SHARE:g}"


def baseline_rows(
    trial_id: str,
    predictions: pd.DataFrame,
    filled: pd.DataFrame,
    patients: pd.Series,
    *,
    target_rules: Sequence[str],
    fills: Sequence[str],
) -> list[dict[str, Any]]:
    """The rows of one model, one for each target rule and fill.

    The share of the images at hand decides, not its interval: to put a lower bound above 0.95 takes 72 images without
    one exception, more than a small validation split has. The interval stands beside it, and `summary` counts valid
    baselines again on the test images of each bucket. Without an image there is no share, and the fill is not valid.

    Args:
        trial_id: the model.
        predictions: its rows of the validation split: image_id, logit_pneumonia, predicted.
        filled: image_id, fill, logit_pneumonia of the wholly filled images.
        patients: image_id to patient_id.
        target_rules: pneumonia (over images predicted PNEUMONIA) or predicted (over all).
        fills: in the sweep's order.
    """
    predictions = predictions.set_index("image_id")
    rows = []
    for rule in target_rules:
        counted = predictions[predictions["predicted"] == 1] if rule == "pneumonia" else predictions
        sign_N = np.where(targets(rule, counted["predicted"].to_numpy(np.int64)) == 1, 1.0, -1.0)
        for fill in fills:
            of_fill = filled[filled["fill"] == fill].set_index("image_id")["logit_pneumonia"]
            drop_N = sign_N * (
                counted["logit_pneumonia"].to_numpy(float) - of_fill.reindex(counted.index).to_numpy(float)
            )
            same = {"trial_id": trial_id, "target_rule": rule, "fill": fill}
            rows.append(same | _share(drop_N, patients.loc[counted.index].to_numpy(object)))
    return rows


def sentence(rows: Iterable[Mapping[Any, Any]], target_rule: str, fill: str) -> str:
    """What the primary fill is on the validation split, and what follows."""
    judged = [row for row in rows if row["target_rule"] == target_rule and row["fill"] == fill]
    counts = ", ".join(f"{row['n_valid']} of {row['n']} validation images of {row['trial_id']}" for row in judged)
    known = f"Filled with {fill}, the image scores at least 1 log-odds below the untouched one for {counts}"
    if all(row["valid"] for row in judged if row["n"]) and any(row["n"] for row in judged):
        return f"{known}: a valid baseline, and the primary fill."
    return (
        f"{known}: no fill that was asked for is a valid baseline (at least {VALID_SHARE:.0%} of the images of every "
        "model), so the primary metric is deletion alone and areas of insertion are not shown."
    )


def _share(drop_N: Any, patients_N: Any) -> dict[str, Any]:
    """Counts and the share of drops of at least 1 log-odds; a filled image without a finite score is not valid."""
    valid_N = drop_N >= VALID_BASELINE
    counts = {"n": len(valid_N), "n_patients": len(set(patients_N)), "n_valid": int(valid_N.sum())}
    if not len(valid_N):
        unknown = dict.fromkeys(("share", "lower", "upper", "mean_drop"))
        return {**counts, **unknown, "method": METHOD, "valid": False}
    share = patient_share(valid_N, patients_N)
    return {
        **counts,
        "share": share.value,
        "lower": share.lower,
        "upper": share.upper,
        "method": METHOD,
        "valid": share.value >= VALID_SHARE,
        "mean_drop": float(drop_N.mean()),
    }
