"""Shares of images that are clustered in patients, with intervals that stay within 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, t

from cxr_ray.analysis.resampling import MIN_PATIENTS, Floats, patient_codes, patient_sums

SHARE_METHOD = "Korn-Graubard: exact binomial with the effective number of images, by patients"


@dataclass(frozen=True)
class Share:
    """A share of images and how sure it is.

    Attributes:
        value: the share, 0 to 1.
        effective: images that would say as much, were each of another patient.
        lower, upper: bounds of the 95% interval; NaN under 20 patients.
    """

    value: float
    effective: float
    lower: float
    upper: float


def patient_share(hits_N: ArrayLike, patients_N: ArrayLike) -> Share:
    """Share of images that are hits, with its 95% interval over patients.

    Korn & Graubard (1998): Clopper-Pearson, the number of images divided by the design effect of patients (and where no
    image differs, the number of patients). A bootstrap knows no doubt about a share of 0.

    Args:
        hits_N: whether each image is one; at least one image.
        patients_N: each image's patient.

    >>> one_each = patient_share([True] * 5 + [False] * 15, list(range(20)))
    >>> one_each.value, round(one_each.lower, 3), round(one_each.upper, 3)  # Clopper and Pearson: 0.087 to 0.491
    (0.25, 0.083, 0.498)
    """
    return patient_shares(np.asarray(hits_N)[:, None], patients_N)[0]


def patient_shares(hits_NK: ArrayLike, patients_N: ArrayLike) -> list[Share]:
    """``patient_share`` of each column."""
    columns = _korn_graubard(np.asarray(hits_NK, dtype=np.float64), patients_N, at_most_images=True)
    return [Share(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def mean_shares(values_NK: ArrayLike, patients_N: ArrayLike) -> tuple[Floats, Floats]:
    """95% interval of the mean over images of values in [0, 1], by patients: lower_K, upper_K, in [0, 1].

    Korn & Graubard's interval with two changes for win rates over several draws, which spread less than yes and no do:
    the effective number may exceed that of images, and the variance is raised by that of two patients, each of a single
    yes or no (1 / effective + 2 / P**2, P patients), since patients who nearly always win show too little of it. In
    simulations with clusters, 20 to 200 patients, 1 to 39 draws and rates of 0.5 to 0.95 it covers 94.7% and more;
    without the second change 88.7%; the bootstrap-t at 20 patients and a rate of 0.95 is unbounded or covers half.

    NaN for a column whose values come from under 20 patients; NaN marks an image without a value.
    """
    _, _, lower_K, upper_K = _korn_graubard(np.asarray(values_NK, dtype=np.float64), patients_N, at_most_images=False)
    return lower_K, upper_K


def _korn_graubard(
    values_NK: Floats, patients_N: ArrayLike, *, at_most_images: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, effective number of images, and bounds of the 95% interval: four arrays over K."""
    sums_PK, counts_PK = patient_sums(values_NK, *patient_codes(patients_N))
    n_K, patients_K = counts_PK.sum(0), (counts_PK > 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_K = np.clip(sums_PK.sum(0) / n_K, 0.0, 1.0)
        squares_K = ((sums_PK - share_K * counts_PK) ** 2).sum(0)
        variance_K = squares_K / n_K**2 * patients_K / np.maximum(patients_K - 1, 1)
        effective_K = np.where(variance_K > 0, share_K * (1 - share_K) / variance_K, patients_K)
        correction_K = (t.ppf(0.975, n_K - 1) / t.ppf(0.975, patients_K - 1)) ** 2
        if not at_most_images:
            effective_K = 1 / (1 / effective_K + 2 / patients_K**2)
        effective_K = np.where(patients_K > 1, effective_K * correction_K, effective_K)
        effective_K = np.minimum(effective_K, n_K) if at_most_images else effective_K
    hits_K = share_K * effective_K
    misses_K = effective_K - hits_K
    lower_K = np.where(hits_K > 0, beta.ppf(0.025, hits_K, misses_K + 1), 0.0)
    upper_K = np.where(misses_K > 0, beta.ppf(0.975, hits_K + 1, misses_K), 1.0)
    enough_K = patients_K >= MIN_PATIENTS
    return share_K, effective_K, np.where(enough_K, lower_K, np.nan), np.where(enough_K, upper_K, np.nan)
