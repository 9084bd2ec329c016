"""A finished run made by hand: six phantoms, and numbers of which no two are equal."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml

from cxr_ray.schemas import SHARED, TABLES
from cxr_ray.storage import Store

OUTCOMES = ["TP", "TP", "FP", "TN", "FN", "TN"]
TRIAL = "plain-01234567"
CONTROLS = {"pixel_random": 2, "shifted": 1}
LEVELS = (0.25, 0.5)


def make_run(out, *, orders=("morf", "lerf"), keep_maps=True, null_map=False, given=False, errors=(), data=None,
             rules=("pneumonia",), valid=True, more=False):  # fmt: skip
    """A finished run on six phantoms; each number of `summary` is its own, so that a page cannot mix them up.

    `more`: with regions, randomised models, hypotheses and contrasts of drops, as runs before them lack.
    """
    store = Store(str(out), {"run_id": "feedfeedfeedfeed", "sweep_hash": "0123456789abcdef"})
    trial = "study" if given else TRIAL
    phantom = {"train": 8, "test": 6, "prevalence": 0.5, "marker_correlation": 0.5}
    sweep = {
        "name": "byhand", "seed": 0, "controls": CONTROLS,
        "data": data or {"source": "phantom", "size": 64, "fit": "squash", "phantom": phantom},
        "explain": {"explainers": ["gradcam", "occlusion"], "targets": list(rules), "keep_maps": keep_maps},
        "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": list(LEVELS), "orders": list(orders)},
    }  # fmt: skip
    store.write(yaml.safe_dump(sweep).encode(), "sweep.yaml")
    store.write_json(
        {"name": "byhand", "run_id": "feedfeedfeedfeed", "data_notes": ["Six <phantoms>."]}, "provenance.json"
    )

    n, ids = len(OUTCOMES), [f"{i:016x}" for i in range(len(OUTCOMES))]
    labels = [int(o in ("TP", "FN")) for o in OUTCOMES]
    predicted = [int(o in ("TP", "FP")) for o in OUTCOMES]
    files = [f"test/{('NORMAL', 'PNEUMONIA')[label]}/phantom-{8 + i:06d}.pgm" for i, label in enumerate(labels)]
    image = {"content_hash": "0" * 64, "duplicate_of": None, "split": "test", "kind": "unknown", "width": 64,
             "height": 64, "mode": "L"}  # fmt: skip
    store.write_table("images", [
        {**image, "image_id": i, "path": p, "label": label, "patient_id": f"p{i}"}
        for i, p, label in zip(ids, files, labels, strict=True)
    ])  # fmt: skip
    none = dict.fromkeys(TABLES["trials"].columns)
    store.write_table("trials", [
        {**none, "trial_id": trial, "variant": "plain", "status": "given", "config": "{}"} if given else
        {**none, "trial_id": trial, "variant": "plain", "seed": 3, "status": "completed", "epochs": 4, "best_epoch": 2,
         "val_auroc": 0.87654, "config": '{"train": {"lr": 0.001}}'},
        {**none, "trial_id": "plain-ffffffff", "variant": "plain", "status": "failed", "error": "<b>out of memory</b>"},
    ])  # fmt: skip
    store.write_table("classification", [
        {**dict.fromkeys(TABLES["classification"].columns), "trial_id": trial, "split": "test", "threshold_rule":
         "half", "threshold": 0.5, "accuracy": 0.66667, "accuracy_lower": 0.3111, "accuracy_upper": 0.9222,
         "auroc": 0.71234, "sensitivity": 2 / 3, "specificity": 2 / 3, "n": n, "n_patients": n}
    ])  # fmt: skip
    contrasts = contrast_rows(trial) if more else []
    store.write_table("summary", summary_rows(trial, orders, rules, valid) + contrasts)
    store.write_table("errors", list(errors))
    if more:
        store.write_table("hypotheses", hypothesis_rows())
        _partition(store, "regions", {"trial_id": trial}, _columns("regions", region_rows(ids)))
        _partition(store, "sanity", {"trial_id": trial}, _columns("sanity", sanity_rows(ids)))

    logits = np.where(predicted, 2.0, -2.0)
    _partition(store, "predictions", {"trial_id": trial}, {
        "image_id": ids, "split": ["test"] * n, "label": labels, "prob_pneumonia": 1 / (1 + np.exp(-logits)),
        "logit_pneumonia": logits, "predicted": predicted, "outcome": OUTCOMES,
    })  # fmt: skip
    pairs = sorted({(i, 1 if rule == "pneumonia" else predicted[i]) for rule in rules for i in range(n)})
    for e, explainer in enumerate(["gradcam", "occlusion"]):
        where = {"trial_id": trial, "explainer": explainer}
        bad = [null_map and i == 0 and e == 0 for i, _ in pairs]
        maps = [np.arange(9.0) - 4 * e + i for i, _ in pairs]
        nothing = dict.fromkeys(TABLES["saliency"].columns, [None] * len(pairs))
        _partition(store, "saliency", where, {
            **nothing, "image_id": [ids[i] for i, _ in pairs], "target": [t for _, t in pairs],
            "map": [np.full(9, np.nan) if b else m if keep_maps else None for m, b in zip(maps, bad, strict=True)],
            "map_height": [3] * len(pairs), "map_width": [3] * len(pairs), "tied": [0.25] * len(pairs),
            "degenerate": [False] * len(pairs), "half_mass_area": [None if b else 0.125 for b in bad],
            "components": [None if b else 1 for b in bad],
            "concentration": [None if b else "compact" for b in bad],
        })  # fmt: skip
        _partition(store, "faithfulness", where, _columns("faithfulness", [
            {"image_id": ids[i], "target": t, "grid": "pixel", "fill": "mean", "metric": metric, "level": level,
             "scale": scale, "control": control, "outcome": OUTCOMES[i], "value": None if b else 0.5 + i,
             "gap": None if b or control == "none" else -0.1 * (i + 1),
             "win_rate": None if b or control == "none" else 0.0,
             "n_draws": CONTROLS.get(control, 0), "baseline_valid": valid}
            for (i, t), b in zip(pairs, bad, strict=True) for metric, level in metrics(orders)
            for scale in ("prob", "logodds") for control in ("none", *CONTROLS)
        ]))  # fmt: skip
        _partition(store, "curves", where, curve_columns(ids, pairs, orders, {"none": 1, "shifted": 1}, bad))
    _partition(store, "curves", {"trial_id": trial, "explainer": SHARED},
               curve_columns(ids, pairs, orders, {"pixel_random": 2}, [False] * len(pairs)))  # fmt: skip
    return str(out)


def metrics(orders):
    areas = [m for m, o in (("deletion_auc", {"morf"}), ("insertion_auc", {"lerf"}), ("abpc", {"morf", "lerf"}))
             if o <= set(orders)]  # fmt: skip
    return [(m, None) for m in areas] + ([("drop", level) for level in LEVELS] if "morf" in orders else [])


def summary_rows(trial, orders, rules, valid):
    rows = []
    combinations = itertools.product(
        rules, enumerate(["gradcam", "occlusion"]), enumerate(["all", "TP", "FP", "TN", "FN"]),
        enumerate(metrics(orders)), enumerate(["logodds", "prob"]), enumerate(["none", *CONTROLS]),
    )  # fmt: skip
    for rule, (e, explainer), (b, bucket), (m, (metric, level)), (s, scale), (c, control) in combinations:
        mean = (1 if e else -1) * (1 + e + b / 10 + m / 100 + s / 1000 + c * 3)
        hidden = control == "none" and level is None and not valid
        known = bucket == "all" and not hidden
        rows.append({
            **dict.fromkeys(TABLES["summary"].columns), "trial_id": trial, "explainer": explainer, "target_rule": rule,
            "grid": "pixel", "fill": "mean", "metric": metric, "level": level, "scale": scale, "control": control,
            "bucket": bucket, "contrast": False, "matched": False, "n": 6 if bucket == "all" else 2,
            "n_patients": 5 if bucket == "all" else 1, "n_null": 0, "n_degenerate": 0,
            "draws": CONTROLS.get(control, 0), "mean": None if hidden else mean, "n_boot": 1000,
            "lower": mean - 0.5 if known else None, "upper": mean + 0.25 if known else None,
            "p_holm": None if control == "none" else 0.0421, "win_rate": None if control == "none" else 0.625,
        })  # fmt: skip
    contrast = {**rows[0], "bucket": "TP-FP", "contrast": True, "mean": 99.999}
    return [*rows, contrast]


def contrast_rows(trial):
    """Drop of TP less that of FP: in log-odds above 0, and in probability below it at 0.5 alone."""
    values = {("logodds", 0.25): 1.25, ("logodds", 0.5): 1.5, ("prob", 0.25): 0.125, ("prob", 0.5): -0.064}
    return [
        {**dict.fromkeys(TABLES["summary"].columns), "trial_id": trial, "explainer": "gradcam", "target_rule":
         "pneumonia", "grid": "pixel", "fill": "mean", "metric": "drop", "level": level, "scale": scale, "control":
         "none", "bucket": "TP-FP", "contrast": True, "matched": matched, "cluster": "patient", "n": 60, "n_patients":
         55, "n_null": 0, "n_degenerate": 0, "draws": 0, "mean": mean, "lower": None if matched else mean - 0.05,
         "upper": None if matched else mean + 0.05}
        for (scale, level), mean in values.items() for matched in (False, True)
    ]  # fmt: skip


def region_rows(ids):
    """Effects in log-odds: border 1 to 6 beside controls of 0.5 and 1.5; marker i, in truth 2 i; equalize -0.25."""
    effects = [
        *(("border", "mean", "none", 0, 1.0 + i, i) for i in range(6)),
        *(("border", "mean", "matched", d, 0.5 + d, i) for i in range(6) for d in range(2)),
        *(("marker", "mean", "none", 0, float(i), i) for i in range(6)),
        *(("marker", "counterfactual", "none", 0, 2.0 * i, i) for i in range(6)),
        *(("equalize", "edit", "none", 0, -0.25, i) for i in range(6)),
    ]
    return [
        {"image_id": ids[i], "target": 1, "region": region, "fill": fill, "control": control, "draw": draw,
         "share_of_area": 0.36, "prob_target": 0.25, "logit_target": 2.0 - effect, "prob_full_image": 0.75,
         "logit_full_image": 2.0}
        for region, fill, control, draw, effect, i in effects
    ]  # fmt: skip


def sanity_rows(ids):
    same = {"target": 1, "seed": 0, "grid": "pixel", "fill": "mean", "metric": "abpc", "scale": "logodds",
            "control": "shifted", "n_draws": 1}  # fmt: skip
    return [
        {**same, "explainer": "gradcam", "image_id": ids[i], "mode": "cascade", "layer": layer, "spearman": value + i,
         "spearman_abs": value, "ssim": 0.375, "gap": 0.0625}
        for i in range(2) for layer, value in (("fc", 0.25), ("layer4", -0.25))
    ]  # fmt: skip


def hypothesis_rows():
    same = {**dict.fromkeys(TABLES["hypotheses"].columns), "n_trials": 1, "n": 60, "n_patients": 50}
    judged = {**same, "role": "verdict", "test": "sign-flip", "family": "H1, H2 and H3 | plain", "family_size": 2}
    return [
        {**judged, "hypothesis": "H1", "subject": "plain", "quantity": "removing <border> and corners",
        "unit": "log-odds",
         "effect": 1.75, "lower": 1.25, "upper": 2.25, "margin": 0.5, "p": 0.0011, "p_holm": 0.0022, "verdict":
         "supported", "reason": "the interval lies above 0.5"},
        {**same, "hypothesis": "H1", "subject": "plain", "role": "secondary",
         "quantity": "maps at the border, FP minus TP",
         "unit": "share", "effect": 0.125},
        {**judged, "hypothesis": "H3", "subject": "plain", "quantity": "share that beats shifted", "unit": "share",
         "margin": 0.1, "verdict": "undecided", "reason": "there are no lung masks"},
    ]  # fmt: skip


def curve_columns(ids, pairs, orders, controls, bad):
    return _columns("curves", [
        {"image_id": ids[i], "target": t, "control": control, "draw": draw, "grid": "pixel", "fill": "mean",
         "direction": order, "level": level, "level_done": level, "n_perturbed": int(level * 100),
         "prob_target": None if b else 1 / (1 + np.exp(4 * level - 2)), "logit_target": None if b else 2 - 4 * level}
        for control, draws in controls.items() for draw in range(draws) for order in orders
        for (i, t), b in zip(pairs, bad, strict=True) for level in (0.0, *LEVELS, 1.0)
    ])  # fmt: skip


def _columns(name, rows):
    return {c: [r.get(c) for r in rows] for c in TABLES[name].columns}


def _partition(store, name, where, columns):
    folder = Path(store.path("tables", name, *(f"{k}={v}" for k, v in where.items())))
    folder.mkdir(parents=True)
    pq.write_table(TABLES[name].build(columns), folder / "part-0.parquet")
