"""H3, plausible but unfaithful: maps that lie on the lungs do not beat other patients' maps, or themselves elsewhere.

A map is plausible where its lung enrichment is above 1: the lungs hold more of its mass than of the image. It is judged
by the win rate, not by the share of images whose own test is clear: that share measures the power of the draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.crossed import crossed
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import ALPHA, NOT_APPLICABLE, Margin, verdict
from cxr_ray.analysis.hypotheses.rows import Row, counts, means, of_models, row
from cxr_ray.analysis.resampling import (
    MIN_PATIENTS,
    Floats,
    patient_codes,
    patient_sums,
    percentile_interval,
    resampled,
)
from cxr_ray.analysis.shares import SHARE_METHOD, patient_share
from cxr_ray.measure.lung_enrichment import MASKS

MARGIN = Margin.line(0.6)  # win rate; chance is 0.5
CONTROLS = ("other_image", "shifted")
ENRICHED = 1.0  # a plausible map's lung enrichment is above it
MIN_MAPS = 20  # plausible ones, and others
P_METHOD = "above the line the larger p of both controls, below it twice the p of the smaller win rate"


@dataclass(frozen=True)
class _Writer:
    """Makes the rows of one variant."""

    variant: str
    setting: str
    seed: int
    n_boot: int

    def win_rate(self, over: str, of: str, **values: Any) -> Row:
        quantity = f"win rate over {over}, {of} of true and false positives ({self.setting})"
        return row("H3", self.variant, quantity, "share", **values)

    def correlation(self, quantity: str, maps: pd.DataFrame, a: str, b: str) -> Row:
        found = _rank_correlation(maps, a, b, self.seed, self.n_boot)
        return row("H3", self.variant, f"{quantity} ({self.setting})", "Spearman's rho", **found)


def plausibility(inputs: Inputs, test: pd.DataFrame, variant: str, n_boot: int) -> Iterator[Row]:
    """Win rate of plausible maps over the harder of two controls; then what stands beside it."""
    seed = inputs.sweep.seed
    writer = _Writer(variant, f"{inputs.primary.explainer}, {inputs.setting}", seed, n_boot)
    maps = _compared(inputs, test[test["outcome"].isin(["TP", "FP"])])
    plausible, others = maps[maps["given"] > ENRICHED], maps[maps["given"] <= ENRICHED]
    words = f"plausible maps (lung enrichment above {ENRICHED:g})"
    if (reason := _reason(inputs, maps, plausible, others)) is not None:
        yield writer.win_rate(" and ".join(CONTROLS), words, **counts(plausible), **reason)
    else:
        harder, found = _harder(plausible, seed, n_boot)
        yield writer.win_rate(f"{harder}, the harder of {' and '.join(CONTROLS)}", words, **found)
        beside = next(c for c in CONTROLS if c != harder)
        yield writer.win_rate(beside, words, **_win_rate(plausible, beside, seed, n_boot))
        for mask in MASKS[1:]:
            yield _other_mask(maps[maps[mask] > ENRICHED], mask, writer)
    for control in CONTROLS:
        if maps[control].notna().any():
            yield from _beside(maps, plausible, others, control, writer)
    if maps["shifted"].notna().any():
        name = "faithfulness against confidence: rank correlation of the win rate over shifted with |log-odds|"
        yield writer.correlation(name, maps.assign(size=maps["logit_pneumonia"].abs()), "shifted", "size")


def _compared(inputs: Inputs, test: pd.DataFrame) -> pd.DataFrame:
    """Maps of the primary explainer towards PNEUMONIA: win rate and p by control, lung enrichment by mask."""
    key = ["trial_id", "image_id"]
    maps = inputs.maps(test)
    faith = inputs.faithfulness[inputs.faithfulness["target"] == 1]
    for control in CONTROLS:
        of_control = faith.loc[faith["control"] == control, [*key, "win_rate", "p_value"]]
        names = {"win_rate": control, "p_value": f"p {control}"}
        maps = maps.merge(of_control.rename(columns=names), on=key, how="left")
    lungs = inputs.lungs[(inputs.lungs["target"] == 1) & (inputs.lungs["control"] == "none")]
    for mask in MASKS:
        of_mask = lungs.loc[lungs["mask"] == mask, [*key, "enrichment"]]
        maps = maps.merge(of_mask.rename(columns={"enrichment": mask}), on=key, how="left")
    return maps


def _reason(inputs: Inputs, maps: pd.DataFrame, plausible: pd.DataFrame, others: pd.DataFrame) -> Row | None:
    """Why H3 is not judged, if so."""
    missing = [c for c in CONTROLS if c not in inputs.sweep.controls]
    if missing:
        return {"reason": f"add {' and '.join(missing)} to controls", "verdict": NOT_APPLICABLE}
    if inputs.lungs.empty:
        return {"reason": "there are no lung masks: set regions.lungs", "verdict": NOT_APPLICABLE}
    if maps.empty:
        return {"reason": "no true or false positive has a map"}
    few = min((counts(part)["n"], name) for part, name in ((plausible, "plausible"), (others, "implausible")))
    if few[0] < MIN_MAPS:
        return {"reason": f"{few[0]} maps are {few[1]}; it takes {MIN_MAPS} or more of either kind"}
    if any(plausible[c].isna().all() for c in CONTROLS):
        return {"reason": "no plausible map was compared with both controls"}
    return None


def _harder(plausible: pd.DataFrame, seed: int, n_boot: int) -> tuple[str, Row]:
    """The control with the smaller win rate, and the row of it."""
    return _chosen({control: _win_rate(plausible, control, seed, n_boot, MARGIN) for control in CONTROLS})


def _chosen(found: dict[str, Row]) -> tuple[str, Row]:
    """The control with the smaller win rate, and its row with a p that holds for the choice.

    That both win rates lie above the line takes that both tests reject (intersection-union, Berger 1982); that one lies
    below takes Bonferroni's correction for two.
    """
    harder = min(found, key=lambda c: (found[c]["effect"], c))
    p_C = np.array([row.get("p", np.nan) for row in found.values()], dtype=float)
    twice = np.minimum(1.0, 2 * found[harder].get("p", np.nan))
    p = twice if found[harder]["effect"] < MARGIN.low else np.max(p_C)
    return harder, found[harder] | {"p": float(p), "test": f"{found[harder].get('test')}; {P_METHOD}"}


def _win_rate(maps: pd.DataFrame, control: str, seed: int, n_boot: int, margin: Margin | None = None) -> Row:
    """Mean win rate. Where hardly a map differs, as at a win rate of 1, its interval is that of a share.

    A bootstrap of values that agree knows no doubt.
    """
    found = means(maps, control, seed, n_boot, margin)
    known = maps[maps[control].notna()]
    if found["n_trials"] == 1 and found["n_patients"] >= MIN_PATIENTS and not found["upper"] - found["lower"] > 0:
        share = patient_share(known[control], known["patient_id"])
        found |= {"lower": share.lower, "upper": share.upper, "lower_90": np.nan, "upper_90": np.nan}
        found |= {"ci_method": SHARE_METHOD}
    return found


def _other_mask(plausible: pd.DataFrame, mask: str, writer: _Writer) -> Row:
    """The judged quantity with dilated or eroded masks, and what the rule would say of it."""
    words = f"plausible maps by {mask} lung masks"
    if any(plausible[c].isna().all() for c in CONTROLS):
        return writer.win_rate("both", words, reason="no map is plausible")
    harder, found = _harder(plausible, writer.seed, writer.n_boot)
    low, high, low_90, high_90 = (found.get(k, np.nan) for k in ("lower", "upper", "lower_90", "upper_90"))
    said = verdict(MARGIN, (low, high), (low_90, high_90), found["p"])
    found = {k: v for k, v in found.items() if k not in ("p", "test", "alternative")}
    note = f"by the rule of the verdict, without Holm's correction: {said}"
    return writer.win_rate(f"{harder}, the harder of both", words, **found, reason=note)


def _beside(
    maps: pd.DataFrame, plausible: pd.DataFrame, others: pd.DataFrame, control: str, writer: _Writer
) -> Iterator[Row]:
    """All and implausible maps, images whose own test is clear, and whether plausible maps are the faithful ones."""
    seed, n_boot = writer.seed, writer.n_boot
    yield writer.win_rate(control, "all maps", **_win_rate(maps, control, seed, n_boot))
    if others[control].notna().any():
        yield writer.win_rate(control, "implausible maps", **_win_rate(others, control, seed, n_boot))
    known = plausible[plausible[f"p {control}"].notna()]
    if len(known):
        name = f"share of plausible maps whose own test is clear (p <= {ALPHA:g}) over {control} ({writer.setting})"
        yield row("H3", writer.variant, name, "share", **_clear(known, control, seed, n_boot))
    known = maps[maps["given"].notna() & maps[control].notna()]
    if len(known):
        name = f"are plausible maps the faithful ones: rank correlation of enrichment with the win rate over {control}"
        yield writer.correlation(name, known, "given", control)


def _clear(maps: pd.DataFrame, control: str, seed: int, n_boot: int) -> Row:
    """Share of images with p of at most ALPHA. It grows with the number of draws, and so is not judged."""
    clear = maps[f"p {control}"] <= ALPHA + 1e-6  # float32 of 0.05
    if maps["trial_id"].nunique() > 1:
        return means(maps.assign(clear=clear.astype(float)), "clear", seed, n_boot)
    share = patient_share(clear.to_numpy(bool), maps["patient_id"])
    interval = {"lower": share.lower, "upper": share.upper, "ci_method": SHARE_METHOD}
    return counts(maps) | {"effect": share.value, **interval}


def _rank_correlation(maps: pd.DataFrame, a: str, b: str, seed: int, n_boot: int) -> Row:
    """Spearman's rho, mean over models; patients are resampled with the ranks that they have, and so are models."""
    maps = maps[maps[a].notna() & maps[b].notna()]
    trial_ids, codes_N = sorted(set(maps["trial_id"])), patient_codes(maps["patient_id"])
    n_patients = codes_N[1]
    x, y = (maps[c].groupby(maps["trial_id"]).rank(pct=True).to_numpy(float) - 0.5 for c in (a, b))
    of_trial_NS = np.stack([(maps["trial_id"] == t).to_numpy(float) for t in trial_ids], 1)
    moments_NK = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
    sums_SPK = [patient_sums(moments_NK * one_N[:, None], *codes_N)[0] for one_N in of_trial_NS.T]

    def statistic(weights_BP: Floats) -> Floats:
        rho = []
        for sums_PK in sums_SPK:
            n, sx, sy, sxx, syy, sxy = (weights_BP @ sums_PK).T
            square = np.maximum(n * sxx - sx**2, 0) * np.maximum(n * syy - sy**2, 0)
            varies = square > 1e-12 * n**4  # else there is no correlation
            rho.append(np.where(varies, (n * sxy - sx * sy) / np.sqrt(np.where(varies, square, 1.0)), 0.0))
        return np.stack(rho, 1)

    effect = float(statistic(np.ones((1, n_patients))).mean())
    if n_patients < MIN_PATIENTS:
        return counts(maps) | {"effect": effect}
    if len(trial_ids) > 1:
        return counts(maps) | of_models(crossed(statistic, n_patients, len(trial_ids), seed, n_boot))
    lower, upper = percentile_interval(resampled(statistic, n_patients, n_boot, seed))
    interval = {"lower": lower[0], "upper": upper[0], "ci_method": "percentile bootstrap over patients"}
    return counts(maps) | {"effect": effect, **interval}
