"""Shares of images that are clustered in patients, with intervals that stay within 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, t

from cxr_ray.analysis.resampling import MIN_PATIENTS, patient_codes, patient_sums

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

    def tail(self, threshold: float) -> float:
        """p-value that the share is at or above the threshold: the upper tail of the interval's beta distribution."""
        hits = self.value * self.effective
        return float(beta.sf(threshold, hits + 1, self.effective - hits)) if hits < self.effective else 1.0


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
    hits_N1 = np.asarray(hits_N, dtype=np.float64)[:, None]
    sums_PK, counts_PK = patient_sums(hits_N1, *patient_codes(patients_N))
    share, n, patients = float(hits_N1.mean()), len(hits_N1), len(sums_PK)
    variance = float(((sums_PK - share * counts_PK) ** 2).sum()) / n**2 * patients / max(patients - 1, 1)
    effective = share * (1 - share) / variance if variance > 0 else patients
    if patients > 1:
        effective *= (t.ppf(0.975, n - 1) / t.ppf(0.975, patients - 1)) ** 2
    effective = float(min(effective, n))
    if patients < MIN_PATIENTS:
        return Share(share, effective, np.nan, np.nan)
    hits = share * effective
    lower = float(beta.ppf(0.025, hits, effective - hits + 1)) if hits > 0 else 0.0
    upper = float(beta.ppf(0.975, hits + 1, effective - hits)) if hits < effective else 1.0
    return Share(share, effective, lower, upper)
