"""A finished run made by hand: six phantoms, and numbers of which no two are equal."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from cxr_ray.analysis import primary, statistics
from cxr_ray.measure.localisation import LOCALISATION
from cxr_ray.measure.metrics import has_areas
from cxr_ray.results import open_run
from cxr_ray.schemas import SHARED, TABLES
from cxr_ray.storage import Store

OUTCOMES = ["TP", "TP", "FP", "TN", "FN", "TN"]
IDS = [f"{i:016x}" for i in range(len(OUTCOMES))]
LABELS = [int(o in ("TP", "FN")) for o in OUTCOMES]
PREDICTED = [int(o in ("TP", "FP")) for o in OUTCOMES]
TRIAL = "plain-01234567"
EXPLAINERS = ("gradcam", "occlusion")
CONTROLS = {"pixel_random": 2, "shifted": 1}
STRONG = {"other_image": 2, "mean_map": 1}
LEVELS = (0.25, 0.5, 0.75)
PHANTOMS = {
    "source": "phantom",
    "size": 64,
    "fit": "squash",
    "phantom": {"train": 8, "test": 6, "prevalence": 0.5, "marker_correlation": 0.5},
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How a run differs from the plain one.

    Attributes:
        orders, levels: directions and levels that were measured.
        keep_maps: explain.keep_maps.
        null_map: the first map of gradcam is not finite.
        given: the model is a given checkpoint.
        errors: rows of the table.
        data: the sweep's section.
        rules: target rules.
        valid: filled images are valid baselines.
        val_valid: validation images, of 20, whose filled image is a valid baseline; None: not measured.
        strong: with strong controls.
        more: with regions, randomised models, hypotheses and contrasts of drops.
    """

    orders: Sequence[str] = ("morf", "lerf")
    levels: Sequence[float] = LEVELS
    keep_maps: bool = True
    null_map: bool = False
    given: bool = False
    errors: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] | None = None
    rules: Sequence[str] = ("pneumonia",)
    valid: bool = True
    val_valid: int | None = None
    strong: bool = False
    more: bool = False

    @property
    def trial(self) -> str:
        """The explained model."""
        return "study" if self.given else TRIAL

    @property
    def controls(self) -> dict[str, int]:
        """Draws of each control."""
        return CONTROLS | (STRONG if self.strong else {})

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(image, target) that are explained."""
        return sorted({(i, 1 if rule == "pneumonia" else PREDICTED[i]) for rule in self.rules for i in range(6)})

    @property
    def metrics(self) -> list[tuple[str, float | None]]:
        """(metric, level) that the directions give."""
        needs = (("deletion_auc", {"morf"}), ("insertion_auc", {"lerf"}), ("abpc", {"morf", "lerf"}))
        have = set(self.orders) if has_areas(self.levels) else set()
        areas: list[tuple[str, float | None]] = [(m, None) for m, needed in needs if needed <= have]
        return areas + ([("drop", level) for level in self.levels] if "morf" in self.orders else [])


def make_run(out: Path | str, **options: Any) -> str:
    """A finished run on six phantoms; each number of `summary` is its own, so that a page cannot mix them up.

    ``options``: those of ``Options``.
    """
    o = Options(**options)
    store = Store(str(out), {"run_id": "feedfeedfeedfeed", "sweep_hash": "0123456789abcdef"})
    sweep = {
        "name": "byhand",
        "seed": 0,
        "controls": o.controls,
        "data": o.data or PHANTOMS,
        "explain": {"explainers": list(EXPLAINERS), "targets": list(o.rules), "keep_maps": o.keep_maps},
        "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": list(o.levels), "orders": list(o.orders)},
    }
    store.write(yaml.safe_dump(sweep).encode(), "sweep.yaml")
    notes = {"name": "byhand", "run_id": "feedfeedfeedfeed", "data_notes": ["Six <phantoms>."]}
    store.write_json(notes, "provenance.json")
    settings = primary.resolve(sweep)
    if o.val_valid is not None:
        baselines = baseline_rows_of(o)
        store.write_table("baselines", baselines)
        settings = primary.with_baselines(settings, sweep, baselines)
    store.write(settings.to_json().encode(), "primary.json")
    store.write_table("images", image_rows())
    store.write_table("trials", trial_rows(o))
    store.write_table("classification", [classification_row(o.trial)])
    store.write_table("summary", summary_rows(o) + (contrast_rows(o.trial) if o.more else []))
    store.write_table("errors", list(o.errors))
    store.write_table("hypotheses", hypothesis_rows() if o.more else [])
    store.write_table("verdicts", verdict_rows(o.trial) if o.more else [])
    write_images(store, o)
    measured = statistics.Measured(open_run(out))
    for name, rows_of in statistics.DERIVED.items():
        store.write_table(name, rows_of(measured))
    for name in TABLES:
        if not store.exists("tables", name):
            store.write_table(name, [])
    return str(out)


def write_images(store: Store, o: Options) -> None:
    """The tables that hold a row for each image."""
    of_trial = {"trial_id": o.trial}
    _partition(store, "predictions", of_trial, prediction_columns())
    _partition(store, "regions", of_trial, _columns("regions", region_rows() if o.more else []))
    _partition(store, "sanity", of_trial, _columns("sanity", sanity_rows(o) if o.more else []))
    _partition(store, "stability", of_trial, _columns("stability", stability_rows() if o.more else []))
    for explainer in EXPLAINERS:
        where = {**of_trial, "explainer": explainer}
        bad = [o.null_map and i == 0 and explainer == "gradcam" for i, _ in o.pairs]
        _partition(store, "saliency", where, saliency_columns(o, explainer, bad))
        _partition(store, "lungs", where, _columns("lungs", lung_rows(o) if o.more else []))
        localisation = localisation_rows(o) if o.more else []
        _partition(store, "localisation", where, _columns("localisation", localisation))
        _partition(store, "faithfulness", where, _columns("faithfulness", faithfulness_rows(o, bad)))
        _partition(store, "curves", where, _columns("curves", curve_rows(o, {"none": 1, "shifted": 1}, bad)))
    shared = curve_rows(o, {"pixel_random": 2}, [False] * len(o.pairs))
    _partition(store, "curves", {**of_trial, "explainer": SHARED}, _columns("curves", shared))


def image_rows() -> list[Row]:
    same = {"content_hash": "0" * 64, "split": "test", "kind": "unknown", "width": 64, "height": 64, "mode": "L"}
    folders = ("NORMAL", "PNEUMONIA")
    return [
        _row(
            "images",
            **same,
            image_id=IDS[i],
            label=label,
            patient_id=f"p{i}",
            path=f"test/{folders[label]}/phantom-{8 + i:06d}.pgm",
        )
        for i, label in enumerate(LABELS)
    ]


def baseline_rows_of(o: Options) -> list[Row]:
    """Of the one fill, over 20 validation images of as many patients."""
    assert o.val_valid is not None
    share = {"share": o.val_valid / 20, "lower": o.val_valid / 25, "upper": o.val_valid / 22, "mean_drop": 0.3125}
    same = {"trial_id": o.trial, "fill": "mean", "n": 20, "n_patients": 20, "n_valid": o.val_valid, **share}
    return [_row("baselines", **same, target_rule=rule, method="by hand", valid=o.val_valid >= 19) for rule in o.rules]


def trial_rows(o: Options) -> list[Row]:
    """The explained model and one that failed."""
    trained = {
        "seed": 3,
        "status": "completed",
        "epochs": 4,
        "best_epoch": 2,
        "val_auroc": 0.87654,
        "config": '{"train": {"lr": 0.001}}',
    }
    explained = {"status": "given", "config": "{}"} if o.given else trained
    failed = {"trial_id": "plain-ffffffff", "status": "failed", "error": "<b>out of memory</b>"}
    return [
        _row("trials", trial_id=o.trial, variant="plain", **explained),
        _row("trials", variant="plain", **failed),
    ]


def classification_row(trial: str) -> Row:
    return _row(
        "classification",
        trial_id=trial,
        split="test",
        threshold_rule="half",
        threshold=0.5,
        accuracy=0.66667,
        accuracy_lower=0.3111,
        accuracy_upper=0.9222,
        auroc=0.71234,
        sensitivity=2 / 3,
        specificity=2 / 3,
        n=6,
        n_patients=6,
        **{cell.lower(): OUTCOMES.count(cell) for cell in ("TP", "FP", "TN", "FN")},
    )


def prediction_columns() -> dict[str, Any]:
    logits = np.where(PREDICTED, 2.0, -2.0)
    return {
        "image_id": IDS,
        "split": ["test"] * len(IDS),
        "label": LABELS,
        "prob_pneumonia": 1 / (1 + np.exp(-logits)),
        "logit_pneumonia": logits,
        "predicted": PREDICTED,
        "outcome": OUTCOMES,
    }


def saliency_columns(o: Options, explainer: str, bad: Sequence[bool]) -> dict[str, Any]:
    """Maps of 3 x 3; those of occlusion hold negative values."""
    n = len(o.pairs)
    maps = [np.arange(9.0) - 4 * EXPLAINERS.index(explainer) + i for i, _ in o.pairs]
    known = {"half_mass_area": 0.125, "components": 1, "concentration": "compact"}
    return {
        **dict.fromkeys(TABLES["saliency"].columns, [None] * n),
        "image_id": [IDS[i] for i, _ in o.pairs],
        "target": [target for _, target in o.pairs],
        "map": [np.full(9, np.nan) if b else m if o.keep_maps else None for m, b in zip(maps, bad, strict=True)],
        "map_height": [3] * n,
        "map_width": [3] * n,
        "tied": [0.25] * n,
        "degenerate": [False] * n,
        **{name: [None if b else value for b in bad] for name, value in known.items()},
    }


def lung_rows(o: Options) -> list[Row]:
    """Maps put 30% of their mass into lungs of 24%, and their controls 18%."""
    shares = {"none": 0.3, "shifted": 0.18}
    return [
        {
            "image_id": IDS[i],
            "target": target,
            "control": control,
            "mask": mask,
            "draws": 1,
            "share": share,
            "area": area,
            "enrichment": share / area,
        }
        for i, target in o.pairs
        for control, share in shares.items()
        for mask, area in (("given", 0.24), ("dilated", 0.32), ("eroded", 0.16))
    ]


def localisation_rows(o: Options) -> list[Row]:
    """Images with PNEUMONIA have an expert truth, of 5% of the image; advantages and win rates differ by image."""
    return [
        {
            "image_id": IDS[i],
            "target": target,
            "metric": metric,
            "control": control,
            "outcome": OUTCOMES[i],
            "area": 0.05,
            "value": float(i == 0) if metric == "pointing" else 0.375 + i / 16,
            "control_mean": None if control == "none" else 0.25,
            "gap": None if control == "none" else 0.125 + i / 16,
            "win_rate": None if control == "none" else 0.75,
            "n_draws": o.controls.get(control, 0),
        }
        for i, target in o.pairs
        if LABELS[i]
        for metric in LOCALISATION
        for control in ("none", *o.controls)
    ]


def faithfulness_rows(o: Options, bad: Sequence[bool]) -> list[Row]:
    return [
        {
            "image_id": IDS[i],
            "target": target,
            "grid": "pixel",
            "fill": "mean",
            "metric": metric,
            "level": level,
            "scale": scale,
            "control": control,
            "outcome": OUTCOMES[i],
            "value": None if b else 0.5 + i,
            "gap": None if b or control == "none" else -0.1 * (i + 1),
            "win_rate": None if b or control == "none" else 0.0,
            "n_draws": o.controls.get(control, 0),
            "baseline_valid": o.valid,
        }
        for (i, target), b in zip(o.pairs, bad, strict=True)
        for metric, level in o.metrics
        for scale in ("prob", "logodds")
        for control in ("none", *o.controls)
    ]


def curve_rows(o: Options, controls: Mapping[str, int], bad: Sequence[bool]) -> list[Row]:
    return [
        {
            "image_id": IDS[i],
            "target": target,
            "control": control,
            "draw": draw,
            "grid": "pixel",
            "fill": "mean",
            "direction": direction,
            "level": level,
            "level_done": level,
            "n_perturbed": int(level * 100),
            "prob_target": None if b else 1 / (1 + np.exp(4 * level - 2)),
            "logit_target": None if b else 2 - 4 * level,
        }
        for control, draws in controls.items()
        for draw in range(draws)
        for direction in o.orders
        for (i, target), b in zip(o.pairs, bad, strict=True)
        for level in (0.0, *o.levels, 1.0)
    ]


def summary_rows(o: Options) -> list[Row]:
    """Means that tell their place: explainer, bucket, metric, scale and control each add a number of their own."""
    combinations = itertools.product(
        o.rules,
        enumerate(EXPLAINERS),
        enumerate(["all", "TP", "FP", "TN", "FN"]),
        enumerate(o.metrics),
        enumerate(["logodds", "prob"]),
        enumerate(["none", *o.controls]),
    )
    rows = []
    for rule, (e, explainer), (b, bucket), (m, (metric, level)), (s, scale), (c, control) in combinations:
        mean = (1 if e else -1) * (1 + e + b / 10 + m / 100 + s / 1000 + c * 3)
        hidden = control == "none" and level is None and not o.valid
        interval = bucket == "all" and not hidden
        compared = comparison(explainer, control, interval) if control != "none" else {}
        compared |= {"control_mean": c + b / 8} if control != "none" else {}
        n = 6 if bucket == "all" else 2
        rows.append(
            _row(
                "summary",
                trial_id=o.trial,
                explainer=explainer,
                target_rule=rule,
                grid="pixel",
                fill="mean",
                metric=metric,
                level=level,
                scale=scale,
                control=control,
                bucket=bucket,
                contrast=False,
                matched=False,
                cluster="patient",
                n=n,
                n_patients=5 if bucket == "all" else 1,
                n_null=0,
                n_degenerate=0,
                draws=o.controls.get(control, 0),
                mean=None if hidden else mean,
                n_boot=1000,
                lower=mean - 0.5 if interval else None,
                upper=mean + 0.25 if interval else None,
                n_valid_baseline=n if o.valid else 0,
                n_negative=0,
                **compared,
            )
        )
    contrast = {**rows[0], "bucket": "TP-FP", "contrast": True, "mean": 99.999}
    return [*rows, contrast]


def comparison(explainer: str, control: str, interval: bool) -> Row:
    """Win rate and tests. Means of occlusion rise from control to control, those of gradcam fall."""
    hardest = {"gradcam": "mean_map", "occlusion": "other_image"}[explainer]
    known = {"p_holm": 0.0421, "win_rate": 0.625, "hardest": control == hardest}
    if not interval:
        return known
    beaten = "yes" if explainer == "occlusion" else "differs"
    mean_p_holm = 0.0312 if explainer == "occlusion" else 1.0
    return {**known, "win_lower": 0.524, "win_upper": 0.726, "mean_p_holm": mean_p_holm, "beaten": beaten}


def contrast_rows(trial: str) -> list[Row]:
    """Drop of TP minus that of FP: in log-odds above 0, and in probability below it at 0.5 alone."""
    values = {("logodds", 0.25): 1.25, ("logodds", 0.5): 1.5, ("prob", 0.25): 0.125, ("prob", 0.5): -0.064}
    same = {
        "trial_id": trial,
        "explainer": "gradcam",
        "target_rule": "pneumonia",
        "grid": "pixel",
        "fill": "mean",
        "metric": "drop",
        "control": "none",
        "bucket": "TP-FP",
        "contrast": True,
        "cluster": "patient",
        "n": 60,
        "n_patients": 55,
        "n_null": 0,
        "n_degenerate": 0,
        "draws": 0,
    }
    return [
        _row(
            "summary",
            **same,
            scale=scale,
            level=level,
            matched=matched,
            mean=mean,
            lower=None if matched else mean - 0.05,
            upper=None if matched else mean + 0.05,
        )
        for (scale, level), mean in values.items()
        for matched in (False, True)
    ]


def region_rows() -> list[Row]:
    """Effects in log-odds: border 1 to 6, its controls 0.5 and 1.5; marker i, in truth 2 i; equalize -0.25."""
    effects = [
        *(("border", "mean", "none", 0, 1.0 + i, i) for i in range(6)),
        *(("border", "mean", "matched", d, 0.5 + d, i) for i in range(6) for d in range(2)),
        *(("marker", "mean", "none", 0, float(i), i) for i in range(6)),
        *(("marker", "counterfactual", "none", 0, 2.0 * i, i) for i in range(6)),
        *(("equalize", "edit", "none", 0, -0.25, i) for i in range(6)),
    ]
    return [
        {
            "image_id": IDS[i],
            "target": 1,
            "region": region,
            "fill": fill,
            "control": control,
            "draw": draw,
            "share_of_area": 0.36,
            "prob_target": 0.25,
            "logit_target": 2.0 - effect,
            "prob_full_image": 0.75,
            "logit_full_image": 2.0,
        }
        for region, fill, control, draw, effect, i in effects
    ]


def sanity_rows(o: Options) -> list[Row]:
    same = {
        "explainer": "gradcam",
        "target": 1,
        "seed": 0,
        "grid": "pixel",
        "fill": "mean",
        **({"metric": "abpc", "level": None} if has_areas(o.levels) else {"metric": "drop", "level": 0.25}),
        "scale": "logodds",
        "control": "shifted",
        "n_draws": 1,
        "mode": "cascade",
        "ssim": 0.375,
        "gap": 0.0625,
    }
    return [
        {**same, "image_id": IDS[i], "layer": layer, "spearman": value + i, "spearman_abs": value}
        for i in range(2)
        for layer, value in (("fc", 0.25), ("layer4", -0.25))
    ]


def stability_rows() -> list[Row]:
    """Two images of one explainer: two noisy copies, a shift, squares, and one control of these."""
    same = _row("stability", explainer="gradcam", target=1)
    found = (
        (
            "noise",
            0.02,
            "none",
            0,
            {"sensitivity": 0.125, "spearman": 0.9375, "ssim": 0.84375, "logit_change": -0.4375},
        ),
        ("noise", 0.02, "none", 1, {"sensitivity": 0.1875, "spearman": 0.90625, "ssim": 0.78125, "logit_change": 0.5}),
        ("shift", 0.04, "none", 0, {"spearman": 0.71875, "ssim": 0.65625, "logit_change": 0.0625}),
        ("square", None, "none", 0, {"infidelity": 1.375, "unexplained": 0.34375}),
        ("none", None, "shifted", 0, {"sensitivity": 1.15625, "spearman": 0.28125, "ssim": 0.21875}),
        ("square", None, "shifted", 0, {"infidelity": 3.375, "unexplained": 0.96875}),
    )
    return [
        {**same, "image_id": IDS[i], "perturbation": kind, "size": size, "control": control, "draw": draw, **values}
        for i in range(2)
        for kind, size, control, draw, values in found
    ]


def hypothesis_rows() -> list[Row]:
    same = {"subject": "plain", "n_trials": 1, "n": 60, "n_patients": 50}
    judged = {
        **same,
        "role": "verdict",
        "test": "sign-flip",
        "family": "H1, H2 and H3 | plain",
        "family_size": 2,
    }
    return [
        _row(
            "hypotheses",
            **judged,
            hypothesis="H1",
            quantity="removing <border> and corners",
            unit="log-odds",
            effect=1.75,
            lower=1.25,
            upper=2.25,
            margin_low=-0.5,
            margin_high=0.5,
            lower_90=1.375,
            upper_90=2.125,
            p=0.0011,
            p_holm=0.0022,
            verdict="above margin",
            reason="the interval lies above 0.5",
        ),
        _row(
            "hypotheses",
            **same,
            hypothesis="H1",
            role="secondary",
            quantity="maps at the border, FP minus TP",
            unit="share",
            effect=0.125,
        ),
        _row(
            "hypotheses",
            **judged,
            hypothesis="H3",
            quantity="share that beats shifted",
            unit="share",
            margin_low=0.6,
            margin_high=0.6,
            verdict="not applicable",
            reason="there are no lung masks",
        ),
    ]


def _row(name: str, **values: Any) -> Row:
    """A row of a table with these values, null elsewhere."""
    return {**dict.fromkeys(TABLES[name].columns), **values}


def _columns(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {c: [r.get(c) for r in rows] for c in TABLES[name].columns}


def _partition(store: Store, name: str, where: Mapping[str, str], columns: Mapping[str, Any]) -> None:
    folder = Path(store.path("tables", name, *(f"{k}={v}" for k, v in where.items())))
    folder.mkdir(parents=True)
    pq.write_table(TABLES[name].build(columns), folder / "part-0.parquet")


def verdict_rows(trial_id: str) -> list[Row]:
    """Rows of ``verdicts``: gradcam over both controls, of all patients and of a bucket without any."""
    rows = []
    for n, (control, decision) in enumerate([("shifted", "better"), ("mean_map", "undecided")]):
        for bucket in ("all", "FN"):
            known = bucket == "all"
            rows.append(
                {
                    **{"trial_id": trial_id, "explainer": "gradcam", "target_rule": "pneumonia", "control": control},
                    **{"bucket": bucket, "metric": "abpc", "scale": "logodds", "grid": "pixel", "fill": "mean"},
                    **{"n_patients": 41 + n if known else 0, "n_available": 427 if known else 0, "n_lost": 0},
                    **{"draws": 1, "passes": (41 + n) * 20 if known else 0},
                    "e_value": 331.5 - 300 * n if known else None,
                    "e_value_futile": 0.8125 if known else None,
                    **dict(
                        zip(("win_rate", "lower", "upper"), (0.781, 0.541, 0.937) if known else [None] * 3, strict=True)
                    ),
                    **{"confidence": 0.975, "futile": 0.6, "alpha": 0.0125, "family": "made up", "family_size": 4},
                    "decision": decision if known else "undecided",
                    "sentence": f"Grad-CAM on {trial_id}, {bucket}: told of {control}.",
                    **{"method": "betting", "seconds": 12.5},
                }
            )
    return rows
