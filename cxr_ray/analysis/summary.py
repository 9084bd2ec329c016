"""The table `summary`: faithfulness per image to means, intervals and tests per bucket of images.

One trial at a time. A trial's rows become matrices of images by columns, a column being one (explainer, grid, fill,
metric, level, scale, control), so that a bucket is a choice of rows and all its statistics are matrix products.

Shapes: N images of the test split or of a bucket; K columns; E explainers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis import beating
from cxr_ray.analysis.baselines import VALID_SHARE
from cxr_ray.analysis.cells import COLUMN, Cells, cells_of, targets
from cxr_ray.analysis.resampling import (
    CI_METHOD,
    Floats,
    Ints,
    bootstrap_difference,
    matched_pairs,
    patient_bootstrap,
    patient_codes,
    patient_sums,
)
from cxr_ray.measure.metrics import areas

BUCKETS = {
    "TP": ("TP",),
    "FP": ("FP",),
    "TN": ("TN",),
    "FN": ("FN",),
    "correct": ("TP", "TN"),
    "wrong": ("FP", "FN"),
    "all": ("TP", "FP", "TN", "FN"),
}
CONTRASTS = (("TP", "FP"), ("TN", "FN"), ("correct", "wrong"))
CALIPER = 0.25  # log-odds of the target
OF_BUCKET = ("control_mean", "overlap", "n_valid_baseline", "n_negative")


@dataclass(frozen=True)
class Model:
    """Whose rows these are; they stand in every row."""

    trial_id: str
    variant: str
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How intervals and tests are sampled.

    Attributes:
        seed: of the bootstrap and of the sign flips.
        n_boot: bootstrap samples of patients.
    """

    seed: int
    n_boot: int = 1000


def summarize(
    faithfulness: pd.DataFrame,
    predictions: pd.DataFrame,
    images: pd.DataFrame,
    degenerate: pd.DataFrame,
    model: Model,
    *,
    target_rules: Sequence[str],
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """The rows of `summary` for one trial, each a dict of all columns, None where there is nothing to say.

    Args:
        faithfulness: the trial's rows of `faithfulness`, with a column explainer.
        predictions: the trial's rows of `predictions`. The test split is what is summarised: an image of it without
            rows in `faithfulness` counts in n_null.
        images: image_id and patient_id at least.
        degenerate: explainer, image_id, target, degenerate; what is not listed is not degenerate.
        model: whose rows they are.
        target_rules: `pneumonia` (target 1) or `predicted` (each image's predicted class).
        sampling: of intervals and tests.

    A row is a bucket, or the contrast A-B of two buckets, once over all images and once over pairs matched within 0.25
    log-odds of the target (n says how many images are used, so the unmatched are the difference of two rows' n).

    - mean: over the images with a value. For control none of the metric itself, else of the advantage over the control.
    - win_rate, p and mean, mean_p are two questions: how often the map wins, and by how much on average. p_holm and
      mean_p_holm correct over the explainers and controls of `family`. hardest and beaten: see ``beating``. A bucket
      compared with a control has them, control none and contrasts do not.
    - Absolute areas (deletion_auc, insertion_auc, abpc under control none) have no mean where fewer than 95% of a
      bucket's images (of either bucket, in a contrast) have a valid baseline: there a curve ends on a filled image
      that the model takes for the target, so its area says little about the map. Leaving single images out instead
      would change which images a bucket holds. Drops and gaps need no such end.
    - Buckets that no image falls in have no rows.

    Raises:
        ValueError: an unknown rule, an image that is not in `predictions` (test) or `images`, a row that occurs twice.
    """
    test = predictions.loc[predictions["split"] == "test"].sort_values("image_id")
    image_ids = pd.Index(test["image_id"])
    patients_N = images.set_index("image_id")["patient_id"].reindex(image_ids).to_numpy(object)
    if unknown := image_ids[pd.isna(patients_N)].tolist():
        raise ValueError(
            f"summary of {model.trial_id}: {len(unknown)} images are not in `images`, such as {unknown[0]}"
        )
    outcome_N = test["outcome"].to_numpy(object)
    logit_N = test["logit_pneumonia"].to_numpy(np.float64)
    members = {name: np.flatnonzero(np.isin(outcome_N, outcomes)) for name, outcomes in BUCKETS.items()}

    rows: list[dict[str, Any]] = []
    for rule in target_rules:
        target_N = targets(rule, test["predicted"].to_numpy(np.int64))
        cells = cells_of(faithfulness, degenerate, image_ids, target_N)
        target_logit_N = np.where(target_N == 1, logit_N, -logit_N)
        same = {**vars(model), "target_rule": rule, "cluster": "patient"}
        same |= {"ci_method": CI_METHOD, "n_boot": sampling.n_boot}

        for bucket, chosen in members.items():
            if len(chosen):
                same |= {"bucket": bucket, "contrast": False, "matched": False}
                family = f"{model.trial_id}, {bucket}, {rule}"
                rows += _rows(cells, same, _bucket(cells, chosen, patients_N, family, sampling))
        for first, second in CONTRASTS:
            a, b = members[first], members[second]
            if len(a) and len(b):
                same |= {"bucket": f"{first}-{second}", "contrast": True}
                pairs = matched_pairs(target_logit_N[a], target_logit_N[b], CALIPER)
                for matched in (False, True):
                    if matched:
                        a, b = a[pairs[:, 0]], b[pairs[:, 1]]
                    statistics = _contrast(cells, a, b, patients_N, matched, sampling)
                    rows += _rows(cells, same | {"matched": matched}, statistics)
    return rows


def _bucket(
    cells: Cells, chosen: Ints, patients_N: NDArray[Any], family: str, sampling: Sampling
) -> dict[str, NDArray[Any]]:
    """Statistics of the chosen images, each an array over K; `family` begins the name of each family of tests."""
    measure_NK, patients = cells.measure_NK[chosen], patients_N[chosen]
    lower_K, upper_K = patient_bootstrap(measure_NK, patients, sampling.n_boot, seed=sampling.seed)
    shown_K = ~_hidden(cells, chosen)
    advantage = {
        **_counts(cells, chosen, patients_N),
        "mean": np.where(shown_K, _mean(measure_NK), np.nan),
        "lower": np.where(shown_K, lower_K, np.nan),
        "upper": np.where(shown_K, upper_K, np.nan),
    }
    tests = beating.against_controls(cells, chosen, patients, advantage, family, sampling.seed)
    return {**advantage, **tests, **_of_bucket(cells, chosen)}


def _of_bucket(cells: Cells, chosen: Ints) -> dict[str, NDArray[Any]]:
    """Means of the control and counts that a contrast has not, each an array over K."""
    measure_NK = cells.measure_NK[chosen]
    return {
        "control_mean": np.where(cells.absolute_K, np.nan, _mean(cells.control_NK[chosen])),
        "overlap": np.where(cells.absolute_K, np.nan, _mean(cells.overlap_NK[chosen])),
        "n_valid_baseline": (cells.valid_NK[chosen] & ~np.isnan(measure_NK)).sum(0),
        "n_negative": (measure_NK < 0).sum(0),
    }


def _contrast(
    cells: Cells, a: Ints, b: Ints, patients_N: NDArray[Any], paired: bool, sampling: Sampling
) -> dict[str, NDArray[Any]]:
    """Statistics of mean(a) - mean(b), each an array over K. A pair of which one has no value is left out."""
    missing_a, missing_b = np.isnan(cells.measure_NK[a]), np.isnan(cells.measure_NK[b])
    if paired:
        missing_a = missing_b = missing_a | missing_b
    a_NK, b_NK = np.where(missing_a, np.nan, cells.measure_NK[a]), np.where(missing_b, np.nan, cells.measure_NK[b])
    lower_K, upper_K = bootstrap_difference(
        a_NK, patients_N[a], b_NK, patients_N[b], sampling.n_boot, seed=sampling.seed
    )
    shown_K = ~(_hidden(cells, a) | _hidden(cells, b))
    nothing = np.full(len(cells.columns), None, dtype=object)
    missing = np.concatenate([missing_a, missing_b])
    return _counts(cells, np.concatenate([a, b]), patients_N, missing) | {
        "mean": np.where(shown_K, _mean(a_NK) - _mean(b_NK), np.nan),
        "lower": np.where(shown_K, lower_K, np.nan),
        "upper": np.where(shown_K, upper_K, np.nan),
        **dict.fromkeys((*beating.COLUMNS, *OF_BUCKET), nothing),
    }


def _counts(
    cells: Cells, chosen: Ints, patients_N: NDArray[Any], missing_NK: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[Any]]:
    """n, n_patients, n_null, n_degenerate (among n) and draws of the chosen images, over K."""
    null_NK = np.isnan(cells.measure_NK[chosen])
    known_NK = ~(null_NK if missing_NK is None else missing_NK)
    images_PK, _ = patient_sums(known_NK, *patient_codes(patients_N[chosen]))
    return {
        "n": known_NK.sum(0),
        "n_patients": (images_PK > 0).sum(0),
        "n_null": null_NK.sum(0),
        "n_degenerate": (cells.degenerate_NK[chosen] & known_NK).sum(0),
        "draws": np.where(cells.absolute_K, 0, cells.draws_K),
    }


def _hidden(cells: Cells, chosen: Ints) -> NDArray[np.bool_]:
    """Absolute areas whose baseline is valid for too few of the chosen images that have a value."""
    known_NK = ~np.isnan(cells.measure_NK[chosen])
    area_K = cells.absolute_K & np.isin(cells.columns["metric"].to_numpy(object), areas())
    return area_K & ((cells.valid_NK[chosen] & known_NK).sum(0) < VALID_SHARE * known_NK.sum(0))


def _mean(values_NK: Floats) -> Floats:
    """Mean of each column's values, NaN for a column without."""
    known_NK = ~np.isnan(values_NK)
    with np.errstate(invalid="ignore"):
        return np.where(known_NK, values_NK, 0.0).sum(0) / known_NK.sum(0)


def _rows(cells: Cells, same: Mapping[str, Any], statistics: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """One dict a column, NaN as None."""
    values = {name: cells.columns[name].tolist() for name in COLUMN} | {k: v.tolist() for k, v in statistics.items()}
    return [
        {**same, **{name: None if v != v else v for name, v in zip(values, row, strict=True)}}
        for row in zip(*values.values(), strict=True)
    ]
