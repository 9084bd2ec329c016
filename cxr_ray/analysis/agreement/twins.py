"""Models that give every test image the same log-odds: one model under several names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cxr_ray.analysis.agreement.rows import row

METHOD = "equal log-odds of every test image"


def twins(test: pd.DataFrame, models: Sequence[str]) -> list[list[str]]:
    """Groups of models that agree on every image, in the order of ``models``.

    Args:
        test: trial_id, image_id and logit_pneumonia on the test split.
        models: trial_ids.
    """
    groups: dict[bytes, list[str]] = {}
    for trial_id in models:
        of_model = test[test["trial_id"] == trial_id].sort_values("image_id")
        if len(of_model):
            groups.setdefault(of_model["logit_pneumonia"].to_numpy().tobytes(), []).append(trial_id)
    return [names for names in groups.values() if len(names) > 1]


def twin_rows(test: pd.DataFrame, models: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of kind twins: each model of a group beside the group's first."""
    rows = []
    for first, *others in twins(test, models):
        n = int((test["trial_id"] == first).sum())
        for other in others:
            which = {"a": first, "b": other, "statistic": "same_logodds"}
            rows.append(row("twins", first, "model", **which, value=1.0, count=n, n=n, method=METHOD))
    return rows
