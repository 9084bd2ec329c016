"""The table `hypotheses`: the study's three hypotheses, each with effect, interval, test and a verdict by one rule.

H1, shortcuts: false positives lose log-odds when border and corners are exchanged for those of another patient's
NORMAL image, more than when the same shapes are exchanged elsewhere. H2, imbalance: training on classes as they come
(variant `plain`) makes more false positives than balancing them (`balanced`). H3, plausible but unfaithful: maps that
look right (in the lungs, not diffuse) beat the same map shifted no more often than chance.

H1 and H3 are told of each variant (a given checkpoint is one), its trials pooled: patients are resampled, models are
not. H2 is told of the pair, resampling seeds and patients. What is missing makes a hypothesis undecided, and the reason
says what.

Shapes: N images, P patients, S seeds, B bootstrap samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from cxr_ray.analysis.classification import ECE_BINS, bins, thresholds
from cxr_ray.analysis.resampling import (
    CI_METHOD,
    MIN_PATIENTS,
    Floats,
    bootstrap_difference,
    bootstrap_weights,
    holm,
    patient_bootstrap,
    patient_codes,
    patient_sums,
    percentile_interval,
    sign_flip,
)
from cxr_ray.config import Edit, Sweep
from cxr_ray.measure.controls import strongest_first
from cxr_ray.measure.regions import REGIONS
from cxr_ray.schemas import HYPOTHESES, PATCH_SWAP

MARGINS = {"H1": 0.5, "H2": 0.05, "H3": 0.10}  # log-odds, false positive rate, share
ALPHA = 0.05
EDGES = tuple(name for name, region in REGIONS.items() if region.family == "edge")
PAIR = ("plain", "balanced")
MIN_SEEDS, MIN_DRAWS = 5, 39
CHANCE = 0.05  # share of maps without information that beat their control at p <= 0.05
IN_LUNGS = 0.5  # share of a plausible map's positive mass
FOCUSED_AREA = 0.15  # share of the image that holds half of a plausible map's positive mass, at most
SEED_METHOD = "t with (seeds - 1) degrees of freedom, standard error by bootstrap over seeds and patients"
SHARE_METHOD = "Korn-Graubard: exact binomial with the effective number of images, by patients"


@dataclass(frozen=True)
class Inputs:
    """A run's tables, as far as hypotheses need them; partition columns are columns.

    Attributes:
        sweep: the resolved sweep.
        trials: the whole table.
        predictions: the whole table.
        patients: image_id to patient_id.
        regions: the whole table.
        saliency: trial_id, image_id, target, half_mass_area, concentration and lung_share of `explainer_of` the sweep.
        faithfulness: trial_id, image_id, target, control, gap and p_value of the same explainer: abpc in log-odds,
            the sweep's first grid and fill.
    """

    sweep: Sweep
    trials: pd.DataFrame
    predictions: pd.DataFrame
    patients: pd.Series
    regions: pd.DataFrame
    saliency: pd.DataFrame
    faithfulness: pd.DataFrame

    @property
    def test(self) -> pd.DataFrame:
        """Predictions of the test split with patient_id and variant."""
        test = self.predictions[self.predictions["split"] == "test"]
        variant = self.trials.set_index("trial_id")["variant"]
        return test.assign(
            patient_id=test["image_id"].map(self.patients), variant=test["trial_id"].map(variant)
        ).sort_values(["trial_id", "image_id"])


def explainer_of(sweep: Sweep) -> str:
    """Whose maps the hypotheses are about: gradcam's, as in the study, or else those of the sweep's first explainer."""
    explainers = sweep.explain.explainers
    return "gradcam" if "gradcam" in explainers else explainers[0]


def hypotheses(inputs: Inputs, n_boot: int = 1000) -> list[dict[str, Any]]:
    """The rows of `hypotheses`: what is judged and, unjudged, what stands beside it.

    Holm corrects over the three verdict rows of one variant, H2 being one of them; H2's own correction is that of
    `plain`. One without a p counts as 1: what could not be tested spares the others nothing.
    """
    test = inputs.test
    variants = [v for v in dict.fromkeys(inputs.trials["variant"]) if v in set(test["variant"])] or ["none"]
    judged, beside = [], []
    for variant in variants:
        mine = test[test["variant"] == variant]
        for tell in (_h1, _h3):
            first, *others = tell(inputs, variant, mine, n_boot)
            judged.append(first)
            beside += others
    second, *others = _h2(inputs, test, n_boot)
    for variant in variants:
        own = [r for r in judged if r["subject"] == variant]
        adjusted = holm([1.0 if r["p"] is None else r["p"] for r in [*own, second]])
        family = f"H1, H2 and H3 | {variant}"
        told = [*own, second] if variant == (PAIR[0] if PAIR[0] in variants else variants[0]) else own
        for row, p_holm in zip(told, adjusted, strict=False):
            row |= {
                "family": family,
                "family_size": len(adjusted),
                "p_holm": None if row["p"] is None else float(p_holm),
            }
    for row in [*judged, second]:
        _judge(row)
    return sorted([*judged, second, *beside, *others], key=lambda r: (r["hypothesis"], r["role"] != "verdict"))


def verdict(lower: float, upper: float, p_holm: float, threshold: float) -> str:
    """One rule for all: supported, not supported or undecided, of "the effect is above the threshold".

    Supported: the 95% interval lies above the threshold and p_holm < 0.05. Not supported: it lies below, be it within
    the margin or beyond its other end. Else, or without an interval, undecided.
    """
    if lower > threshold and p_holm < ALPHA:
        return "supported"
    return "not supported" if upper < threshold else "undecided"


def _judge(row: dict[str, Any]) -> None:
    """Adds verdict and, where there is none yet, its reason."""
    row["verdict"] = "undecided"
    if row["reason"] is not None:
        return
    lower, upper, margin, p_holm = row["lower"], row["upper"], row["margin"], row["p_holm"]
    line = margin
    if row["hypothesis"] == "H3":  # the share is to lie below chance + margin
        line = CHANCE + margin
        row["verdict"] = verdict(-upper, -lower, p_holm, -line)
    else:
        row["verdict"] = verdict(lower, upper, p_holm, line)
    where = f"the 95% interval [{lower:.3g}, {upper:.3g}] lies"
    side = "above" if lower > line else "below" if upper < line else "on both sides of"
    limit = f"{line:g} {row['unit']}" + (" (chance and margin)" if row["hypothesis"] == "H3" else " (the margin)")
    row["reason"] = f"{where} {side} {limit}; p {p_holm:.2g} after Holm's correction"


def _row(hypothesis: str, subject: str, quantity: str, unit: str, **values: Any) -> dict[str, Any]:
    """A row of nulls with these values; beside unless it has a margin."""
    row = dict.fromkeys(HYPOTHESES.columns) | {"hypothesis": hypothesis, "subject": subject, "quantity": quantity}
    row |= {"unit": unit, "role": "secondary", **values}
    row = {k: _known(v) if isinstance(v, float) else v for k, v in row.items()}
    if row["lower"] is None and row["reason"] is None:
        n = row["n_patients"] or 0
        few = f"{n} patients: under {MIN_PATIENTS} there is no interval"
        row["reason"] = few if n < MIN_PATIENTS else "too few patients differ for an interval"
    return row


def _means(part: pd.DataFrame, column: str, seed: int, n_boot: int) -> dict[str, Any]:
    """Mean of a column over images, with its interval over patients and the counts."""
    part = part[part[column].notna()]
    lower, upper = patient_bootstrap(part[[column]].to_numpy(float), part["patient_id"], n_boot, seed=seed)
    effect = float(part[column].mean())
    return _counts(part) | {"effect": effect, "lower": lower[0], "upper": upper[0], "ci_method": CI_METHOD}


def _counts(part: pd.DataFrame) -> dict[str, Any]:
    """n is of one model: the most that any has."""
    sizes = part.groupby("trial_id").size()
    return {"n_trials": len(sizes), "n": int(sizes.max()) if len(sizes) else 0,
            "n_patients": part["patient_id"].nunique()}  # fmt: skip


# H1


def _h1(inputs: Inputs, variant: str, test: pd.DataFrame, n_boot: int) -> Iterator[dict[str, Any]]:
    """Border and corners against their controls on false positives; then regions and fills, edits, maps at the border.

    Judged by exchange alone: a grey shape in a lung may look like an opacity, so that filling the control raises the
    score of PNEUMONIA and the edge seems to speak for it (``benchmarks.calibration`` shows it).
    """
    sweep, fill, seed = inputs.sweep, PATCH_SWAP, inputs.sweep.seed
    told = {
        "role": "verdict", "margin": MARGINS["H1"], "test": "sign-flip of the patients' sums of u", "alternative":
        "greater: border and corners weigh more than the same shapes elsewhere",
    }  # fmt: skip
    what = "drop of the log-odds of PNEUMONIA, false positives, less the mean of the same shape elsewhere"
    quantity = f"exchanging border and corners (mean of both): {what}"
    regions = inputs.regions[inputs.regions["trial_id"].isin(test["trial_id"])]
    wrong = test.loc[test["outcome"] == "FP", ["trial_id", "image_id", "patient_id"]]
    compared = _against_controls(_effects(regions).merge(wrong, on=["trial_id", "image_id"]))
    edges = compared[compared["region"].isin(EDGES) & (compared["fill"] == fill)]
    both = edges.groupby(["trial_id", "image_id", "patient_id"], as_index=False).agg(
        gap=("gap", "mean"), u=("u", "mean"), n=("region", "size")
    )
    both = both[(both["n"] == len(EDGES)) & both["gap"].notna()]
    missing = [r for r in EDGES if sweep.regions is None or r not in sweep.regions.names]
    exchanged = (regions["fill"] == fill).any()
    if missing:
        told["reason"] = f"nothing was exchanged: add {' and '.join(missing)} to regions.names"
    elif both.empty:
        told["reason"] = (
            "there are no false positives" if wrong.empty else "no false positive has a value" if exchanged else
            "nothing was exchanged: validation and test have no readable NORMAL image of another patient"
        )  # fmt: skip
    else:
        told |= _means(both, "gap", seed, n_boot)
        told["p"] = float(sign_flip(both[["u"]].to_numpy(), both["patient_id"], seed=seed)[0])
    yield _row("H1", variant, quantity, "log-odds", **told)

    for (region, one_fill), part in compared.groupby(["region", "fill"], sort=False):
        how = f"exchanging {region}" if one_fill == PATCH_SWAP else f"filling {region} with {one_fill}"
        yield _row("H1", variant, f"{how}: {what}", "log-odds", **_means(part, "gap", seed, n_boot))
    normal = test.loc[test["label"] == 0, ["trial_id", "image_id", "patient_id"]]
    edits = _effects(regions[regions["fill"] == "edit"]).merge(normal, on=["trial_id", "image_id"])
    for edit in Edit.__args__:  # type: ignore[attr-defined]
        part = edits[edits["region"] == edit]
        if len(part):
            rise = _means(part.assign(rise=-part["effect"]), "rise", seed, n_boot)
            yield _row("H1", variant, f"{edit}: rise of the log-odds of PNEUMONIA, NORMAL images", "log-odds", **rise)
    yield from _border_concentration(inputs, variant, test, n_boot)


def _effects(regions: pd.DataFrame) -> pd.DataFrame:
    """effect: how far the log-odds of PNEUMONIA fall; a row that stands for both targets counts once."""
    sign = np.where(regions["target"] == 1, 1.0, -1.0)
    effect = sign * (regions["logit_full_image"].astype(float) - regions["logit_target"].astype(float))
    return regions.assign(effect=effect).drop_duplicates(
        ["trial_id", "image_id", "region", "fill", "control", "draw"]
    )[["trial_id", "image_id", "region", "fill", "control", "draw", "effect"]]  # fmt: skip


def _against_controls(effects: pd.DataFrame) -> pd.DataFrame:
    """gap and u of each (trial, image, region, fill) that has matched draws, as for maps."""
    key = ["trial_id", "image_id", "patient_id", "region", "fill"]
    own = effects.loc[effects["control"] == "none", [*key, "effect"]]
    draws = effects[effects["control"] == "matched"].merge(own, on=key, suffixes=("_draw", ""))
    ahead = draws["effect"] - draws["effect_draw"]
    beaten = np.where(ahead.isna(), np.nan, (ahead > 0) + 0.5 * (ahead == 0)) - 0.5
    return draws.assign(gap=ahead, u=beaten).groupby(key, as_index=False, sort=False)[["gap", "u"]].mean()


def _border_concentration(inputs: Inputs, variant: str, test: pd.DataFrame, n_boot: int) -> Iterator[dict[str, Any]]:
    name, maps = explainer_of(inputs.sweep), _maps(inputs, test)
    border = (maps["concentration"] == "border").astype(float)
    fp, tp = (maps.assign(border=border)[maps["outcome"] == o] for o in ("FP", "TP"))
    if len(fp) and len(tp):
        lower, upper = bootstrap_difference(
            fp[["border"]].to_numpy(), fp["patient_id"], tp[["border"]].to_numpy(), tp["patient_id"], n_boot,
            seed=inputs.sweep.seed,
        )  # fmt: skip
        yield _row(
            "H1", variant, f"share of maps of {name} concentrated on the border, false positives minus true ones",
            "share",
            **_counts(pd.concat([fp, tp])), effect=float(fp["border"].mean() - tp["border"].mean()),
            lower=lower[0], upper=upper[0], ci_method=CI_METHOD,
        )  # fmt: skip


def _maps(inputs: Inputs, test: pd.DataFrame) -> pd.DataFrame:
    """Saliency of the explainer towards PNEUMONIA, beside predictions and patients."""
    maps = inputs.saliency
    maps = maps[maps["target"] == 1]
    return test.merge(
        maps[["trial_id", "image_id", "half_mass_area", "concentration", "lung_share"]], on=["trial_id", "image_id"]
    )


# H3


def _h3(inputs: Inputs, variant: str, test: pd.DataFrame, n_boot: int) -> Iterator[dict[str, Any]]:
    """Share of plausible maps that beat `shifted`; then that of the others, and faithfulness against confidence."""
    sweep, name = inputs.sweep, explainer_of(inputs.sweep)
    setting = f"{name}, {_setting(sweep)}"
    what = f"share that beats `shifted` at p <= {ALPHA:g} in abpc, {{}} of true and false positives ({setting})"
    told = {
        "role": "verdict", "margin": MARGINS["H3"], "test": f"binomial tail of the interval, against {CHANCE:g} and the"
        " margin", "alternative": "less: plausible maps beat the shifted map hardly more often than chance",
    }  # fmt: skip
    maps = _maps(inputs, test[test["outcome"].isin(["TP", "FP"])])
    faith = inputs.faithfulness
    faith = faith[(faith["target"] == 1) & (faith["control"] == "shifted")]
    maps = maps.merge(faith[["trial_id", "image_id", "gap", "p_value"]], on=["trial_id", "image_id"])
    maps = maps[maps["gap"].notna()]
    focused = (maps["half_mass_area"] <= FOCUSED_AREA) | (maps["concentration"] == "border")
    looks_right = (maps["lung_share"] >= IN_LUNGS) & focused
    draws = max(sweep.controls.get("shifted", 0), sweep.sequential.max_draws if sweep.sequential else 0)
    if "shifted" not in sweep.controls or draws < MIN_DRAWS:
        told["reason"] = f"controls.shifted has {sweep.controls.get('shifted', 0)} draws; set {MIN_DRAWS} or more"
    elif len(set(sweep.perturb.orders)) < 2:
        told["reason"] = "perturb.orders lacks one of morf and lerf, so there is no abpc"
    elif maps.empty:
        told["reason"] = "no true or false positive has a map that could be compared"
    elif maps["lung_share"].isna().all():
        told["reason"] = "there are no lung masks: set regions.lungs"
    elif not looks_right.any():
        told["reason"] = "no map is plausible"
    else:
        told |= _share(maps[looks_right], CHANCE + MARGINS["H3"])
    plausible = (
        f"plausible maps (at least {IN_LUNGS:.0%} of the mass in the lungs, half of it in {FOCUSED_AREA:.0%} of the "
        "area or less, or at the border)"
    )
    quantity = what.format(plausible)
    yield _row("H3", variant, quantity, "share", **told)
    if maps["p_value"].notna().any():
        if looks_right.any() and not looks_right.all():
            others = _share(maps[~looks_right & maps["lung_share"].notna()], np.nan)
            yield _row("H3", variant, what.format("implausible maps"), "share", **others | {"p": None})
        yield _row("H3", variant, what.format("all maps"), "share", **_share(maps, np.nan) | {"p": None})
    if len(maps):
        yield _row("H3", variant, f"faithfulness against confidence: rank correlation of the gap to `shifted` in abpc "
                   f"with the log-odds, true and false positives ({setting})", "Spearman's rho",
                   **_rank_correlation(maps, inputs.sweep.seed, n_boot))  # fmt: skip


def _setting(sweep: Sweep) -> str:
    return f"grid {sweep.perturb.grids[0]}, fill {sweep.perturb.fills[0]}, PNEUMONIA, log-odds"


def _share(maps: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Share of p-values at most 0.05, an exact interval, and p that the share is at or above the threshold.

    Korn & Graubard (1998): Clopper-Pearson, the number of images divided by the design effect of patients (and where
    no map differs, the number of patients). A bootstrap knows no doubt about a share of 0.
    """
    maps = maps[maps["p_value"].notna()]
    known = _counts(maps)
    if maps.empty:
        return known
    beats_N = (maps["p_value"] <= ALPHA + 1e-6).to_numpy(float)[:, None]  # float32 of 0.05
    share, n, patients = float(beats_N.mean()), len(maps), known["n_patients"]
    sums_PK, counts_PK = patient_sums(beats_N, *patient_codes(maps["patient_id"]))
    variance = float(((sums_PK - share * counts_PK) ** 2).sum()) / n**2 * patients / max(patients - 1, 1)
    effective = share * (1 - share) / variance if variance > 0 else patients
    if patients > 1:
        effective *= (scipy.stats.t.ppf(0.975, n - 1) / scipy.stats.t.ppf(0.975, patients - 1)) ** 2
    effective = min(effective, n)
    hits = share * effective
    beta = scipy.stats.beta
    lower = beta.ppf(0.025, hits, effective - hits + 1) if hits > 0 else 0.0
    upper = beta.ppf(0.975, hits + 1, effective - hits) if hits < effective else 1.0
    p = float(beta.sf(threshold, hits + 1, effective - hits)) if hits < effective else 1.0
    if patients < MIN_PATIENTS:
        lower = upper = p = np.nan
    return known | {"effect": share, "lower": float(lower), "upper": float(upper), "p": p, "ci_method": SHARE_METHOD}


def _rank_correlation(maps: pd.DataFrame, seed: int, n_boot: int) -> dict[str, Any]:
    """Spearman's rho of gap and |log-odds|, ranks within each trial, patients resampled with the ranks they have."""
    ranks_N2 = np.stack([
        (maps[c].abs() if c == "logit_pneumonia" else maps[c]).groupby(maps["trial_id"]).rank(pct=True) - 0.5
        for c in ("gap", "logit_pneumonia")
    ], axis=1)  # fmt: skip
    x, y = ranks_N2.T
    sums_PK, _ = patient_sums(
        np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1), *patient_codes(maps["patient_id"])
    )
    weights_BP = np.concatenate([np.ones((1, len(sums_PK))), bootstrap_weights(len(sums_PK), n_boot, seed)])
    n, sx, sy, sxx, syy, sxy = (weights_BP @ sums_PK).T
    with np.errstate(invalid="ignore", divide="ignore"):
        rho_B = (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))
    lower, upper = percentile_interval(rho_B[1:, None])
    few = len(sums_PK) < MIN_PATIENTS
    return _counts(maps) | {"effect": float(rho_B[0]), "lower": np.nan if few else lower[0],
                            "upper": np.nan if few else upper[0],
                            "ci_method": "percentile bootstrap over patients"}  # fmt: skip


# H2


def _h2(inputs: Inputs, test: pd.DataFrame, n_boot: int) -> list[dict[str, Any]]:
    """False positive rate of plain less balanced, paired by seed; then other thresholds, calibration, faithfulness."""
    subject = "-".join(PAIR)
    told: dict[str, Any] = {
        "role": "verdict", "margin": MARGINS["H2"], "test": "t of the interval, against 0",
        "alternative": "greater: plain makes more false positives",
    }  # fmt: skip
    quantity = "false positive rate at 0.5, plain less balanced"  # the first of _comparisons
    trials = inputs.trials[inputs.trials["trial_id"].isin(test["trial_id"]) & inputs.trials["variant"].isin(PAIR)]
    by_seed = {
        seed: tuple(part.loc[part["variant"] == v, "trial_id"].tolist() for v in PAIR)
        for seed, part in trials.groupby("seed")
        if set(part["variant"]) == set(PAIR)
    }
    if not by_seed:
        told["reason"] = "it takes the variants plain and balanced, trained with the same seeds"
        return [_row("H2", subject, quantity, "share", **told)]
    told["reason"] = _not_comparable(inputs.sweep, trials, by_seed)
    pairs = [(plain[0], balanced[0]) for plain, balanced in by_seed.values()]
    rows: list[dict[str, Any]] = []
    for name, unit, table, statistic in _comparisons(inputs, test, pairs):
        estimate = _paired(table, statistic, len(pairs), inputs.sweep.seed, n_boot)
        if rows or told["reason"]:
            estimate["p"] = None
        rows.append(_row("H2", subject, name, unit, **({} if rows else told), **estimate))
    return rows


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
    """(quantity, unit, images, statistic) of plain less balanced; the first is what H2 is judged by."""
    wide = test.pivot(index="image_id", columns="trial_id", values="prob_pneumonia")
    wide = wide[[t for pair in pairs for t in pair]].dropna()
    facts = test.drop_duplicates("image_id").set_index("image_id").loc[wide.index, ["label", "patient_id"]]
    # [N, S, 2] float32 like the table: a threshold that is read back gives the same predictions
    prob_NS2 = wide.to_numpy(np.float32).astype(float).reshape(len(wide), len(pairs), 2)
    label_N = facts["label"].to_numpy(np.int64)
    val = inputs.predictions[inputs.predictions["split"] == "val"]
    rules: dict[str, NDArray[Any]] = {"half": np.full((len(pairs), 2), 0.5)}
    chosen = {
        t: thresholds(mine["label"].to_numpy(np.int64), mine["prob_pneumonia"].to_numpy(np.float32).astype(float))
        for t, mine in val[val["prob_pneumonia"].notna()].groupby("trial_id")
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
            yield f"{what} at {names[rule]}, plain less balanced", "share", part, _mean_of(positive_NS, part)
    error_NS = ((prob_NS2 - label_N[:, None, None]) ** 2 * sign).sum(2)
    yield "Brier score, plain less balanced", "squared error", facts, _mean_of(error_NS, facts)
    yield "expected calibration error, plain less balanced", "probability", facts, _ece_of(prob_NS2, label_N, facts)

    faith = inputs.faithfulness
    faith = faith[(faith["target"] == 1) & faith["gap"].notna()]
    control = next(iter(strongest_first(c for c in set(faith["control"]) if c != "none")), None)
    gaps = faith[faith["control"] == control].pivot(index="image_id", columns="trial_id", values="gap")
    if control is not None and {t for pair in pairs for t in pair} <= set(gaps.columns):
        gaps = gaps[[t for pair in pairs for t in pair]].dropna()
        part = facts.reindex(gaps.index)
        gap_NS = (gaps.to_numpy(float).reshape(len(gaps), len(pairs), 2) * sign).sum(2)
        setting = f"{explainer_of(inputs.sweep)}, {_setting(inputs.sweep)}"
        yield (f"mean gap in abpc to {control} ({setting}), all images, plain less balanced", "log-odds", part,
               _mean_of(gap_NS, part))  # fmt: skip


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


def _paired(part: pd.DataFrame, statistic: Statistic, n_seeds: int, seed: int, n_boot: int) -> dict[str, Any]:
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


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)
