"""Which images test, train and validate: by hashes of a seed and an id, whole patients at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.errors import DataError
from cxr_ray.schemas import CLASSES

UNSPLIT_TEST_SHARE = 0.2
REFERENCE = "reference"  # the shard of images on which a model's precision is decided
REFERENCE_IMAGES = 16  # of it, at most: they are explained at a time


def choose(image_ids: Iterable[str], labels: Iterable[int], limit: int, seed: int) -> set[str]:
    """At most ``limit`` image_ids: limit // 2 of each label as far as there are, then others; by hash, not by order.

    >>> sorted(choose(["a", "b", "c", "d"], [0, 0, 0, 1], limit=2, seed=0))
    ['a', 'd']
    """
    ranked = sorted(zip(image_ids, labels, strict=True), key=lambda pair: _rank(seed, pair[0]))
    chosen: set[str] = set()
    for label in range(len(CLASSES)):
        chosen.update([i for i, own in ranked if own == label][: limit // len(CLASSES)])
    others = [i for i, _ in ranked if i not in chosen]
    return chosen.union(others[: max(0, limit - len(chosen))])


def hold_out(patients: Iterable[str], labels: Iterable[int], share: float, seed: int, purpose: str) -> set[str]:
    """The patients to set aside, so that of each label at least ``share`` of the rows are theirs.

    Of each label at least one patient is set aside and at least one stays; a label with a single patient stays whole.

    Args:
        patients: one a row.
        labels: one a row; a patient may have both.
        share: of each label's rows.
        seed: of the order in which patients are taken.
        purpose: keeps choices of different purpose independent.

    >>> len(hold_out([f"patient-{i}" for i in range(30)], [0] * 30, share=0.1, seed=0, purpose="val"))
    3
    """
    counts = Counter(zip(patients, labels, strict=True))
    labels_of: dict[str, set[int]] = {}
    for patient, label in counts:
        labels_of.setdefault(patient, set()).add(label)
    staying = Counter(label for _, label in counts)
    held: set[str] = set()
    for label in sorted(staying):
        candidates = sorted((p for p, own in counts if own == label), key=lambda p: _rank(f"{seed}:{purpose}", p))
        wanted = share * sum(counts[p, label] for p in candidates) - 1e-9  # 0.1 * 30 is more than 3
        got = sum(counts[p, label] for p in candidates if p in held)
        for patient in candidates:
            if got >= wanted and got > 0:
                break
            if patient in held or any(staying[own] == 1 for own in labels_of[patient]):
                continue
            held.add(patient)
            staying.subtract(labels_of[patient])
            got += counts[patient, label]
    return held


def split_unsplit(table: pd.DataFrame, seed: int) -> NDArray[Any]:
    """The split column of a folder without splits: UNSPLIT_TEST_SHARE of each label's patients are test."""
    people = table[["patient_id", "label"]].drop_duplicates()
    test = hold_out(people["patient_id"], people["label"], UNSPLIT_TEST_SHARE, seed, "test")
    return np.where(table["patient_id"].isin(test), "test", "train").astype(object)


def with_val(
    table: pd.DataFrame, share: float, seed: int, where: str, *, training: bool, limit: int | None
) -> NDArray[Any]:
    """The split column with val taken from train; duplicates follow their patient and do not count."""
    used = table[(table["split"] == "train") & table["duplicate_of"].isna()]
    patients = used.groupby("label")["patient_id"].nunique().reindex(range(len(CLASSES)), fill_value=0)
    for label, class_name in enumerate(CLASSES):
        if training and patients[label] < 2:
            more = f"raise data.limit ({limit})" if limit is not None else "add images of other patients"
            number = "1 patient" if patients[label] else "no patient"
            raise DataError(
                f"got {where} with {number} of {class_name} to train on; expected 2 or more, one of them to validate; "
                f"{more}."
            )
    if (patients < 2).any():
        return table["split"].to_numpy(object)
    val = hold_out(used["patient_id"], used["label"], share, seed, "val")
    moves = (table["split"] == "train") & table["patient_id"].isin(val)
    return np.where(moves, "val", table["split"]).astype(object)


def _rank(seed: int | str, value: str) -> bytes:
    return hashlib.sha256(f"{seed}:{value}".encode()).digest()
