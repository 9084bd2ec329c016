"""Buckets of images by outcome, the target that a rule explains, and means over a bucket.

Shapes: N images; K quantities. NaN marks an image without a value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cxr_ray.analysis.resampling import CI_METHOD, patient_bootstrap, patient_codes, patient_sums

BUCKETS = ("all", "TP", "FP", "TN", "FN")  # all images, and those of one outcome at 0.5


def of_rule(frame: pd.DataFrame, test: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows whose target is the one that ``rule`` selects, with the outcome of their image.

    Args:
        frame: image_id and target at least; an outcome of its own is replaced.
        test: image_id, outcome and predicted of the model's predictions on the test split.
        rule: pneumonia (target 1) or predicted (each image's predicted class).
    """
    place = pd.Index(test["image_id"]).get_indexer(pd.Index(frame["image_id"]))
    chosen = 1 if rule == "pneumonia" else test["predicted"].to_numpy()[place]
    kept = (place >= 0) & (frame["target"].to_numpy() == chosen)
    return frame[kept].assign(outcome=test["outcome"].to_numpy(object)[place[kept]])


@dataclass(frozen=True)
class Group:
    """The images of one bucket, of one group of rows.

    Attributes:
        key: values of the columns that groups differ in.
        bucket: of BUCKETS.
        values: column to its values, one an image; numbers as float64, NaN without a value.
    """

    key: tuple[Any, ...]
    bucket: str
    values: Mapping[str, NDArray[Any]]

    @property
    def patients(self) -> NDArray[Any]:
        """Each image's patient."""
        return self.values["patient_id"]

    def matrix(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """The columns side by side [N, K]."""
        return np.stack([self.values[column] for column in columns], axis=1)


def by_bucket(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str], patients: pd.Series) -> Iterator[Group]:
    """Each group of rows, and in it each bucket that has images: groups in the order that they begin in.

    Args:
        frame: image_id, outcome, ``by`` and ``columns``.
        by: the columns that groups differ in.
        columns: numbers (also yes and no), or texts.
        patients: image_id to patient_id.
    """
    frame = frame.assign(patient_id=frame["image_id"].map(patients))
    values = {name: _array(frame[name]) for name in (*columns, "patient_id", "outcome")}
    group_N = frame.groupby(list(by), sort=False).ngroup().fillna(-1).to_numpy(np.int64)  # -1: a key is null
    order = np.argsort(group_N, kind="stable")
    starts = np.searchsorted(group_N[order], np.arange(group_N.max(initial=-1) + 2))
    for start, end in itertools.pairwise(starts):
        places = order[start:end]
        key = tuple(frame[name].iloc[places[0]] for name in by)
        for bucket in BUCKETS:
            chosen = places if bucket == "all" else places[values["outcome"][places] == bucket]
            if len(chosen):
                yield Group(key, bucket, {name: column[chosen] for name, column in values.items()})


def _array(column: pd.Series) -> NDArray[Any]:
    is_number = pd.api.types.is_numeric_dtype(column.dtype)
    return column.to_numpy(np.float64, na_value=np.nan) if is_number else column.to_numpy(object)


def means(parts: Sequence[tuple[ArrayLike, ArrayLike]], seed: int, n_boot: int = 1000) -> list[list[dict[str, Any]]]:
    """Mean of each quantity over the images that have it, with its interval over patients.

    Args:
        parts: (values_NK, patients_N): quantities, and each image's patient. Parts of the same patients in the same
            order are resampled in one go; what comes out for a part does not depend on the others.
        seed: of the bootstrap.
        n_boot: bootstrap samples.

    Returns:
        For each part K dicts: n, n_patients, mean, lower, upper (as ``resampling.patient_bootstrap``; NaN under 20
        patients), ci_method, n_boot. The mean of nothing is NaN.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (_, patients_N) in enumerate(parts):
        alike.setdefault(tuple(np.asarray(patients_N, dtype=object)), []).append(i)
    found: list[list[dict[str, Any]]] = [[] for _ in parts]
    for patients, places in alike.items():
        blocks = [np.asarray(parts[i][0], dtype=np.float64) for i in places]
        rows = _means(np.concatenate(blocks, axis=1), patients, seed, n_boot)
        for i, block in zip(places, blocks, strict=True):
            found[i], rows = rows[: block.shape[1]], rows[block.shape[1] :]
    return found


def _means(values_NK: NDArray[np.float64], patients_N: Sequence[Any], seed: int, n_boot: int) -> list[dict[str, Any]]:
    lower_K, upper_K = patient_bootstrap(values_NK, patients_N, n_boot, seed=seed)
    sums_PK, counts_PK = patient_sums(values_NK, *patient_codes(patients_N))
    n_K, n_patients_K = counts_PK.sum(0), (counts_PK > 0).sum(0)
    with np.errstate(invalid="ignore"):
        mean_K = sums_PK.sum(0) / n_K
    columns = (n_K.astype(int), n_patients_K, mean_K, lower_K, upper_K)
    names = ("n", "n_patients", "mean", "lower", "upper")
    same = {"ci_method": CI_METHOD, "n_boot": n_boot}
    return [
        dict(zip(names, row, strict=True)) | same for row in zip(*(column.tolist() for column in columns), strict=True)
    ]
