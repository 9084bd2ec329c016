"""Statistics of trained models that all see the same patients: models and patients are resampled, each on their own.

Shapes: N images, P patients, S models (or pairs of models), B bootstrap samples. NaN marks an image without a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from cxr_ray.analysis.resampling import Floats, bootstrap_weights, patient_codes, patient_sums, resampled

CROSSED_METHOD = "t with (models - 1) degrees of freedom, standard error by bootstrap over models and patients"

Statistic = Callable[[Floats], Floats]
"""weights_BP to the statistic of each sample and model, [B, S]."""


@dataclass(frozen=True)
class Crossed:
    """A mean over models, its standard error over models and patients, and the degrees of freedom."""

    effect: float
    error: float
    freedom: int

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided interval at this level."""
        half = self.error * float(scipy.stats.t.ppf((1 + level) / 2, self.freedom))
        return self.effect - half, self.effect + half

    def p_above(self, value: float) -> float:
        """One-sided p that the effect is at most ``value``: small where it lies above."""
        if self.error > 0:
            return float(scipy.stats.t.sf((self.effect - value) / self.error, self.freedom))
        return float(self.effect <= value)

    def p_below(self, value: float) -> float:
        """One-sided p that the effect is at least ``value``: small where it lies below."""
        if self.error > 0:
            return float(scipy.stats.t.cdf((self.effect - value) / self.error, self.freedom))
        return float(self.effect >= value)


def crossed(statistic: Statistic, n_patients: int, n_models: int, seed: int, n_boot: int) -> Crossed:
    """Mean over models with its standard error over models and patients.

    Both are resampled, each on its own, since all models see the same patients (Owen 2007: never too narrow for what is
    crossed). A bootstrap of S models misses (S - 1) / S of their variance, and percentiles of five miss the rest: hence
    the t. A sign-flip over five models ends at 1/32, which Holm's correction alone makes 0.09.

    Args:
        statistic: of weighted patients.
        n_patients: P.
        n_models: S, 2 or more.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
    """
    effect = float(statistic(np.ones((1, n_patients))).mean())
    each_BS = resampled(statistic, n_patients, n_boot, seed)
    samples_B = (each_BS * bootstrap_weights(n_models, n_boot, seed + 1)).sum(1) / n_models
    return Crossed(effect, float(samples_B.std()) * float(np.sqrt(n_models / (n_models - 1))), n_models - 1)


def mean_of(values_NS: ArrayLike, patients_N: ArrayLike) -> Statistic:
    """The statistic that is each model's mean over the images that have a value; every model has one at least.

    A sample in which a model has no image keeps that model's own mean.
    """
    sums_PS, counts_PS = patient_sums(values_NS, *patient_codes(patients_N))
    mean_S = sums_PS.sum(0) / counts_PS.sum(0)

    def statistic(weights_BP: Floats) -> Floats:
        counts_BS = weights_BP @ counts_PS
        return np.where(counts_BS > 0, (weights_BP @ sums_PS) / np.maximum(counts_BS, 1), mean_S)

    return statistic
