"""Differences of two models on the same images: means and areas under ROC curves, with intervals, tests and Holm.

Shapes: N images, P patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from cxr_ray.analysis.beating import ALPHA
from cxr_ray.analysis.resampling import CI_METHOD, MIN_PATIENTS, holm, mean_p, patient_bootstrap, patient_codes

Row = dict[str, Any]
Floats = NDArray[np.float64]
IDENTICAL = "every image differs by the same, so any sample of patients does"
BOUND = "every image differs by the same: Clopper and Pearson's bound of the patients that may differ otherwise"
ROC_METHOD = "delta method over patients (DeLong et al. 1988; Obuchowski 1997), Student's t"
NO_INTERVAL: Row = {"lower": None, "upper": None, "ci_method": None, "p": None}


def paired_means(one: ArrayLike, other: ArrayLike, patients: ArrayLike, seed: int, share: bool = False) -> Row:
    """Means of both, and the mean paired difference with its interval and p-value, over images that have both values.

    Args:
        one, other: a value an image [N], of the reference and of the other run; NaN: none.
        patients: of each image.
        seed: of the bootstrap.
        share: values lie in [0, 1] and may be equal by chance, as those of two models that are always right.

    Returns:
        n, n_patients, mean, mean_run, difference, lower, upper, ci_method, p. The interval is
        ``resampling.patient_bootstrap``'s and p, two-sided, belongs to it as in ``resampling.mean_p``. Where every
        image differs by the same, as of a run from itself, the interval has no width, but of shares: there patients
        who differ otherwise may have been missed, of whom Clopper and Pearson (Biometrika 1934) bound the share.
    """
    a, b = (np.asarray(values, np.float64) for values in (one, other))
    known = ~(np.isnan(a) | np.isnan(b))
    a, b, patients = a[known], b[known], np.asarray(patients, object)[known]
    row: Row = {"n": len(a), "n_patients": len(set(patients))}
    if not len(a):
        return {**row, **dict.fromkeys(("mean", "mean_run", "difference")), **NO_INTERVAL}
    means = {"mean": a.mean(), "mean_run": b.mean(), "difference": (b - a).mean()}
    return {**row, **means, **_interval(b - a, patients, row["n_patients"], seed, share)}


def _interval(values: Floats, patients: NDArray[Any], n_patients: int, seed: int, share: bool) -> Row:
    if n_patients < MIN_PATIENTS:
        return NO_INTERVAL
    difference = float(values.mean())
    if (values == values[0]).all():
        missed = 1 - 0.025 ** (1 / n_patients) if share else 0.0  # none of n_patients was seen
        lower, upper = (max(-1.0, min(1.0, (1 - missed) * difference + end * missed)) for end in (-1, 1))
        lower, upper, method = (lower, upper, BOUND) if share else (difference, difference, IDENTICAL)
    else:
        lower, upper = (float(end[0]) for end in patient_bootstrap(values[:, None], patients, seed=seed))
        method = CI_METHOD
    if np.isnan(lower):
        return NO_INTERVAL
    nearest = abs(difference) - max(upper - difference, difference - lower)
    p = float(mean_p([abs(difference)], [nearest], [n_patients])[0])
    return {"lower": lower, "upper": upper, "ci_method": method, "p": p}


def paired_auroc(label: ArrayLike, one: ArrayLike, other: ArrayLike, patients: ArrayLike) -> Row:
    """AUROC of both, and their difference with its interval and two-sided p-value, over images that have both scores.

    Args:
        label: 0 or 1 [N].
        one, other: scores [N] of the reference and of the other run; NaN: none.
        patients: of each image.

    Returns:
        As ``paired_means``. An AUROC is the mean of placements; the variance of the difference adds up the squares of
        what each patient's images contribute to it. There is no interval under 20 patients of either class, nor
        where the scores differ but the areas cannot (both are 1).
    """
    a, b, label = (np.asarray(values, np.float64) for values in (one, other, label))
    known = ~(np.isnan(a) | np.isnan(b))
    a, b, label, patients = a[known], b[known], label[known], np.asarray(patients, object)[known]
    codes, n_patients = patient_codes(patients) if len(a) else (np.zeros(0, np.int64), 0)
    row: Row = {"n": len(a), "n_patients": n_patients}
    if len(set(label)) < 2:
        return {**row, **dict.fromkeys(("mean", "mean_run", "difference")), **NO_INTERVAL}
    area_a, parts_a = _placements(label, a)
    area_b, parts_b = _placements(label, b)
    row |= {"mean": area_a, "mean_run": area_b, "difference": area_b - area_a}
    if min(len(set(patients[label == k])) for k in (0, 1)) < MIN_PATIENTS:
        return {**row, **NO_INTERVAL}
    if np.array_equal(a, b):
        return {**row, "lower": 0.0, "upper": 0.0, "ci_method": IDENTICAL, "p": 1.0}
    of_patient = np.bincount(codes, parts_b - parts_a, n_patients)
    error = float(np.sqrt(n_patients / (n_patients - 1) * (of_patient**2).sum()))
    if error < 1e-12:
        return {**row, **NO_INTERVAL}
    half = error * student.ppf(0.975, n_patients - 1)
    p = 2 * student.sf(abs(area_b - area_a) / error, n_patients - 1)
    difference = area_b - area_a
    return {**row, "lower": difference - half, "upper": difference + half, "ci_method": ROC_METHOD, "p": float(p)}


def _placements(label: Floats, score: Floats) -> tuple[float, Floats]:
    """The AUROC, and what each image adds to an estimate of it beyond the truth (DeLong's components), [N]."""
    positive = label == 1
    n, m = int(positive.sum()), int((~positive).sum())
    placement = np.zeros(len(score))
    ranks = rankdata(score)
    placement[positive] = (ranks[positive] - rankdata(score[positive])) / m  # share of negatives below, ties half
    placement[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / n  # share of positives above
    area = float(placement[positive].mean())
    return area, (placement - area) / np.where(positive, n, m)


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with family, family_size and p_holm: Holm's correction over the differences of a bucket of two runs.

    Args:
        rows: of two runs, with bucket and p.
    """
    found = [{**row, "family": None, "family_size": None, "p_holm": None} for row in rows]
    for bucket in dict.fromkeys(row["bucket"] for row in rows):
        tested = [row for row in found if row["bucket"] == bucket and row["p"] is not None]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row |= {"family": f"all differences | {bucket}", "family_size": len(tested), "p_holm": float(p)}
    return found


def direction(row: Row) -> str | None:
    """Which way a run differs: higher, lower, same (no image differs), corrected or open; None: not tested.

    corrected: the interval leaves 0 out, but p_holm is not below 0.05. open: the interval holds 0.
    """
    if row["p_holm"] is None or np.isnan(row["p_holm"]):
        return None
    if row["lower"] == row["upper"] == 0:
        return "same"
    if row["lower"] <= 0 <= row["upper"]:
        return "open"
    if row["p_holm"] >= ALPHA:
        return "corrected"
    return "higher" if row["difference"] > 0 else "lower"
