"""What a report says, as frames: the tables of a run to the numbers of its figures and tables. Nothing is drawn here.

Intervals are 95%, over patients, by ``stats.patient_bootstrap``: none under 20 patients. Buckets are outcomes at 0.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from cxr_ray.analysis.hypotheses.h3_plausibility import CHANCE
from cxr_ray.analysis.resampling import patient_bootstrap
from cxr_ray.data.sources import all_counterfactuals
from cxr_ray.measure.concentration import CONCENTRATIONS
from cxr_ray.measure.regions import BORDER, CENTRE, CORNER

BUCKETS = ("all", "TP", "FP", "TN", "FN")
STUDY_LEVEL = 0.25  # share of pixels that the study deleted
SHARES = {  # share of a map's mass: share of the image's area
    "border_share": 1 - (1 - 2 * BORDER) ** 2,
    "corner_share": 4 * CORNER**2,
    "centre_share": CENTRE**2,
}
SIGN_AXES = ("target_rule", "fill", "level", "scale", "contrast_of", "matched")


def of_rule(frame: pd.DataFrame, test: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows whose target is the one that ``rule`` selects, with the outcome and the prediction of their image.

    Args:
        frame: image_id and target at least.
        test: the model's predictions on the test split.
        rule: pneumonia or predicted.
    """
    known = test[["image_id", "outcome", "predicted"]].rename(columns={"predicted": "chosen"})
    frame = frame.drop(columns="outcome", errors="ignore").merge(known, on="image_id")
    return frame[frame["target"] == (1 if rule == "pneumonia" else frame["chosen"])].drop(columns="chosen")


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows, a column an attribute; their types are the tables', which pandas does not know."""
    yield from frame.itertuples()


def by_bucket(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(bucket, its rows) for each bucket that has rows."""
    for bucket in BUCKETS:
        part = frame if bucket == "all" else frame[frame["outcome"] == bucket]
        if len(part):
            yield bucket, part


def observations(maps: pd.DataFrame) -> pd.DataFrame:
    """What maps look like, by rule: a row for each explainer and bucket.

    Args:
        maps: rows of ``saliency`` with explainer and outcome, of one model and target rule.

    Returns:
        explainer, bucket, n (maps), not_finite, constant (counts), tied (median share), a count for each of
        CONCENTRATIONS, and the mean share of the positive mass in the border, the corners, the centre and the lungs
        (NaN without a mask).
    """
    rows = []
    for explainer, of_explainer in maps.groupby("explainer", observed=True):
        for bucket, part in by_bucket(of_explainer):
            kinds = part["concentration"].value_counts()
            rows.append(
                {"explainer": explainer, "bucket": bucket, "n": len(part),
                "not_finite": int(part["concentration"].isna().sum()),
                 "constant": int(part["degenerate"].fillna(False).sum()), "tied": part["tied"].median()}
                | {c: int(kinds.get(c, 0)) for c in CONCENTRATIONS}
                | {s: part[s].astype(float).mean() for s in (*SHARES, "lung_share")}
            )  # fmt: skip
    return pd.DataFrame(rows)


def nearest_level(levels: Sequence[float]) -> float:
    """The level nearest to the study's."""
    return min(levels, key=lambda x: abs(x - STUDY_LEVEL))


def lines(judged: pd.DataFrame) -> pd.DataFrame:
    """Verdict rows of ``hypotheses`` with line, what the interval is judged against, and side, 1 where above supports.

    H1 and H2: an effect above the margin. H3: a share below chance and margin.
    """
    third = judged["hypothesis"] == "H3"
    return judged.assign(line=judged["margin"] + CHANCE * third, side=np.where(third, -1, 1))


# The sign


def sign_cells(summary: pd.DataFrame) -> pd.DataFrame:
    """The full factorial of level x fill x target rule x scale x contrast: does the drop of the first bucket exceed the
    second's?

    Args:
        summary: rows of one model, explainer and grid.

    Returns:
        SIGN_AXES (contrast_of: TP-FP or correct-wrong), mean, lower, upper (of the difference of mean drops, control
        none), n, n_patients and sign: 1 or -1 where the interval lies above or below 0, 0 where it holds 0, NaN
        without an interval.
    """
    chosen = summary["contrast"].astype(bool) & (summary["metric"] == "drop") & (summary["control"] == "none")
    cells = summary[chosen & summary["bucket"].isin(["TP-FP", "correct-wrong"])].rename(
        columns={"bucket": "contrast_of"}
    )
    cells = cells.assign(sign=np.select([cells["lower"] > 0, cells["upper"] < 0], [1.0, -1.0], 0.0))
    cells.loc[cells["lower"].isna(), "sign"] = np.nan
    return cells[[*SIGN_AXES, "mean", "lower", "upper", "n", "n_patients", "sign"]].reset_index(drop=True)


def sign_turns(cells: pd.DataFrame) -> pd.DataFrame:
    """Which choice turns the sign: for each axis and two of its values, pairs of cells that differ in it alone.

    Returns:
        axis, a, b (texts), pairs, turned (the means have opposite signs), clearly (so do both whole intervals).
    """
    rows = []
    for axis in SIGN_AXES:
        others = [x for x in SIGN_AXES if x != axis]
        wide = cells.pivot_table(index=others, columns=axis, values=["mean", "sign"], aggfunc="first", dropna=False)
        for a, b in itertools.combinations(sorted(cells[axis].unique()), 2):
            both = wide.dropna(subset=[("mean", a), ("mean", b)])
            rows.append({
                "axis": axis, "a": str(a), "b": str(b), "pairs": len(both),
                "turned": int((both["mean"][a] * both["mean"][b] < 0).sum()),
                "clearly": int((both["sign"][a] * both["sign"][b] < 0).sum()) if "sign" in both else 0,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["axis", "a", "b", "pairs", "turned", "clearly"])


# Regions


def region_effects(regions: pd.DataFrame) -> pd.DataFrame:
    """Effect of changing each region on each image: the score of the untouched image less that of the changed one.

    Above 0: what was removed spoke for the target.

    Args:
        regions: rows of the table, of one model.

    Returns:
        One row for each image_id, target, region, fill: share_of_area, and for scale in logodds, prob: effect_<scale>,
        matched_<scale> (mean over the draws of the matched control; NaN without one), gap_<scale>; draws.
    """
    keys = ["image_id", "target", "region", "fill"]
    frame = regions.assign(
        effect_logodds=regions["logit_full_image"].astype(float) - regions["logit_target"],
        effect_prob=regions["prob_full_image"].astype(float) - regions["prob_target"],
    )
    values = ["effect_logodds", "effect_prob"]
    own = frame[frame["control"] == "none"].set_index(keys)[["share_of_area", *values]]
    matched = frame[frame["control"] != "none"].groupby(keys)
    means = matched[values].mean().rename(columns=lambda c: c.replace("effect", "matched"))
    out = own.join(means).join(matched.size().rename("draws"))
    for scale in ("logodds", "prob"):
        out[f"gap_{scale}"] = out[f"effect_{scale}"] - out[f"matched_{scale}"]
    return out.reset_index()


def region_means(effects: pd.DataFrame, patients: Mapping[str, str], seed: int, n_boot: int = 1000) -> pd.DataFrame:
    """Means of ``region_effects`` by region, fill and bucket, with intervals.

    Args:
        effects: with outcome, of one model and target rule.
        patients: image_id to patient_id.
        seed: of the bootstrap.

    Returns:
        region, fill, bucket, n, n_patients, draws, share_of_area, and mean, lower, upper of each of
        (effect, matched, gap) x (logodds, prob), named <what>_<scale>, <what>_<scale>_lower and _upper.
    """
    measures = [f"{what}_{scale}" for scale in ("logodds", "prob") for what in ("effect", "matched", "gap")]
    rows = []
    for (region, fill), of_region in effects.groupby(["region", "fill"], sort=False):
        for bucket, part in by_bucket(of_region):
            row = {"region": region, "fill": fill, "bucket": bucket, "draws": part["draws"].max()}
            row |= {"share_of_area": part["share_of_area"].mean()}
            rows.append(row | _means(part, measures, patients, seed, n_boot))
    return pd.DataFrame(rows)


def truth(effects: pd.DataFrame) -> pd.DataFrame:
    """On phantoms: each region's effect beside the causal one, that of the image rendered again without it.

    Returns:
        image_id, outcome, region, fill, truth_of (the row that holds the truth: the region, or glyph), effect (of
        filling or exchanging the region, log-odds) and causal (log-odds).
    """
    drawn = effects[effects["fill"] == "counterfactual"].set_index(["image_id", "region"])["effect_logodds"]
    parts = []
    for region, kinds in all_counterfactuals().items():
        mine = effects[(effects["region"] == region) & (effects["fill"] != "counterfactual")]
        for kind in kinds:
            keys = pd.MultiIndex.from_arrays([mine["image_id"], [kind] * len(mine)])
            causal = drawn.reindex(keys).to_numpy()
            parts.append(mine[["image_id", "outcome", "region", "fill"]].assign(
                truth_of=kind, effect=mine["effect_logodds"].astype(float), causal=causal))  # fmt: skip
    return pd.concat(parts).dropna(subset=["effect", "causal"])


def truth_agreement(points: pd.DataFrame) -> pd.DataFrame:
    """Of ``truth``: region, fill, truth_of, n, rho (Spearman, NaN under 3 images), same_sign (share of images)."""
    rows = []
    for (region, truth_of, fill), part in points.groupby(["region", "truth_of", "fill"], sort=False):
        enough = len(part) > 2 and part["effect"].nunique() > 1 and part["causal"].nunique() > 1
        rho = float(spearmanr(part["effect"], part["causal"]).statistic) if enough else np.nan
        same = float((np.sign(part["effect"]) == np.sign(part["causal"])).mean())
        rows.append({"region": region, "truth_of": truth_of, "fill": fill, "n": len(part), "rho": rho,
                     "same_sign": same})  # fmt: skip
    return pd.DataFrame(rows)


# Sanity and variants


def sanity_means(sanity: pd.DataFrame, own: pd.Series, patients: Mapping[str, str], seed: int) -> pd.DataFrame:
    """How like the maps of a randomised model are to the model's own, and whether they do as well on it.

    Args:
        sanity: rows of one model and target rule.
        own: gap of the model's own map, by (explainer, image_id, control), in the metric, grid, fill and scale of
            ``sanity``.
        patients, seed: as for ``region_means``.

    Returns:
        explainer, mode, layer, control, n, n_patients, and mean, lower, upper of spearman, spearman_abs, ssim, gap and
        own_gap (of the same images).
    """
    keys = pd.MultiIndex.from_frame(sanity[["explainer", "image_id", "control"]])
    sanity = sanity.assign(own_gap=own.reindex(keys).to_numpy(float))
    rows = []
    by = ["explainer", "mode", "layer", "control"]
    for (explainer, mode, layer, control), part in sanity.groupby(by, sort=False, dropna=False):
        row = {"explainer": explainer, "mode": mode, "layer": layer, "control": control}
        measures = ["spearman", "spearman_abs", "ssim", "gap", "own_gap"]
        rows.append(row | _means(part, measures, patients, seed, 1000))
    return pd.DataFrame(rows)


def by_variant(models: pd.DataFrame) -> pd.DataFrame:
    """What seeds do, and what variants do: ``agreement.accuracy_and_gaps`` by variant and explainer.

    Returns:
        variant, explainer, control, models, seeds, and for accuracy, auroc and gap: mean, _low and _high over models.
    """
    rows = []
    for (variant, explainer, control), part in models.groupby(["variant", "explainer", "control"], sort=False):
        seeds = ", ".join(str(int(s)) for s in sorted(part["seed"].dropna().unique()))
        row = {"variant": variant, "explainer": explainer, "control": control, "models": len(part), "seeds": seeds}
        for m in ("accuracy", "auroc", "gap"):
            row |= {m: part[m].mean(), f"{m}_low": part[m].min(), f"{m}_high": part[m].max()}
        rows.append(row)
    return pd.DataFrame(rows)


def _means(
    part: pd.DataFrame, measures: Sequence[str], patients: Mapping[str, str], seed: int, n_boot: int
) -> dict[str, float | int]:
    values = part[list(measures)].to_numpy(float)
    whose = part["image_id"].map(patients).to_numpy(object)
    lower, upper = patient_bootstrap(values, whose, n_boot, seed=seed)
    found: dict[str, float | int] = {"n": len(part), "n_patients": len(set(whose))}
    for k, name in enumerate(measures):
        known = values[~np.isnan(values[:, k]), k]
        found |= {name: known.mean() if len(known) else np.nan, f"{name}_lower": lower[k], f"{name}_upper": upper[k]}
    return found
