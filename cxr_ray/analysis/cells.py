"""Faithfulness of a trial as matrices of images by columns, so that a bucket is a choice of rows.

A column is one (explainer, grid, fill, metric, level, scale, control).

Shapes: N images of the test split; K columns; E explainers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis.resampling import Floats, Ints

FAMILY = ["grid", "fill", "metric", "level", "scale"]  # Holm's correction is within these
COLUMN = [*FAMILY, "explainer", "control"]


@dataclass(frozen=True)
class Cells:
    """Faithfulness towards the target of one rule; NaN where an image has no value.

    Attributes:
        columns: K rows, what each column is.
        measure_NK: the metric itself for control none, the gap to the control for the others.
        win_NK: share of draws that the map beats, minus 1/2.
        control_NK: mean of the metric over the control's draws.
        overlap_NK: mean share of the map's most salient quarter that the control's draws cover.
        valid_NK: the filled image is a valid baseline.
        degenerate_NK: the map is constant.
        draws_K: most draws that any image has.
    """

    columns: pd.DataFrame
    measure_NK: Floats
    win_NK: Floats
    control_NK: Floats
    overlap_NK: Floats
    valid_NK: NDArray[np.bool_]
    degenerate_NK: NDArray[np.bool_]
    draws_K: Ints

    @cached_property
    def family_K(self) -> Ints:
        """The family of tests that each column belongs to, a number."""
        families = self.columns.groupby(FAMILY, dropna=False, sort=True, observed=True)
        return np.asarray(families.ngroup(), dtype=np.int64)

    @cached_property
    def absolute_K(self) -> NDArray[np.bool_]:
        """Columns of the map alone, compared with nothing."""
        return (self.columns["control"] == "none").to_numpy()


def targets(rule: str, predicted_N: Ints) -> Ints:
    """The class that a rule selects for each image."""
    if rule == "pneumonia":
        return np.ones_like(predicted_N)
    if rule == "predicted":
        return predicted_N
    raise ValueError(f"got the target rule {rule!r}; expected pneumonia or predicted")


def cells_of(faithfulness: pd.DataFrame, degenerate: pd.DataFrame, image_ids: pd.Index, target_N: Ints) -> Cells:
    """The rows that explain each image's target, as matrices.

    Raises:
        ValueError: an image that is not among ``image_ids``, or a row that occurs twice.
    """
    row_all = image_ids.get_indexer(pd.Index(faithfulness["image_id"]))
    if (row_all < 0).any():
        lost = faithfulness["image_id"].to_numpy()[row_all < 0][0]
        raise ValueError(f"`faithfulness` has image {lost}, which is not in the test split of `predictions`")
    explained = np.flatnonzero(faithfulness["target"].to_numpy() == target_N[row_all])
    part, row = faithfulness.iloc[explained], row_all[explained]
    column = part.groupby(COLUMN, dropna=False, sort=True, observed=True).ngroup().to_numpy()
    _, first = np.unique(column, return_index=True)
    texts = [name for name in COLUMN if name != "level"]
    columns = part[COLUMN].iloc[first].reset_index(drop=True).astype(dict.fromkeys(texts, "str"))
    shape = (len(image_ids), len(columns))
    if len(np.unique(row * shape[1] + column)) < len(part):
        raise ValueError("`faithfulness` holds a row twice: same image, target and column")

    def matrix(values: Any, empty: Any) -> Any:
        full = np.full(shape, empty)
        full[row, column] = values
        return full

    measure = np.where(part["control"] == "none", part["value"].to_numpy(np.float64), part["gap"].to_numpy(np.float64))
    measure = np.where(np.isfinite(measure), measure, np.nan)
    draws = matrix(part["n_draws"].fillna(0).to_numpy(np.int64), 0)

    explainers, explainer_K = np.unique(columns["explainer"].to_numpy(object), return_inverse=True)
    constant = degenerate.loc[degenerate["degenerate"].astype("boolean").fillna(False).to_numpy(bool)]
    constant = constant.loc[constant["image_id"].isin(image_ids) & constant["explainer"].isin(explainers)]
    place = image_ids.get_indexer(pd.Index(constant["image_id"]))
    which = pd.Index(explainers).get_indexer(pd.Index(constant["explainer"]))
    chosen = constant["target"].to_numpy() == target_N[place]
    degenerate_NE = np.zeros((shape[0], len(explainers)), dtype=bool)
    degenerate_NE[place[chosen], which[chosen]] = True
    return Cells(
        columns=columns,
        measure_NK=matrix(measure, np.nan),
        win_NK=matrix(np.where(np.isnan(measure), np.nan, part["win_rate"].to_numpy(np.float64) - 0.5), np.nan),
        control_NK=matrix(part["control_mean"].to_numpy(np.float64), np.nan),
        overlap_NK=matrix(part["overlap"].to_numpy(np.float64), np.nan),
        valid_NK=matrix(part["baseline_valid"].astype("boolean").fillna(False).to_numpy(bool), False),
        degenerate_NK=degenerate_NE[:, explainer_K],
        draws_K=draws.max(axis=0, initial=0),
    )
