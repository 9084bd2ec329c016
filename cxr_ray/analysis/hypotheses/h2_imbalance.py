"""H2, imbalance: training on classes as they come (variant `plain`) makes more false positives than balancing them
(`balanced`).

Shapes: N images, P patients, S seeds, B bootstrap samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_ray.analysis.classification import ECE_BINS, bins, thresholds
from cxr_ray.analysis.crossed import CROSSED_METHOD, Statistic, crossed, mean_of
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import NOT_APPLICABLE, Margin
from cxr_ray.analysis.hypotheses.rows import Row, of_models, row
from cxr_ray.analysis.resampling import MIN_PATIENTS, Floats, patient_codes
from cxr_ray.config import Sweep
from cxr_ray.measure.controls import strong_first

MARGIN = Margin.around_zero(0.05)  # false positive rate
PAIR = ("plain", "balanced")
MIN_SEEDS = 5


def imbalance(inputs: Inputs, test: pd.DataFrame, subject: str, n_boot: int) -> Iterator[Row]:
    """False positive rate of plain minus balanced, paired by seed; then other thresholds, calibration, faithfulness."""
    quantity = "false positive rate at 0.5, plain minus balanced"  # the first of _comparisons
    trials = inputs.trials[inputs.trials["trial_id"].isin(test["trial_id"]) & inputs.trials["variant"].isin(PAIR)]
    by_seed = {
        seed: tuple(part.loc[part["variant"] == v, "trial_id"].tolist() for v in PAIR)
        for seed, part in trials.groupby("seed")
        if set(part["variant"]) == set(PAIR)
    }
    if not by_seed:
        missing = "there is no pair of variants: add plain and balanced, trained with the same seeds"
        yield row("H2", subject, quantity, "share", reason=missing, verdict=NOT_APPLICABLE)
        return
    reason = _not_comparable(inputs.sweep, trials, by_seed)
    pairs = [(plain[0], balanced[0]) for plain, balanced in by_seed.values()]
    for i, (name, unit, table, statistic) in enumerate(_comparisons(inputs, test, pairs)):
        margin = None if i or reason else MARGIN
        estimate = _paired(table, statistic, len(pairs), inputs.sweep.seed, n_boot, margin)
        yield row("H2", subject, name, unit, reason=None if i else reason, **estimate)


def _not_comparable(sweep: Sweep, trials: pd.DataFrame, by_seed: Mapping[Any, tuple[list[str], ...]]) -> str | None:
    """Why these trials cannot settle H2, if so."""
    rates = {json.loads(c).get("train", {}).get("lr") for c in trials["config"]}
    if len(by_seed) < MIN_SEEDS:
        return f"{len(by_seed)} seeds have both variants; it takes {MIN_SEEDS} or more (train.seed: {{grid: [...]}})"
    if sweep.search.scheduler != "none" or (trials["status"] == "stopped").any():
        return "trials may be stopped early, so that seeds are chosen by their luck: set search.scheduler to none"
    if len(rates) > 1 or any(len(ids) > 1 for both in by_seed.values() for ids in both):
        return "the learning rate differs between trials: give train.lr one value and search.num_samples 1"
    return None


def _comparisons(
    inputs: Inputs, test: pd.DataFrame, pairs: list[tuple[str, str]]
) -> Iterator[tuple[str, str, pd.DataFrame, Statistic]]:
    """(quantity, unit, images, statistic) of plain minus balanced; the first is what H2 is judged by."""
    wide = test.pivot(index="image_id", columns="trial_id", values="prob_pneumonia")
    wide = wide[[t for pair in pairs for t in pair]].dropna()
    facts = test.drop_duplicates("image_id").set_index("image_id").loc[wide.index, ["label", "patient_id"]]
    # [N, S, 2] float32 like the table: a threshold that is read back gives the same predictions
    prob_NS2 = wide.to_numpy(np.float32).astype(float).reshape(len(wide), len(pairs), 2)
    label_N = facts["label"].to_numpy(np.int64)
    val = inputs.predictions[inputs.predictions["split"] == "val"]
    rules: dict[str, NDArray[Any]] = {"half": np.full((len(pairs), 2), 0.5)}
    chosen = {
        t: thresholds(part["label"].to_numpy(np.int64), part["prob_pneumonia"].to_numpy(np.float32).astype(float))
        for t, part in val[val["prob_pneumonia"].notna()].groupby("trial_id")
    }
    for rule in ("sens95", "youden"):
        if all(rule in chosen.get(t, {}) for pair in pairs for t in pair):
            rules[rule] = np.array([[chosen[t][rule] for t in pair] for pair in pairs])
    names = {"half": "0.5", "sens95": "sensitivity 0.95 (threshold from val)", "youden": "Youden's point (from val)"}
    sign = np.array([1.0, -1.0])
    for label, what in ((0, "false positive rate"), (1, "sensitivity")):
        part = facts[facts["label"] == label]
        for rule, threshold_S2 in rules.items():
            positive_NS = ((prob_NS2[label_N == label] >= threshold_S2) * sign).sum(2)
            yield (
                f"{what} at {names[rule]}, plain minus balanced",
                "share",
                part,
                mean_of(positive_NS, part["patient_id"]),
            )
    error_NS = ((prob_NS2 - label_N[:, None, None]) ** 2 * sign).sum(2)
    yield "Brier score, plain minus balanced", "squared error", facts, mean_of(error_NS, facts["patient_id"])
    yield "expected calibration error, plain minus balanced", "probability", facts, _ece_of(prob_NS2, label_N, facts)

    faith = inputs.faithfulness
    faith = faith[(faith["target"] == 1) & faith["gap"].notna()]
    control = next(iter(strong_first(c for c in set(faith["control"]) if c != "none")), None)
    gaps = faith[faith["control"] == control].pivot(index="image_id", columns="trial_id", values="gap")
    if control is not None and {t for pair in pairs for t in pair} <= set(gaps.columns):
        gaps = gaps[[t for pair in pairs for t in pair]].dropna()
        part = facts.reindex(gaps.index)
        gap_NS = (gaps.to_numpy(float).reshape(len(gaps), len(pairs), 2) * sign).sum(2)
        setting = f"{inputs.primary.explainer}, {inputs.setting}"
        yield (
            f"mean advantage over {control} ({setting}), all images, plain minus balanced",
            "log-odds",
            part,
            mean_of(gap_NS, part["patient_id"]),
        )


def _ece_of(prob_NS2: Floats, label_N: NDArray[np.int64], part: pd.DataFrame) -> Statistic:
    codes_N, n_patients = patient_codes(part["patient_id"])
    gap_S2PG = np.zeros((*prob_NS2.shape[1:], n_patients, ECE_BINS))
    for s, k in np.ndindex(prob_NS2.shape[1:]):
        np.add.at(gap_S2PG[s, k], (codes_N, bins(prob_NS2[:, s, k])), prob_NS2[:, s, k] - label_N)
    counts_P = np.bincount(codes_N, minlength=n_patients)

    def statistic(weights_BP: Floats) -> Floats:
        ece_S2B = np.abs(weights_BP @ gap_S2PG).sum(-1) / (weights_BP @ counts_P)
        return (ece_S2B[:, 0] - ece_S2B[:, 1]).T

    return statistic


def _paired(
    part: pd.DataFrame, statistic: Statistic, n_seeds: int, seed: int, n_boot: int, margin: Margin | None = None
) -> Row:
    """Mean over seeds of plain minus balanced, with its interval over seeds and patients."""
    n_patients = part["patient_id"].nunique()
    known = {"n_trials": 2 * n_seeds, "n": len(part), "n_patients": n_patients, "ci_method": CROSSED_METHOD}
    if part.empty:
        return known
    if n_patients < MIN_PATIENTS or n_seeds < 2:
        return known | {"effect": float(statistic(np.ones((1, n_patients))).mean())}
    return known | of_models(crossed(statistic, n_patients, n_seeds, seed, n_boot), margin)
