"""H2, imbalance: training on classes as they come (variant `plain`) makes more false positives than balancing them
(`balanced`).

Shapes: N images, P patients, S seeds, B bootstrap samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from cxr_ray.analysis.classification import ECE_BINS, bins, thresholds
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.rows import Row, row
from cxr_ray.analysis.resampling import MIN_PATIENTS, Floats, bootstrap_weights, patient_codes, patient_sums
from cxr_ray.config import Sweep
from cxr_ray.measure.controls import strongest_first

MARGIN = 0.05  # false positive rate
PAIR = ("plain", "balanced")
MIN_SEEDS = 5
SEED_METHOD = "t with (seeds - 1) degrees of freedom, standard error by bootstrap over seeds and patients"


def imbalance(inputs: Inputs, test: pd.DataFrame, subject: str, n_boot: int) -> Iterator[Row]:
    """False positive rate of plain minus balanced, paired by seed; then other thresholds, calibration, faithfulness."""
    judged: Row = {
        "test": "t of the interval, against 0",
        "alternative": "greater: plain makes more false positives",
    }
    quantity = "false positive rate at 0.5, plain minus balanced"  # the first of _comparisons
    trials = inputs.trials[inputs.trials["trial_id"].isin(test["trial_id"]) & inputs.trials["variant"].isin(PAIR)]
    by_seed = {
        seed: tuple(part.loc[part["variant"] == v, "trial_id"].tolist() for v in PAIR)
        for seed, part in trials.groupby("seed")
        if set(part["variant"]) == set(PAIR)
    }
    if not by_seed:
        judged["reason"] = "it takes the variants plain and balanced, trained with the same seeds"
        yield row("H2", subject, quantity, "share", **judged)
        return
    judged["reason"] = _not_comparable(inputs.sweep, trials, by_seed)
    pairs = [(plain[0], balanced[0]) for plain, balanced in by_seed.values()]
    for i, (name, unit, table, statistic) in enumerate(_comparisons(inputs, test, pairs)):
        estimate = _paired(table, statistic, len(pairs), inputs.sweep.seed, n_boot)
        if i or judged["reason"]:
            estimate["p"] = None
        yield row("H2", subject, name, unit, **({} if i else judged), **estimate)


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


Statistic = Callable[[Floats], Floats]  # weights_BP to one difference for each sample and seed, [B, S]


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
            yield f"{what} at {names[rule]}, plain minus balanced", "share", part, _mean_of(positive_NS, part)
    error_NS = ((prob_NS2 - label_N[:, None, None]) ** 2 * sign).sum(2)
    yield "Brier score, plain minus balanced", "squared error", facts, _mean_of(error_NS, facts)
    yield "expected calibration error, plain minus balanced", "probability", facts, _ece_of(prob_NS2, label_N, facts)

    faith = inputs.faithfulness
    faith = faith[(faith["target"] == 1) & faith["gap"].notna()]
    control = next(iter(strongest_first(c for c in set(faith["control"]) if c != "none")), None)
    gaps = faith[faith["control"] == control].pivot(index="image_id", columns="trial_id", values="gap")
    if control is not None and {t for pair in pairs for t in pair} <= set(gaps.columns):
        gaps = gaps[[t for pair in pairs for t in pair]].dropna()
        part = facts.reindex(gaps.index)
        gap_NS = (gaps.to_numpy(float).reshape(len(gaps), len(pairs), 2) * sign).sum(2)
        setting = f"{inputs.primary.explainer}, {inputs.setting}"
        yield (
            f"mean advantage in ABPC over {control} ({setting}), all images, plain minus balanced",
            "log-odds",
            part,
            _mean_of(gap_NS, part),
        )


def _mean_of(values_NS: Floats, part: pd.DataFrame) -> Statistic:
    sums_PS, counts_PS = patient_sums(values_NS, *patient_codes(part["patient_id"]))
    return lambda weights_BP: (weights_BP @ sums_PS) / (weights_BP @ counts_PS)


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


def _paired(part: pd.DataFrame, statistic: Statistic, n_seeds: int, seed: int, n_boot: int) -> Row:
    """Mean over seeds with an interval over seeds and patients, and one-sided p that it is 0 or less.

    Both are resampled, each on its own, since all seeds see the same patients (Owen 2007: never too narrow for what is
    crossed). A bootstrap of S seeds misses (S - 1) / S of their variance, and percentiles of five miss the rest: hence
    the t. A sign-flip over five seeds ends at 1/32, which Holm's correction alone makes 0.09.
    """
    n_patients = part["patient_id"].nunique()
    known = {"n_trials": 2 * n_seeds, "n": len(part), "n_patients": n_patients, "ci_method": SEED_METHOD}
    if part.empty:
        return known
    effect = float(statistic(np.ones((1, n_patients))).mean())
    if n_patients < MIN_PATIENTS or n_seeds < 2:
        return known | {"effect": effect}
    each_BS = statistic(bootstrap_weights(n_patients, n_boot, seed))
    samples_B = (each_BS * bootstrap_weights(n_seeds, n_boot, seed + 1)).sum(1) / n_seeds
    error = float(samples_B.std()) * np.sqrt(n_seeds / (n_seeds - 1))
    half = error * scipy.stats.t.ppf(0.975, n_seeds - 1)
    p = float(scipy.stats.t.sf(effect / error, n_seeds - 1)) if error > 0 else float(effect <= 0)
    return known | {"effect": effect, "lower": effect - half, "upper": effect + half, "p": p}
