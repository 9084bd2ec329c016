"""The table `stability_summary`: how far maps change with a hardly changed image, and what they miss of its effects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis import buckets

OF_CHANGE = {  # perturbation to its quantities
    "noise": ("max_sensitivity", "spearman", "ssim", "logit_change"),
    "shift": ("spearman", "ssim", "logit_change"),
    "square": ("infidelity", "unexplained"),
}
LOWER_IS_BETTER = ("max_sensitivity", "infidelity", "unexplained")
WITHOUT_CONTROL = ("logit_change",)  # of the score, not of the map
_KEYS = ["explainer", "perturbation", "size", "image_id", "control"]
_DIRECTLY = ("spearman", "ssim", "infidelity", "unexplained")


def stability_rows(stability: pd.DataFrame, patients: pd.Series, seed: int, n_boot: int = 1000) -> list[dict[str, Any]]:
    """Rows of one model and target rule, without trial_id and target_rule.

    An image has a value where all of its copies, or all draws of the control, have one.

    Args:
        stability: rows of the table.
        patients: image_id to patient_id.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    values = _of_images(stability)
    found = [cell for setting in _settings(values) for cell in _cells(values, *setting)]
    means = buckets.means([(cell.values_N2, cell.image_ids.map(patients)) for cell in found], seed, n_boot)
    return [
        {**cell.names, **mean, "control_mean": None if cell.names["control"] == "none" else beside["mean"]}
        for cell, (mean, beside) in zip(found, means, strict=True)
    ]


class _Cell(NamedTuple):
    """The key of a row of the table and its draws; of each image its value, or advantage, and its control's value."""

    names: dict[str, Any]
    image_ids: pd.Series
    values_N2: NDArray[np.floating]


def _settings(values: pd.DataFrame) -> list[tuple[str, str, float]]:
    """(explainer, perturbation, size) of what changed the image."""
    own = values[values["control"] == "none"]
    return [*own[["explainer", "perturbation", "size"]].drop_duplicates().itertuples(index=False, name=None)]


def _cells(values: pd.DataFrame, explainer: str, perturbation: str, size: float) -> Iterator[_Cell]:
    """The map's own quantities, then its advantages over each control."""
    values = values[values["explainer"] == explainer]
    same_size = values["size"].isna() if np.isnan(size) else values["size"] == size
    own = values[(values["control"] == "none") & (values["perturbation"] == perturbation) & same_size]
    # a control stands for the map of any copy
    beside = values[values["perturbation"] == ("square" if perturbation == "square" else "none")]
    by_control = {"none": own, **dict(iter(beside[beside["control"] != "none"].groupby("control", sort=False)))}
    for control, part in by_control.items():
        theirs = part.set_index("image_id").reindex(own["image_id"])
        for quantity in OF_CHANGE[perturbation]:
            if control != "none" and quantity in WITHOUT_CONTROL:
                continue
            value, other = own[quantity].to_numpy(float), theirs[quantity].to_numpy(float)
            if control != "none":
                value = other - value if quantity in LOWER_IS_BETTER else value - other
            names = {"explainer": explainer, "perturbation": perturbation, "size": size, "quantity": quantity}
            names |= {"control": control, "draws": int(theirs["draws"].max())}
            yield _Cell(names, own["image_id"], np.stack([value, np.where(np.isnan(value), np.nan, other)], 1))


def _of_images(stability: pd.DataFrame) -> pd.DataFrame:
    """A row for each explainer, perturbation, size, image and control: its quantities over draws, and their number."""
    frame = stability.assign(max_sensitivity=stability["sensitivity"], logit_change=stability["logit_change"].abs())
    groups = frame.groupby(_KEYS, sort=False, dropna=False)
    columns = [*_DIRECTLY, "logit_change", "max_sensitivity"]
    means, whole = groups[columns].mean(), groups[columns].count().eq(groups.size(), axis=0)
    largest = groups["max_sensitivity"].max()
    # of controls the mean of their draws: the largest of them would grow with their number
    copies = means.index.get_level_values("control") == "none"
    means["max_sensitivity"] = largest.where(copies, means["max_sensitivity"])
    return means.where(whole).assign(draws=groups.size()).reset_index()
