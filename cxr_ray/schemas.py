"""Every table of a run: its columns, their types and meaning, its key and its partitions, declared once.

Scores, shares and log-odds are float32, levels float64, lists plain ``list<float>``, so that pandas, pyarrow, DuckDB
and Polars read each table without this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 3
CLASSES = ("NORMAL", "PNEUMONIA")
SHARED = "shared"  # the explainer= partition of controls that do not depend on an explainer
PATCH_SWAP, COUNTERFACTUAL = "patch_swap", "counterfactual"  # fills of regions alone
WHOLE = "whole"  # region of donor_swaps: the whole image
NAME_PATTERN = r"[a-z][a-z0-9_-]*"

_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "small": pa.int32(),
    "bool": pa.bool_(),
    "level": pa.float64(),
    "float": pa.float32(),
    "floats": pa.list_(pa.float32()),
    "json": pa.string(),
}


@dataclass(frozen=True)
class Table:
    """One table of a run.

    Attributes:
        name: the folder under ``tables/``.
        columns: name to (type, meaning), in order; partition columns are not among them.
        key: the columns that identify a row, partition columns included.
        partitions: hive partition columns, which stand in the path only.
    """

    name: str
    columns: Mapping[str, tuple[str, str]]
    key: tuple[str, ...]
    partitions: tuple[str, ...] = ()

    @cached_property
    def schema(self) -> pa.Schema:
        """The pyarrow schema of a file of this table, the meaning of each column in its metadata."""
        return pa.schema(
            [pa.field(name, _TYPES[kind], metadata={"meaning": text}) for name, (kind, text) in self.columns.items()]
        )

    def build(self, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> pa.Table:
        """Columns (sequences or arrays, partition columns left out) to a pyarrow table in this schema.

        Raises:
            ValueError: a column is missing or unknown.
        """
        self._check(columns)
        schema = self.schema.with_metadata(file_metadata(metadata or {}))
        arrays = [
            # from_pandas: NaN becomes null
            column if isinstance(column, pa.Array) else pa.array(column, type=f.type, from_pandas=True)
            for f, column in ((f, columns[f.name]) for f in schema)
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def from_rows(self, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None) -> pa.Table:
        """Rows (one mapping each) to a pyarrow table; a row has every column and no other.

        Raises:
            ValueError: a column is missing or unknown.
        """
        for row in rows:
            self._check(row)
        return self.build({name: [row[name] for row in rows] for name in self.columns}, metadata)

    def _check(self, columns: Mapping[str, Any]) -> None:
        missing, unknown = set(self.columns) - set(columns), set(columns) - set(self.columns)
        if missing or unknown:
            raise ValueError(f"table {self.name}: missing columns {sorted(missing)}, unknown columns {sorted(unknown)}")


def file_metadata(values: Mapping[str, str]) -> dict[bytes, bytes]:
    """Metadata of every Parquet file: the schema version and, once known, run id and sweep hash."""
    return {f"cxr_ray.{k}".encode(): str(v).encode() for k, v in {"schema_version": SCHEMA_VERSION, **values}.items()}


def to_json(value: Any) -> str:
    """JSON with sorted keys, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, default=str)


_IMAGE = {"image_id": ("str", "16 hex digits of sha256(split/class/name and bytes)")}
_TARGET = {"target": ("small", "class that is explained and scored: 0 NORMAL, 1 PNEUMONIA")}
_TEST = {
    "grid": ("str", "units that are ranked and perturbed: pixel, 7, 14 or 28"),
    "fill": ("str", "what replaces perturbed pixels"),
}
_METRIC = {
    "metric": (
        "str",
        "deletion_auc (lower is more faithful), insertion_auc, abpc, drop (higher); areas where no step between "
        "levels is wider than 0.3",
    ),
    "level": ("level", "share of units perturbed, for drop; null for areas"),
    "scale": ("str", "prob (probability of the target) or logodds (z_target - z_other)"),
    "control": ("str", "what the map is compared with; none: nothing, the value alone"),
}
_BOUNDS = "bound of the 95% percentile bootstrap interval over patients"
_MEAN_BOUNDS = "bound of the 95% interval over patients, made as ci_method says"


def _with_interval(name: str, meaning: str) -> dict[str, tuple[str, str]]:
    return {
        name: ("float", meaning),
        f"{name}_lower": ("float", f"{name}: lower {_BOUNDS}"),
        f"{name}_upper": ("float", f"{name}: upper {_BOUNDS}"),
    }


IMAGES = Table(
    "images",
    {
        **_IMAGE,
        "content_hash": ("str", "sha256 of the bytes alone, hex"),
        "duplicate_of": (
            "str",
            "first image_id (test before train, then by path) of the same content; null: the first",
        ),
        "path": ("str", "relative to data.path"),
        "split": ("str", "train, val or test"),
        "label": ("small", "0 NORMAL, 1 PNEUMONIA, or what data.classes makes them stand for"),
        "class_name": ("str", "its class of data.classes.several; null where there are two classes"),
        "patient_id": ("str", "told by the data, or inferred from the file name; images of identical content share it"),
        "kind": ("str", "normal, bacteria, virus or unknown, from the file name"),
        "width": ("small", "pixels, as published"),
        "height": ("small", "pixels, as published"),
        "mode": (
            "str",
            "Pillow's colour mode (and bits, of colours of 16), or DICOM's photometric interpretation and bits",
        ),
    },
    ("image_id",),
)

TRIALS = Table(
    "trials",
    {
        "trial_id": ("str", "<variant>-<8 hex digits of its sampled config>, or the name under checkpoints"),
        "variant": ("str", "name under variants, or under checkpoints"),
        "seed": ("int", "train.seed; null for a given model"),
        "config": ("json", "the sampled model and train sections, or the checkpoint's entry"),
        "status": ("str", "completed, stopped (by the scheduler), failed, given"),
        "epochs": ("small", "epochs that were run"),
        "best_epoch": ("small", "epoch, from 1, whose weights are kept: the highest val_auroc"),
        "val_auroc": ("float", "AUROC on the validation split at best_epoch"),
        "checkpoint": ("str", "the weights: relative to the run, or the path that was given"),
        "train_seconds": ("float", "wall-clock seconds of training"),
        "device": ("str", "what it was trained on"),
        "error": ("str", "last line of the error, for failed trials"),
    },
    ("trial_id",),
)

PREDICTIONS = Table(
    "predictions",
    {
        **_IMAGE,
        "split": ("str", "val or test"),
        "label": ("small", "0 NORMAL, 1 PNEUMONIA"),
        "prob_pneumonia": ("float", "sigmoid of logit_pneumonia"),
        "logit_pneumonia": ("float", "log-odds of PNEUMONIA, from the logits"),
        "predicted": ("small", "1 where prob_pneumonia is 0.5 or more"),
        "outcome": ("str", "TP, FP, TN or FN at 0.5; PNEUMONIA is positive"),
    },
    ("trial_id", "image_id"),
    ("trial_id",),
)

SALIENCY = Table(
    "saliency",
    {
        **_IMAGE,
        **_TARGET,
        "map": ("floats", "row by row, at the explainer's own resolution, mean-pooled to at most 56 x 56; signed"),
        "map_height": ("small", "rows of map"),
        "map_width": ("small", "columns of map"),
        "tied": ("float", "share of pixels whose saliency, at image size, another pixel has as well"),
        "degenerate": ("bool", "the map is constant"),
        "border_share": ("float", "share of the positive mass in the outer 10% on each side"),
        "corner_share": ("float", "share of the positive mass in four corner squares of 15%"),
        "centre_share": ("float", "share of the positive mass in the middle 50% x 50%"),
        "lung_share": ("float", "share of the positive mass in the lungs; null without a mask"),
        "entropy": ("float", "Shannon entropy of the positive mass over pixels / log(pixels): 1 is uniform"),
        "half_mass_area": (
            "float",
            "share of the image in the smallest area that holds half of the positive mass; null without positive mass",
        ),
        "components": ("small", "connected components (8 neighbours) of that area; 0 without positive mass"),
        "concentration": (
            "str",
            "spatial concentration by rule: degenerate (no positive mass, or constant), border (twice the "
            "border's share of the area), scattered (over 4 components), compact (one, of at most 25% of the image), "
            "else diffuse",
        ),
    },
    ("trial_id", "explainer", "image_id", "target"),
    ("trial_id", "explainer"),
)

LUNGS = Table(
    "lungs",
    {
        **_IMAGE,
        **_TARGET,
        "control": ("str", "none: the map itself; else a control made from or for it, which gets the map's values"),
        "mask": ("str", "of the lungs: given, or dilated or eroded by 4 pixels of 224"),
        "draws": ("small", "draws of the control that the row is a mean over; 1 for none"),
        "share": ("float", "share of the map's positive mass in the lungs; null without positive mass"),
        "area": ("float", "share of the image that is lungs"),
        "enrichment": ("float", "share / area: 1 is a map without information on where the lungs are"),
    },
    ("trial_id", "explainer", "image_id", "target", "control", "mask"),
    ("trial_id", "explainer"),
)

LOCALISATION = Table(
    "localisation",
    {
        **_IMAGE,
        **_TARGET,
        "metric": ("str", "of localisation, higher is better: pointing, mass, rank, iou or energy"),
        "control": ("str", "none: the map itself; else the control, whose draws get the map's values"),
        "outcome": ("str", "TP, FP, TN or FN"),
        "area": ("float", "share of the image that the expert truth covers: chance for pointing, mass and rank"),
        "value": ("float", "the metric of the map itself; null without positive mass, for mass and energy"),
        "control_mean": ("float", "mean of the metric over the control's draws"),
        "gap": ("float", "value - control_mean, positive where the map is better localised"),
        "win_rate": ("float", "share of control draws that the map beats, ties half; 0.5 is chance"),
        "n_draws": ("small", "draws"),
        "p_value": ("float", "one-sided: (1 + draws at least as well localised) / (1 + draws); null under 19 draws"),
    },
    ("trial_id", "explainer", "image_id", "target", "metric", "control"),
    ("trial_id", "explainer"),
)

CURVES = Table(
    "curves",
    {
        **_IMAGE,
        **_TARGET,
        "control": ("str", "none: the map itself; else the control"),
        "draw": ("small", "0 for the map, 0, 1, ... for a control"),
        **_TEST,
        "direction": ("str", "morf: the most salient are perturbed first; lerf: the least salient"),
        "level": ("level", "share of units asked for"),
        "level_done": ("level", "n_perturbed / units"),
        "n_perturbed": ("small", "units perturbed: round(level * units)"),
        "prob_target": ("float", "probability of the target"),
        "logit_target": ("float", "z_target - z_other"),
        "overlap": (
            "float",
            "share of the map's own perturbed pixels that this control perturbs too; null unless made from the map",
        ),
    },
    ("trial_id", "explainer", "image_id", "target", "control", "draw", "grid", "fill", "direction", "level"),
    ("trial_id", "explainer"),
)

FAITHFULNESS = Table(
    "faithfulness",
    {
        **_IMAGE,
        **_TARGET,
        **_TEST,
        **_METRIC,
        "outcome": ("str", "TP, FP, TN or FN"),
        "value": ("float", "the metric of the map itself"),
        "control_mean": ("float", "mean of the metric over the control's draws"),
        "control_sd": ("float", "standard deviation over draws (ddof 1); null for one draw"),
        "gap": ("float", "map against control_mean, positive where the map is more faithful"),
        "win_rate": ("float", "share of control draws that the map beats, ties half; 0.5 is chance"),
        "n_draws": ("small", "draws"),
        "n_as_extreme": ("small", "draws at least as faithful as the map"),
        "p_value": (
            "float",
            "one-sided, on log-odds: (1 + draws as extreme) / (1 + p_draws), or extreme / p_draws where sequential "
            "draws were stopped; null under 19 draws",
        ),
        "p_draws": ("small", "draws behind p_value: n_draws, or more where sequential; null without p_value"),
        "overlap": (
            "float",
            "mean over draws of the share of the map's most salient 25% that the draw's 25% covers; null for controls "
            "that no map enters",
        ),
        "score_full": ("float", "score of the wholly filled image, on this row's scale"),
        "baseline_valid": ("bool", "the filled image is at least 1 log-odds below the untouched one"),
    },
    ("trial_id", "explainer", "image_id", "target", "grid", "fill", "metric", "level", "scale", "control"),
    ("trial_id", "explainer"),
)

FILLED = Table(
    "filled",
    {
        **_IMAGE,
        "fill": ("str", "what the whole image is filled with"),
        "logit_pneumonia": ("float", "log-odds of PNEUMONIA of the filled image; validation split alone"),
    },
    ("trial_id", "image_id", "fill"),
    ("trial_id",),
)

BASELINES = Table(
    "baselines",
    {
        "trial_id": ("str", "the model"),
        "target_rule": ("str", "pneumonia: over validation images predicted PNEUMONIA; predicted: over all of them"),
        "fill": ("str", "what the whole image is filled with"),
        "n": ("small", "validation images"),
        "n_patients": ("small", "patients among them"),
        "n_valid": (
            "small",
            "images whose filled image scores at least 1 log-odds of the target below the untouched one",
        ),
        "share": ("float", "n_valid / n; null without images"),
        "lower": ("float", "lower bound of the share's 95% interval over patients; null under 20 patients"),
        "upper": ("float", "upper bound of the share's 95% interval over patients; null under 20 patients"),
        "method": ("str", "how share, interval and valid are made"),
        "valid": ("bool", "the filled image is a valid baseline: share of at least 0.95"),
        "mean_drop": ("float", "mean of the untouched image's log-odds of the target minus the filled one's"),
    },
    ("trial_id", "target_rule", "fill"),
)

REGIONS = Table(
    "regions",
    {
        **_IMAGE,
        **_TARGET,
        "region": (
            "str",
            "what is changed: border, corners, centre, outside_lungs, marker, opacity; or an edit: paste_marker, "
            "lower_contrast, raise_contrast, equalize; or glyph (the other marker, phantoms only)",
        ),
        "fill": (
            "str",
            "what replaces its pixels; patch_swap: the same pixels of a NORMAL validation image of another patient (a "
            "test image, where there is none), scaled to this image's mean; counterfactual: the phantom is drawn again "
            "without it (the causal truth); edit: the image is edited",
        ),
        "control": ("str", "none: the region itself; matched: the same area and shape elsewhere"),
        "draw": ("small", "0 for the region, 0, 1, ... for its control"),
        "share_of_area": ("float", "share of the image's pixels that change hands"),
        "prob_target": ("float", "probability of the target, the region changed"),
        "logit_target": ("float", "z_target - z_other, the region changed"),
        "prob_full_image": ("float", "probability of the target, the untouched image"),
        "logit_full_image": ("float", "z_target - z_other, the untouched image"),
    },
    ("trial_id", "image_id", "target", "region", "fill", "control", "draw"),
    ("trial_id",),
)

DONOR_SWAPS = Table(
    "donor_swaps",
    {
        "image_id": ("str", "the recipient: a NORMAL test image, one a patient"),
        "outcome": ("str", "of the recipient, as it is: TN or FP"),
        "region": (
            "str",
            "whose pixels are the donor image's: corners, border, centre; lungs (the recipient's mask), marker (the "
            "place of the recipient's marker and of those of the draw's two donors), where they are known; whole: the "
            "whole image, and so the donor's own score",
        ),
        "donor_label": ("small", "class of the donor image: 0 NORMAL, 1 PNEUMONIA"),
        "draw": ("small", "0, 1, ...: each is a donor image of either class"),
        "donor_id": ("str", "image_id of the donor image: of validation, used for one recipient only"),
        "donor_patient": ("str", "patient_id of the donor image; no patient of the test split"),
        "share_of_area": ("float", "share of the image's pixels that change hands"),
        "logit_pneumonia": ("float", "log-odds of PNEUMONIA of the recipient with the donor's pixels in the region"),
        "logit_full": ("float", "log-odds of PNEUMONIA of the untouched recipient"),
    },
    ("trial_id", "image_id", "region", "donor_label", "draw"),
    ("trial_id",),
)

SANITY = Table(
    "sanity",
    {
        "explainer": ("str", "the map's explainer; model-independent explainers have no rows"),
        **_IMAGE,
        **_TARGET,
        "mode": ("str", "cascade: weights randomised from the head down to layer; labels: a model of shuffled labels"),
        "layer": ("str", "the last layer that was randomised; labels: the other model's trial_id"),
        "seed": ("int", "of the random weights"),
        "spearman": ("float", "rank correlation of the two maps at their own resolution; 1: nothing changed"),
        "spearman_abs": ("float", "the same of their absolute values"),
        "ssim": ("float", "structural similarity of the two maps, each scaled to [0, 1]"),
        **{k: _TEST[k] for k in ("grid", "fill")},
        "metric": ("str", "of gap: the primary metric of the run"),
        "level": ("level", "of gap: of a drop; null for areas"),
        "scale": ("str", "of gap: logodds"),
        "control": ("str", "of gap: the control, made anew from the randomised map; null: none is measured"),
        "n_draws": ("small", "of gap: draws of the control"),
        "gap": ("float", "the randomised model's map on the trained model, against its control; above 0: faithful"),
    },
    ("trial_id", "explainer", "image_id", "target", "mode", "layer", "seed"),
    ("trial_id",),
)

STABILITY = Table(
    "stability",
    {
        "explainer": ("str", "the map's explainer"),
        **_IMAGE,
        **_TARGET,
        "perturbation": (
            "str",
            "what changes of the image: noise or shift (the copy's map is compared with the map), square (infidelity); "
            "none: a control stands where a copy's map stands",
        ),
        "size": (
            "level",
            "of noise: the most that a pixel changes, of its range; of a shift: share of the side; null: square, none",
        ),
        "control": ("str", "none: the explainer's own map; else the map's values in the order of the control's draw"),
        "draw": ("small", "of noise: the copy; of a shift: 0 down, 1 up, 2 right, 3 left; of a control: its draw"),
        "sensitivity": ("float", "Euclidean distance to the map over the map's length, at image size; null for shifts"),
        "spearman": ("float", "rank correlation with the map at image size, a shift taken back; 1: nothing changed"),
        "ssim": ("float", "structural similarity to the map, each scaled to [0, 1]; 1: nothing changed"),
        "logit_change": ("float", "log-odds of the target of the copy minus those of the image; null for controls"),
        "infidelity": (
            "float",
            "mean squared difference of the squares' effects on the log-odds and the map's sums over them, times the "
            "best factor from 0; lower is more faithful",
        ),
        "unexplained": ("float", "infidelity over the mean squared effect, 0 to 1; 1: a map that says nothing"),
    },
    ("trial_id", "explainer", "image_id", "target", "perturbation", "size", "control", "draw"),
    ("trial_id",),
)

CLASSIFICATION = Table(
    "classification",
    {
        "trial_id": ("str", "the model"),
        "split": ("str", "val or test"),
        "threshold_rule": (
            "str",
            "half: 0.5; youden: most sensitivity + specificity on val; sens95: highest with sensitivity >= 0.95 on val",
        ),
        "threshold": ("float", "PNEUMONIA at this probability or more"),
        **_with_interval("accuracy", "share correct"),
        **_with_interval("auroc", "area under the ROC curve"),
        **_with_interval("auprc", "average precision"),
        **_with_interval("sensitivity", "TP / (TP + FN)"),
        **_with_interval("specificity", "TN / (TN + FP)"),
        **_with_interval("f1", "2 TP / (2 TP + FP + FN)"),
        **_with_interval("brier", "mean squared error of the probability"),
        **_with_interval("ece", "expected calibration error of P(PNEUMONIA), 15 bins of equal width"),
        "n": ("small", "images"),
        "n_patients": ("small", "patients"),
        "tp": ("small", "PNEUMONIA images called PNEUMONIA at the threshold"),
        "fp": ("small", "NORMAL images called PNEUMONIA at the threshold"),
        "tn": ("small", "NORMAL images called NORMAL at the threshold"),
        "fn": ("small", "PNEUMONIA images called NORMAL at the threshold"),
    },
    ("trial_id", "split", "threshold_rule"),
)

SUMMARY = Table(
    "summary",
    {
        "trial_id": ("str", "the model"),
        "explainer": ("str", "the map's explainer"),
        "target_rule": ("str", "pneumonia or predicted"),
        **_TEST,
        **_METRIC,
        "bucket": ("str", "TP, FP, TN, FN, correct, wrong or all; for a contrast, A-B"),
        "contrast": ("bool", "difference of two buckets, both resampled"),
        "matched": ("bool", "images of the two buckets are paired by log-odds at level 0, caliper 0.25"),
        "cluster": ("str", "what is resampled: patient"),
        "variant": ("str", "the model's variant"),
        "seed": ("int", "the model's seed"),
        "n": ("small", "images with a value"),
        "n_patients": ("small", "patients among them"),
        "n_null": ("small", "images without a value (a map that is not finite)"),
        "n_degenerate": ("small", "images whose map is constant, ranked by the tie-breaking field alone"),
        "draws": ("small", "draws of the control; 0 for none"),
        "mean": ("float", "mean advantage over the control (gap), or for control none mean value"),
        "lower": ("float", f"lower {_MEAN_BOUNDS}; null under 20 patients"),
        "upper": ("float", f"upper {_MEAN_BOUNDS}; null under 20 patients"),
        "ci_method": ("str", "how the interval is made"),
        "n_boot": ("small", "bootstrap samples"),
        "mean_p": (
            "float",
            "one-sided p-value that the mean advantage is above 0, of the interval's own bootstrap-t: at most 0.05 "
            "exactly where lower is above 0; null under 20 patients, for control none and contrasts",
        ),
        "mean_p_holm": ("float", "mean_p after Holm's correction"),
        "win_rate": ("float", "mean win rate: share of control draws that the map beats, ties half; 0.5 is chance"),
        "win_lower": (
            "float",
            "lower bound of its 95% interval over patients; null under 20 patients",
        ),
        "win_upper": (
            "float",
            "upper bound of its 95% interval over patients; null under 20 patients",
        ),
        "test": ("str", "the tests of win rate (p) and mean advantage (mean_p); null for control none and contrasts"),
        "alternative": ("str", "greater: the map is more faithful than the control"),
        "p": ("float", "one-sided p-value that the win rate is above 1/2, by sign-flip over patients"),
        "family": ("str", "the rows that p_holm and mean_p_holm correct over, each on its own"),
        "family_size": ("small", "tests of the win rate in the family"),
        "p_holm": ("float", "p after Holm's correction"),
        "hardest": (
            "bool",
            "the strong control with the smallest mean advantage of this explainer, bucket and setting; null for "
            "control none and contrasts",
        ),
        "beaten": (
            "str",
            "yes: p_holm and mean_p_holm below 0.05, win_lower above 0.5 and lower above 0; no: neither pair (not "
            "shown); differs: one pair; null without intervals, for control none and contrasts",
        ),
        "control_mean": (
            "float",
            "mean over images of the metric's mean over the control's draws; null for control none and contrasts",
        ),
        "overlap": (
            "float",
            "mean over images of faithfulness.overlap: how much of the map's 25% its control covers; null for control "
            "none, controls that no map enters and contrasts",
        ),
        "n_valid_baseline": (
            "small",
            "images with a value whose filled image is a valid baseline (at least 1 log-odds below the untouched one); "
            "null for contrasts",
        ),
        "n_negative": ("small", "images whose value (control none) or gap is below 0; null for contrasts"),
    },
    (
        "trial_id",
        "explainer",
        "target_rule",
        "grid",
        "fill",
        "metric",
        "level",
        "scale",
        "control",
        "bucket",
        "contrast",
        "matched",
        "cluster",
    ),
)

_RULE = {"target_rule": ("str", "pneumonia or predicted: which class's maps and scores")}
_BUCKET = {"bucket": ("str", "images: all, or those of the outcome TP, FP, TN or FN")}
_OVER_IMAGES = {
    "n": ("small", "images with a value"),
    "n_patients": ("small", "patients among them"),
}
_INTERVAL = {
    "lower": ("float", f"lower {_MEAN_BOUNDS}; null under 20 patients"),
    "upper": ("float", f"upper {_MEAN_BOUNDS}; null under 20 patients"),
    "ci_method": ("str", "how the interval is made; null where there is none"),
    "n_boot": ("small", "bootstrap samples"),
}

SALIENCY_SUMMARY = Table(
    "saliency_summary",
    {
        "trial_id": ("str", "the model"),
        "explainer": ("str", "the maps' explainer"),
        **_RULE,
        **_BUCKET,
        "quantity": (
            "str",
            "share of maps: each spatial concentration (compact, diffuse, scattered, border, degenerate), not_finite, "
            "constant; median: tied; mean: border_share, corner_share, centre_share, lung_share, half_mass_area",
        ),
        "area": ("float", "of the region behind a *_share: its mean share of the image, and a uniform map's value"),
        "count": ("small", "maps of this kind; null for medians and means"),
        "n": ("small", "maps that value is over: all of the bucket's for shares of maps, else those with a value"),
        "n_patients": ("small", "patients among them"),
        "value": ("float", "share of maps (count / n), median or mean"),
        **_INTERVAL,
    },
    ("trial_id", "explainer", "target_rule", "bucket", "quantity"),
)

LUNG_SUMMARY = Table(
    "lung_summary",
    {
        "trial_id": ("str", "the model"),
        "explainer": ("str", "the maps' explainer"),
        **_RULE,
        **_BUCKET,
        "control": ("str", "none: the map itself; else the control, as in lungs"),
        "mask": ("str", "given, dilated or eroded, as in lungs"),
        "quantity": (
            "str",
            "enrichment (mean); advantage (mean of the map's enrichment minus the control's); above_1 and above_1.5 "
            "(share of maps whose enrichment is above it)",
        ),
        "draws": ("small", "most draws of the control that an image has"),
        "area": ("float", "mean share of the image that is lungs"),
        **_OVER_IMAGES,
        "value": ("float", "the quantity"),
        **_INTERVAL,
    },
    ("trial_id", "explainer", "target_rule", "bucket", "control", "mask", "quantity"),
)

LOCALISATION_SUMMARY = Table(
    "localisation_summary",
    {
        "trial_id": ("str", "the model"),
        "explainer": ("str", "the maps' explainer"),
        **_RULE,
        **_BUCKET,
        "metric": ("str", "as in localisation"),
        "control": ("str", "none: the map itself; else the control, as in localisation"),
        "draws": ("small", "most draws of the control that an image has; 0 for none"),
        "area": ("float", "mean share of the image that the expert truth covers: chance for pointing, mass and rank"),
        "n": ("small", "images of the bucket with an expert truth and a value"),
        "n_patients": ("small", "patients among them"),
        "mean": ("float", "mean of the metric (control none), or of the map's advantage over the control"),
        **_INTERVAL,
        "control_mean": ("float", "mean of the metric over images and the control's draws"),
        "win_rate": ("float", "mean share of control draws that the map beats, ties half; 0.5 is chance"),
        "win_lower": ("float", "win_rate: lower bound of its 95% interval over patients; null under 20 patients"),
        "win_upper": ("float", "win_rate: upper bound of its 95% interval over patients; null under 20 patients"),
        "test": ("str", "the tests behind p and mean_p"),
        "alternative": ("str", "greater: the map is better localised than the control"),
        "p": ("float", "p-value of the win rate"),
        "p_holm": ("float", "p corrected over the explainers and controls of family"),
        "mean_p": ("float", "p-value of the mean advantage"),
        "mean_p_holm": ("float", "mean_p corrected over the same"),
        "family": ("str", "the tests that are corrected together"),
        "family_size": ("small", "how many there are"),
        "hardest": ("bool", "the strong control with the smallest mean advantage"),
        "beaten": ("str", "yes, no or differs: as in summary"),
    },
    ("trial_id", "explainer", "target_rule", "bucket", "metric", "control"),
)

REGION_SUMMARY = Table(
    "region_summary",
    {
        "trial_id": ("str", "the model"),
        **_RULE,
        "region": ("str", "what is changed, as in regions"),
        "fill": ("str", "what replaces its pixels, as in regions"),
        **_BUCKET,
        "scale": ("str", "prob or logodds of the target"),
        "quantity": (
            "str",
            "effect: score of the untouched image minus that of the changed one; matched: the same, mean of the draws "
            "of the matched control; advantage: effect minus matched",
        ),
        "draws": ("small", "most draws of the matched control that an image has; 0 where there is none"),
        "share_of_area": ("float", "mean share of the image's pixels that change"),
        **_OVER_IMAGES,
        "mean": ("float", "mean over images; above 0: what was changed spoke for the target"),
        **_INTERVAL,
    },
    ("trial_id", "target_rule", "region", "fill", "bucket", "scale", "quantity"),
)

SANITY_SUMMARY = Table(
    "sanity_summary",
    {
        "trial_id": ("str", "the model"),
        **_RULE,
        "explainer": ("str", "the maps' explainer"),
        "mode": ("str", "cascade or labels, as in sanity"),
        "layer": ("str", "the last layer that was randomised; labels: the other model's trial_id"),
        "quantity": (
            "str",
            "likeness of the two models' maps: spearman, spearman_abs, ssim; faithfulness on the trained model: gap "
            "(the other model's map), own_gap (its own map, same images)",
        ),
        "control": ("str", "of gap and own_gap; null for likeness"),
        "metric": ("str", "of gap and own_gap; null for likeness"),
        "level": ("level", "of gap and own_gap, of a drop; null for areas and likeness"),
        "scale": ("str", "of gap and own_gap; null for likeness"),
        "grid": ("str", "of gap and own_gap; null for likeness"),
        "fill": ("str", "of gap and own_gap; null for likeness"),
        "draws": ("small", "of gap and own_gap: most draws of the control that an image has; null for likeness"),
        **_OVER_IMAGES,
        "mean": ("float", "mean over images"),
        **_INTERVAL,
    },
    ("trial_id", "target_rule", "explainer", "mode", "layer", "quantity"),
)

STABILITY_SUMMARY = Table(
    "stability_summary",
    {
        "trial_id": ("str", "the model"),
        **_RULE,
        "explainer": ("str", "the maps' explainer"),
        "perturbation": ("str", "noise, shift or square, as in stability"),
        "size": ("level", "of noise and shifts, as in stability; null for square"),
        "quantity": (
            "str",
            "max_sensitivity (the largest sensitivity of an image's copies), spearman and ssim (mean over its copies), "
            "logit_change (mean of its absolute value), infidelity, unexplained",
        ),
        "control": ("str", "none: the map's own value; else what the map is compared with"),
        "draws": ("small", "copies of an image; of a control: most draws that an image has; 1 for infidelity of maps"),
        **_OVER_IMAGES,
        "mean": (
            "float",
            "for control none the mean value; else the mean advantage: above 0 the map is more stable, or more "
            "faithful, than the mean of the control's draws",
        ),
        **_INTERVAL,
        "control_mean": ("float", "mean over images of the mean of the control's draws; null for control none"),
    },
    ("trial_id", "target_rule", "explainer", "perturbation", "size", "quantity", "control"),
)

_OF_EXPLAINERS = {
    "trial_id": ("str", "the model"),
    **_RULE,
    **_TEST,
    "metric": ("str", "the primary metric"),
    "level": ("level", "of a drop; null for areas"),
    "scale": ("str", "logodds"),
    "bucket": ("str", "images: all, TP or FP"),
}
_SIMULTANEOUS = "bound of the 95% interval that holds for all pairs of explainers at once; null under 20 patients"

COMPARISONS = Table(
    "comparisons",
    {
        **_OF_EXPLAINERS,
        "a": ("str", "an explainer"),
        "b": ("str", "another explainer"),
        "n": ("small", "images that both have a value for"),
        "n_patients": ("small", "patients among them"),
        "mean": ("float", "mean difference a - b of the metric, turned so that above 0 a is the more faithful"),
        "lower": ("float", f"lower {_SIMULTANEOUS}"),
        "upper": ("float", f"upper {_SIMULTANEOUS}"),
        "p": ("float", "two-sided p-value of this pair alone"),
        "p_max": ("float", "p corrected over the pairs (single-step max-T)"),
        "family_size": ("small", "pairs that the interval and p_max are corrected over"),
        "better": ("str", "the explainer that is shown to be more faithful (the interval leaves out 0); null: neither"),
        "ci_method": ("str", "how interval and p are made"),
        "n_boot": ("small", "bootstrap samples"),
    },
    ("trial_id", "target_rule", "grid", "fill", "metric", "bucket", "a", "b"),
)

RANKS = Table(
    "ranks",
    {
        **_OF_EXPLAINERS,
        "explainer": ("str", "the explainer"),
        "n": ("small", "images with a value"),
        "n_patients": ("small", "patients among them"),
        "mean": ("float", "mean of its differences to all explainers (itself: 0); above 0: more faithful than most"),
        "rank_lower": ("small", "best rank of its confidence set: 1 + explainers that are shown to be better"),
        "rank_upper": ("small", "worst rank of its confidence set: n_explainers - those that are shown to be worse"),
        "n_explainers": ("small", "explainers that are ranked"),
        "ci_method": ("str", "how the sets are made; with 95% confidence all of them hold at once"),
        "n_boot": ("small", "bootstrap samples"),
    },
    ("trial_id", "target_rule", "grid", "fill", "metric", "bucket", "explainer"),
)

AGREEMENT = Table(
    "agreement",
    {
        "kind": (
            "str",
            "ranking: whether two settings rank explainers alike; sign: whether a choice turns the sign of the "
            "difference of mean drops of two buckets; truth: region effects against counterfactual renderings "
            "(phantoms); accuracy: whether models that classify better have more faithful maps; variants: mean over "
            "the models of a variant; twins: models that give every test image the same log-odds; reliability: how "
            "well a fill tells explainers apart; plausibility: whether faithful maps agree with experts, over images",
        ),
        "subject": ("str", "trial_id; accuracy: explainer; variants: variant; twins: the first of the models"),
        "axis": (
            "str",
            "ranking, sign: the choice that differs between a and b (all, for counts of cells); truth: region; "
            "reliability: fill; accuracy, variants: accuracy, auroc or gap; twins: model; plausibility: metric of "
            "localisation",
        ),
        "a": (
            "str",
            "ranking, sign: the choice's one value; truth, reliability: fill; accuracy, variants, plausibility: "
            "explainer; twins: model",
        ),
        "b": (
            "str",
            "ranking, sign: its other value; truth: what was left out or replaced in the rendering; reliability: grid; "
            "accuracy, variants, plausibility: control; twins: the other model",
        ),
        "statistic": (
            "str",
            "ranking: kendall_tau, n_explainers (fewest ranked in a setting); sign: turned, clearly, and of all cells "
            "above, below, holds_0, no_interval; truth: spearman, same_sign; accuracy: spearman; variants: mean; "
            "twins: same_logodds; reliability: icc, random_over_<control>; plausibility: spearman, and "
            "shares of images whose map beats the control in one alone: faithful_alone, plausible_alone",
        ),
        "explainer": ("str", "whose maps; null: all or none"),
        "target_rule": ("str", "pneumonia or predicted; null: all or none"),
        "grid": ("str", "null: all or none"),
        "fill": ("str", "null: all or none"),
        "metric": ("str", "null: several or none"),
        "level": ("level", "of a drop; null: an area, several or none"),
        "scale": ("str", "prob or logodds; null: both or none"),
        "control": ("str", "null: several or none"),
        "value": (
            "float",
            "the statistic; a share for turned, clearly, same_sign, same_logodds, *_alone and counts of cells",
        ),
        "low": ("float", "smallest, or the interval's lower bound: method says which; null: neither"),
        "high": ("float", "largest, or the interval's upper bound: method says which; null: neither"),
        "count": ("small", "of shares: the numerator; else null"),
        "n": (
            "small",
            "what value is over: ranking: settings; sign: pairs or cells; truth, twins, reliability, plausibility: "
            "images; else models",
        ),
        "p": ("float", "p-value; null where nothing is tested"),
        "method": ("str", "how value, low, high and p are made"),
    },
    ("kind", "subject", "axis", "a", "b", "statistic"),
)

HYPOTHESES = Table(
    "hypotheses",
    {
        "hypothesis": ("str", "H1 shortcuts, H2 imbalance, H3 plausible but unfaithful"),
        "subject": ("str", "variant, or A-B for a difference of variants"),
        "role": ("str", "verdict: the row that is judged; secondary: a secondary outcome, not judged"),
        "quantity": ("str", "what effect is, in words, with level, fill, target, scale and control"),
        "unit": ("str", "log-odds, share, or as named"),
        "n_trials": ("small", "models"),
        "n": ("small", "images (of one model)"),
        "n_patients": ("small", "patients among them"),
        "effect": ("float", "the quantity"),
        "lower": ("float", "lower bound of its 95% interval"),
        "upper": ("float", "upper bound of its 95% interval"),
        "ci_method": ("str", "how the interval is made"),
        "lower_90": ("float", "lower bound of its 90% interval, for within margin"),
        "upper_90": ("float", "upper bound of its 90% interval, for within margin"),
        "margin_low": ("float", "lower end of the effects that do not count; null for secondary outcomes"),
        "margin_high": ("float", "upper end; equal to margin_low where the margin is a line"),
        "test": ("str", "the test behind p; null for secondary outcomes"),
        "alternative": ("str", "what a small p speaks for"),
        "p": ("float", "p-value against the margin: that the effect is not beyond the end on its side"),
        "family": (
            "str",
            "the rows that p_holm corrects over: the applicable verdicts of one variant",
        ),
        "family_size": ("small", "tests in the family; an applicable one without p counts as p = 1"),
        "p_holm": ("float", "p after Holm's correction"),
        "verdict": (
            "str",
            "above margin, within margin, below margin, inconclusive or not applicable; null for secondary outcomes",
        ),
        "reason": ("str", "why, in one sentence; not applicable: what to add to the sweep"),
        "about": ("str", "whom the verdict is about: a given model, one trained model, or variants"),
    },
    ("hypothesis", "subject", "role", "quantity"),
)

VERDICTS = Table(
    "verdicts",
    {
        "trial_id": ("str", "the model"),
        "explainer": ("str", "whose maps"),
        "target_rule": ("str", "pneumonia or predicted"),
        "control": ("str", "what the maps are compared with, one draw a patient"),
        "bucket": ("str", "patients by the outcome of their image: all, TP, FP, TN or FN"),
        "metric": ("str", "by which a map wins: the run's primary metric"),
        "scale": ("str", "logodds"),
        "grid": ("str", "units that are ranked and perturbed"),
        "fill": ("str", "what replaces perturbed pixels"),
        "n_patients": ("small", "patients up to the decision, one image each, in random order; all without one"),
        "n_available": ("small", "patients of the bucket"),
        "n_lost": ("small", "patients passed over: their map is not finite, or there is no draw"),
        "draws": ("small", "of the control for a patient"),
        "passes": ("int", "forward passes of n_patients: the curves of a map and of a draw each"),
        "e_value": ("level", "largest e-value against a win rate of at most 1/2; decided at 1 / alpha"),
        "e_value_futile": ("level", "largest e-value against a win rate of at least futile; decided at 1 / alpha"),
        "win_rate": ("float", "mean over n_patients: 1 where the map beats the draw, 1/2 for a tie; 0.5 is chance"),
        "lower": ("float", "lower bound of the win rate, at all times at once with probability confidence"),
        "upper": ("float", "upper bound, as lower"),
        "confidence": ("float", "of lower and upper together: 1 - 2 alpha"),
        "futile": ("float", "a win rate shown to lie below it ends a comparison"),
        "alpha": ("float", "chance of a wrong decision: the model's, over family_size (Bonferroni)"),
        "family": ("str", "the comparisons that share the model's alpha"),
        "family_size": ("small", "how many there are"),
        "decision": ("str", "better (win rate above 1/2), futile (below futile) or undecided"),
        "sentence": ("str", "the decision in words"),
        "method": ("str", "how it is decided"),
        "seconds": (
            "float",
            "of workers, for the model's rounds up to the decision: the one column that differs by run",
        ),
    },
    ("trial_id", "explainer", "target_rule", "control", "bucket"),
)

ERRORS = Table(
    "errors",
    {
        "path": ("str", "relative to data.path; of class_order, the checkpoint"),
        "image_id": ("str", "null where the file could not be read as an image, and of class_order"),
        "stage": (
            "str",
            "read, decode, lungs, marker or truth (a mask), patch_swap (a donor image), maps:<name> (no usable map "
            "from outside), score:<trial_id>, explain:<trial_id>:<explainer>, sanity:<the same>, stability:<the same>, "
            "class_order:<trial_id> (a model whose classes may be the other way round) or worker:<trial_id>:<split> "
            "(the image ended or hung the process that computed it)",
        ),
        "reason": ("str", "what was wrong"),
    },
    ("path", "image_id", "stage"),
)

_ALL = (
    IMAGES,
    TRIALS,
    PREDICTIONS,
    SALIENCY,
    LUNGS,
    LOCALISATION,
    CURVES,
    FAITHFULNESS,
    FILLED,
    BASELINES,
    REGIONS,
    DONOR_SWAPS,
    SANITY,
    STABILITY,
    CLASSIFICATION,
    SUMMARY,
    SALIENCY_SUMMARY,
    LUNG_SUMMARY,
    LOCALISATION_SUMMARY,
    REGION_SUMMARY,
    SANITY_SUMMARY,
    STABILITY_SUMMARY,
    COMPARISONS,
    RANKS,
    AGREEMENT,
    HYPOTHESES,
    VERDICTS,
    ERRORS,
)
TABLES: dict[str, Table] = {table.name: table for table in _ALL}

# A comparison of runs is a folder of its own, whose tables these are.
_PAIR = {
    "reference": ("str", "the run that the others are compared with, as it was named"),
    "run": ("str", "the other run, as it was named"),
}
_MODELS = {
    "trial_id": ("str", "model of the reference"),
    "trial_id_run": ("str", "model of the other run that it is compared with"),
}
RUN_SETTINGS = Table(
    "run_settings",
    {
        **_PAIR,
        "key": ("str", "dotted key of sweep.yaml, or of provenance.json below provenance"),
        "value": ("json", "in the reference; null: it has no such key"),
        "value_run": ("json", "in the other run; null: it has no such key"),
    },
    ("reference", "run", "key"),
)
RUN_IMAGES = Table(
    "run_images",
    {
        **_PAIR,
        **_MODELS,
        "n": ("small", "test images that both models scored, with one label: these are compared"),
        "n_only_reference": ("small", "test images that the reference's model alone scored; left out"),
        "n_only_run": ("small", "test images that the other run's model alone scored; left out"),
        "n_other_label": ("small", "test images of both runs whose label differs between them; left out"),
    },
    ("reference", "run", "trial_id", "trial_id_run"),
)
RUN_DIFFERENCES = Table(
    "run_differences",
    {
        **_PAIR,
        **_MODELS,
        "quantity": (
            "str",
            "accuracy (share of images called right at 0.5), sensitivity and specificity (the same of PNEUMONIA and of "
            "NORMAL images), auroc, advantage (over the control, in the metric) or win_rate",
        ),
        "bucket": ("str", "all, or TP, FP, TN, FN: images with this outcome in both runs (of maps alone)"),
        "explainer": ("str", "whose maps; null for what needs no map"),
        "control": ("str", "what the maps are compared with; null for what needs no map"),
        "target_rule": ("str", "class whose score is explained: pneumonia or predicted; null for what needs no map"),
        "grid": ("str", "null for what needs no map"),
        "fill": ("str", "null for what needs no map"),
        "metric": ("str", "null for what needs no map"),
        "level": ("level", "share of units perturbed, for drop; null for areas and what needs no map"),
        "scale": ("str", "prob or logodds; null for what needs no map"),
        "setting_run": (
            "json",
            "target_rule, grid and fill of the other run where they are not the reference's; null: they are the same",
        ),
        "n": ("small", "images that both runs have a value of"),
        "n_patients": ("small", "their patients, as the reference tells them"),
        "mean": ("float", "in the reference, over these images: a mean, or the AUROC"),
        "mean_run": ("float", "in the other run, over the same images"),
        "difference": ("float", "mean_run - mean; of means the mean difference image by image"),
        "lower": ("float", "difference: lower bound of the 95% interval over patients; null under 20 patients"),
        "upper": ("float", "difference: upper bound"),
        "ci_method": ("str", "how the interval is made; null without one"),
        "p": ("float", "two-sided p-value that the difference is 0, of the interval's method; null without one"),
        "family": ("str", "the tests that p_holm corrects for; null without one"),
        "family_size": ("small", "how many they are"),
        "p_holm": ("float", "p by Holm's method (1979) over the differences of the two runs in this bucket"),
    },
    (
        *("reference", "run", "trial_id", "trial_id_run", "quantity", "bucket", "explainer", "control"),
        *("target_rule", "grid", "fill", "metric", "level", "scale"),
    ),
)
RUN_VERDICTS = Table(
    "run_verdicts",
    {
        **_PAIR,
        "kind": ("str", "answer (of a model and explainer), hypothesis, or sequential (verdict)"),
        "subject": ("str", "what is judged"),
        "verdict": ("str", "of the reference; null: it has none"),
        "verdict_run": ("str", "of the other run; null: it has none"),
    },
    ("reference", "run", "kind", "subject"),
)
COMPARED: dict[str, Table] = {t.name: t for t in (RUN_SETTINGS, RUN_IMAGES, RUN_DIFFERENCES, RUN_VERDICTS)}
