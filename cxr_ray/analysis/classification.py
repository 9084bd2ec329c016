"""How well a model classifies: the rows of the table `classification`, each metric with a patient-bootstrap interval.

Metrics of a threshold come from counts, the others from scikit-learn. The bootstrap needs them a thousand times over,
so its samples come from weighted counts by matrix products, some samples at a time; tests compare all with
scikit-learn and `sample_weight`.

Shapes: N images, P patients, B bootstrap samples, G distinct scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import binomtest
from sklearn import metrics

from cxr_ray.analysis.resampling import (
    MIN_PATIENTS,
    Floats,
    Ints,
    patient_codes,
    patient_sums,
    percentile_interval,
    weight_blocks,
)

SPLITS = ("val", "test")
ECE_BINS = 15
SENS95 = 0.95
METRICS = ("accuracy", "auroc", "auprc", "sensitivity", "specificity", "f1", "brier", "ece")


def classification_rows(
    predictions: pd.DataFrame, trial_id: str, seed: int, n_boot: int = 1000
) -> list[dict[str, Any]]:
    """The rows of one trial: each split that has images x each rule for the threshold.

    Args:
        predictions: the trial's rows of `predictions`, with a column patient_id. A score of NaN leaves its image out.
        trial_id: stands in every row.
        seed: of the bootstrap.
        n_boot: bootstrap samples of patients.

    A metric is None where it is not defined: AUROC and AUPRC with one class only, sensitivity without PNEUMONIA,
    specificity without NORMAL. Intervals are None under 20 patients; samples in which the metric is not defined are
    left out. Where all samples are equal, as at 0 or 1, a share has Clopper and Pearson's interval (Biometrika 1934)
    over patients, another metric none. AUROC and AUPRC rank by the log-odds, since float32 probabilities tie at 1.
    Noise only adds to an ECE, so that its interval leans upwards and can lie above the estimate.
    """
    known = predictions.loc[predictions["prob_pneumonia"].notna() & predictions["logit_pneumonia"].notna()]
    known = known.sort_values("image_id")  # sums in another order differ in their last bit
    parts = {split: known.loc[known["split"] == split] for split in SPLITS}
    rules = thresholds(_labels(parts["val"]), _scores(parts["val"], "prob_pneumonia"))
    rows: list[dict[str, Any]] = []
    for split, part in parts.items():
        if part.empty:
            continue
        label_N, prob_N, logit_N = _labels(part), _scores(part, "prob_pneumonia"), _scores(part, "logit_pneumonia")
        codes_N, n_patients = patient_codes(part["patient_id"].to_numpy(object))
        calls = {rule: (prob_N >= threshold).astype(np.int64) for rule, threshold in rules.items()}
        blocks = weight_blocks(n_patients, n_boot, seed) if n_patients >= MIN_PATIENTS else iter(())
        samples = _samples(blocks, codes_N, label_N, prob_N, logit_N, calls)
        free = _threshold_free(label_N, prob_N, logit_N)
        for rule, threshold in rules.items():
            positive_N = calls[rule]
            estimates = free | _at_threshold(label_N, positive_N)
            row: dict[str, Any] = {
                "trial_id": trial_id,
                "split": split,
                "threshold_rule": rule,
                "threshold": threshold,
                "n": len(part),
                "n_patients": n_patients,
                **confusion(label_N, positive_N),
            }
            for name in METRICS:
                lower, upper = _bounds(samples[rule], name)
                if lower is not None and lower == upper:  # at 0 or 1 every sample is the estimate
                    lower, upper = _exact_bounds(name, estimates[name], part)
                row |= {name: _known(estimates[name]), f"{name}_lower": lower, f"{name}_upper": upper}
            rows.append(row)
    return rows


def thresholds(label_N: Ints, prob_N: Floats) -> dict[str, float]:
    """Thresholds on P(PNEUMONIA) by rule, from the validation split; `half` alone where it lacks a class.

    half: 0.5. youden: largest sensitivity + specificity (Youden 1950), the highest such threshold. sens95: the highest
    with a sensitivity of 0.95 or more. The candidates are the probabilities that occur.
    """
    rules = {"half": 0.5}
    if len(np.unique(label_N)) == 2:
        fpr, tpr, candidates = (
            x[1:] for x in metrics.roc_curve(label_N, prob_N, drop_intermediate=False)
        )  # without inf
        # In counts, since equal sums of rates can differ in their last bit.
        n_pos, n_neg = int(label_N.sum()), int((1 - label_N).sum())
        youden = np.rint(tpr * n_pos) * n_neg - np.rint(fpr * n_neg) * n_pos
        rules["youden"] = float(candidates[np.argmax(youden)])  # descending, so the first is the highest
        rules["sens95"] = float(candidates[np.argmax(tpr >= SENS95)])
    return rules


def confusion(label_N: Ints, positive_N: Ints) -> dict[str, int]:
    """Counts tp, fp, tn, fn of labels (1 PNEUMONIA) and calls (1 PNEUMONIA).

    >>> confusion(np.array([1, 1, 0, 0, 0]), np.array([1, 0, 1, 0, 0]))
    {'tp': 1, 'fp': 1, 'tn': 2, 'fn': 1}
    """
    cells = {"tp": (1, 1), "fp": (0, 1), "tn": (0, 0), "fn": (1, 0)}
    return {name: int(((label_N == label) & (positive_N == call)).sum()) for name, (label, call) in cells.items()}


def expected_calibration_error(label_N: Ints, prob_N: Floats) -> float:
    """Mean over images of |mean P(PNEUMONIA) - share of PNEUMONIA| of their bin, in [0, 1]; lower is better.

    15 bins of equal width (Naeini et al. 2015, of the positive class rather than of the predicted one).
    """
    gap_N, bins_N = prob_N - label_N, bins(prob_N)
    return float(np.abs(np.bincount(bins_N, gap_N, ECE_BINS)).sum() / len(prob_N))


def _threshold_free(label_N: Ints, prob_N: Floats, logit_N: Floats) -> dict[str, float]:
    both = len(np.unique(label_N)) == 2
    return {
        "auroc": float(metrics.roc_auc_score(label_N, logit_N)) if both else np.nan,
        "auprc": float(metrics.average_precision_score(label_N, logit_N)) if both else np.nan,
        "brier": float(metrics.mean_squared_error(label_N, prob_N)),
        "ece": expected_calibration_error(label_N, prob_N),
    }


def _at_threshold(label_N: Ints, positive_N: Ints) -> dict[str, float]:
    alone = np.ones((1, 1)), np.zeros_like(label_N)  # one sample of one patient: the data
    return {name: float(sample_1[0]) for name, sample_1 in _at_threshold_samples(*alone, label_N, positive_N).items()}


def _samples(
    blocks: Iterable[Floats], codes_N: Ints, label_N: Ints, prob_N: Floats, logit_N: Floats, calls: Mapping[str, Ints]
) -> dict[str, dict[str, Floats]]:
    """Bootstrap samples [B] of each metric by threshold rule; none without blocks of weights."""
    found: dict[str, dict[str, list[Floats]]] = {rule: {} for rule in calls}
    for weights_BP in blocks:
        free = _threshold_free_samples(weights_BP, codes_N, label_N, prob_N, logit_N)
        for rule, positive_N in calls.items():
            block = free | _at_threshold_samples(weights_BP, codes_N, label_N, positive_N)
            for name, sample_B in block.items():
                found[rule].setdefault(name, []).append(sample_B)
    return {rule: {name: np.concatenate(parts) for name, parts in of.items()} for rule, of in found.items()}


def _threshold_free_samples(
    weights_BP: Floats, codes_N: Ints, label_N: Ints, prob_N: Floats, logit_N: Floats
) -> dict[str, Floats]:
    """Bootstrap samples [B] of each metric that needs no threshold; NaN where it is not defined."""
    n_patients = weights_BP.shape[1]
    n_B, error_B = _totals(weights_BP, codes_N, np.stack([np.ones(len(prob_N)), (prob_N - label_N) ** 2], axis=1)).T
    gap_PG = np.zeros((n_patients, ECE_BINS))
    np.add.at(gap_PG, (codes_N, bins(prob_N)), prob_N - label_N)

    scores, place_N = np.unique(logit_N, return_inverse=True)
    negative_GP, positive_GP = (
        csr_array((np.ones(int(of.sum())), (place_N[of], codes_N[of])), (len(scores), n_patients))
        for of in (label_N == 0, label_N == 1)
    )
    auroc_B, auprc_B = _ranking_metrics((positive_GP @ weights_BP.T).T, (negative_GP @ weights_BP.T).T)
    return {
        "auroc": auroc_B,
        "auprc": auprc_B,
        "brier": error_B / n_B,
        "ece": np.abs(weights_BP @ gap_PG).sum(1) / n_B,
    }


def _ranking_metrics(positive_BG: Floats, negative_BG: Floats) -> tuple[Floats, Floats]:
    """AUROC and average precision of weighted counts at ascending distinct scores: two arrays [B].

    AUROC is the Mann-Whitney share of pairs in order, ties half. Average precision adds the precision at each score,
    weighted by the recall gained there, as scikit-learn does.
    """
    n_pos_B, n_neg_B = positive_BG.sum(1), negative_BG.sum(1)
    below_BG = np.cumsum(negative_BG, axis=1) - negative_BG
    caught_BG = np.cumsum(positive_BG[:, ::-1], axis=1)[:, ::-1]
    flagged_BG = caught_BG + np.cumsum(negative_BG[:, ::-1], axis=1)[:, ::-1]
    precision_BG = caught_BG / np.maximum(flagged_BG, 1.0)  # nothing flagged means nothing gained
    pairs_B = n_pos_B * n_neg_B
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc_B = (positive_BG * (below_BG + negative_BG / 2)).sum(1) / pairs_B
        auprc_B = (positive_BG * precision_BG).sum(1) / n_pos_B
    return auroc_B, np.where(pairs_B > 0, auprc_B, np.nan)


def _at_threshold_samples(weights_BP: Floats, codes_N: Ints, label_N: Ints, positive_N: Ints) -> dict[str, Floats]:
    """Bootstrap samples [B] of each metric of the confusion matrix; NaN where it is not defined."""
    outcome_N4 = np.eye(4)[2 * label_N + positive_N]
    tn_B, fp_B, fn_B, tp_B = _totals(weights_BP, codes_N, outcome_N4).T
    with np.errstate(invalid="ignore"):  # 0 / 0
        return {
            "accuracy": (tp_B + tn_B) / (tp_B + tn_B + fp_B + fn_B),
            "sensitivity": tp_B / (tp_B + fn_B),
            "specificity": tn_B / (tn_B + fp_B),
            "f1": 2 * tp_B / (2 * tp_B + fp_B + fn_B),
        }


def _totals(weights_BP: Floats, codes_N: Ints, values_NK: Floats) -> Floats:
    """Sums of the values over the images of each sample: totals_BK."""
    return weights_BP @ patient_sums(values_NK, codes_N, weights_BP.shape[1])[0]


def _bounds(samples: dict[str, Floats], name: str) -> tuple[float | None, float | None]:
    if name not in samples:
        return None, None
    lower_1, upper_1 = percentile_interval(samples[name][:, None])
    return _known(lower_1[0]), _known(upper_1[0])


def _exact_bounds(name: str, estimate: float, part: pd.DataFrame) -> tuple[float | None, float | None]:
    """Clopper and Pearson's of a share that is 0 or 1, of as many draws as patients; None for what is no share."""
    of = {"accuracy": (0, 1), "sensitivity": (1,), "specificity": (0,)}.get(name)
    if of is None or estimate not in (0.0, 1.0):
        return None, None
    n = part.loc[part["label"].isin(of), "patient_id"].nunique()
    exact = binomtest(round(estimate * n), n).proportion_ci(0.95, method="exact")
    return float(exact.low), float(exact.high)


def bins(prob_N: Floats) -> Ints:
    """Bin of the calibration error that each probability falls in, 0 to 14."""
    return np.minimum((prob_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def _labels(part: pd.DataFrame) -> Ints:
    return part["label"].to_numpy(np.int64)


def _scores(part: pd.DataFrame, name: str) -> Floats:
    # float32 like the table: a threshold that is read back gives the same predictions.
    return part[name].to_numpy(np.float32).astype(np.float64)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
