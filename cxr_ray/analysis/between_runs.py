"""Two runs compared on the same images: paired differences with intervals over patients, settings and verdicts.

An image is the same where its id is: a hash of split, class, name and bytes. What cannot be paired is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
from numpy.typing import NDArray

from cxr_ray.analysis import answers, buckets, primary
from cxr_ray.analysis.model_names import flat, model_names
from cxr_ray.analysis.resampling import CI_METHOD, MIN_PATIENTS, patient_bootstrap
from cxr_ray.errors import RunError
from cxr_ray.results import Run
from cxr_ray.schemas import to_json

Row = dict[str, Any]
SETTING = ("target_rule", "grid", "fill", "metric", "level", "scale")
PROVENANCE = ("cxr_ray", "schema_version", "data_fingerprint", "python", "versions", "machine", "checkpoints", "maps")
IDENTICAL = "every image differs by the same, so any sample of patients does"


@dataclass(frozen=True)
class Pair:
    """The reference and another run, with the names that the user gave them."""

    reference: str
    run: str
    a: Run
    b: Run

    @property
    def names(self) -> Row:
        """The columns that every row has."""
        return {"reference": self.reference, "run": self.run}


def explained(run: Run) -> pd.DataFrame:
    """The trials that a run explained, with their names for people in column ``name``.

    Raises:
        RunError: the run is not finished.
    """
    trials = run.pandas("trials")
    known = set(run.arrow("predictions", ["trial_id"])["trial_id"].unique().to_pylist())
    trials = trials[trials["trial_id"].isin(known)]
    return trials.assign(name=trials["trial_id"].map(model_names(trials)))


def paired_models(pair: Pair, named: Mapping[str, str] | None = None) -> tuple[list[tuple[str, str]], list[str]]:
    """Models of both runs that are compared with each other, and sentences on those that are not.

    Models of one name are; where no name is in both, and each run has one model, these two are.

    Args:
        pair: the runs.
        named: trial_id of the reference to trial_id of the other run, where the user says so.

    Raises:
        RunError: a named model is not there.
    """
    a, b = explained(pair.a), explained(pair.b)
    if named:
        for label, frame, asked in ((pair.reference, a, list(named)), (pair.run, b, list(named.values()))):
            if unknown := [t for t in asked if t not in set(frame["trial_id"])]:
                raise RunError(
                    f"got the model {unknown[0]}, which {label} does not have; expected one of: "
                    f"{', '.join(frame['trial_id'])}; give that."
                )
        pairs = list(named.items())
    else:
        of_b = dict(zip(b["name"], b["trial_id"], strict=True))
        pairs = [(t, of_b[n]) for t, n in zip(a["trial_id"], a["name"], strict=True) if n in of_b]
        if not pairs and len(a) == len(b) == 1:
            pairs = [(a["trial_id"].iloc[0], b["trial_id"].iloc[0])]
    told = [
        f"{label}: {t} has no model of the same name in the other run and is not compared (--pair names one)."
        for label, frame, place in ((pair.reference, a, 0), (pair.run, b, 1))
        for t in frame["trial_id"]
        if t not in {p[place] for p in pairs}
    ]
    return pairs, told


def settings(pair: Pair) -> Iterator[Row]:
    """Rows of ``run_settings``: the keys under which the runs differ."""
    a, b = _settings_of(pair.a), _settings_of(pair.b)
    for key in dict.fromkeys([*a, *b]):
        one, other = (to_json(of[key]) if key in of else None for of in (a, b))
        if one != other:
            yield {**pair.names, "key": key, "value": one, "value_run": other}


def _settings_of(run: Run) -> dict[str, Any]:
    try:
        known = run.json("provenance.json")
    except RunError:
        known = {}
    provenance = {key: known[key] for key in PROVENANCE if key in known}
    return {**flat(json.dumps(run.sweep, default=str)), **flat(json.dumps({"provenance": provenance}, default=str))}


def predictions(pair: Pair, models: tuple[str, str]) -> tuple[pd.DataFrame, Row]:
    """Test images that both models scored: label, patient_id, and of each run predicted and outcome; and what is not.

    Returns:
        A frame by image_id with columns ``predicted``, ``outcome`` and with the ending ``_run``; a row of
        ``run_images``.
    """
    test = pads.field("split") == "test"
    columns = ["image_id", "label", "predicted", "outcome"]
    a, b = (
        run.pandas("predictions", columns, test & (pads.field("trial_id") == trial)).set_index("image_id")
        for run, trial in zip((pair.a, pair.b), models, strict=True)
    )
    both = a.merge(b, left_index=True, right_index=True, suffixes=("", "_run")).sort_index()
    other = both["label"] != both["label_run"]
    patients = pair.a.pandas("images", ["image_id", "patient_id"]).set_index("image_id")["patient_id"]
    row = {
        **pair.names,
        "trial_id": models[0],
        "trial_id_run": models[1],
        "n": int((~other).sum()),
        "n_only_reference": len(a) - len(both),
        "n_only_run": len(b) - len(both),
        "n_other_label": int(other.sum()),
    }
    both = both[~other]
    return both.assign(patient_id=patients.reindex(both.index)), row


def differences(pair: Pair, models: tuple[str, str], both: pd.DataFrame) -> tuple[list[Row], list[str]]:
    """Rows of ``run_differences`` of two models, and sentences on what cannot be compared.

    Args:
        pair: the runs.
        models: trial_id of each.
        both: of ``predictions``.
    """
    seed = int(pair.a.sweep.get("seed", 0))
    same = {**pair.names, "trial_id": models[0], "trial_id_run": models[1]}
    right = [(both[f"predicted{end}"] == both["label"]).astype(float) for end in ("", "_run")]
    nothing = dict.fromkeys(("explainer", "control", *SETTING))
    rows = [{**same, **nothing, "quantity": "accuracy", **paired(right[0], right[1], both["patient_id"], seed)}]
    setting, told = shared_setting(pair, models)
    if setting is None:
        return rows, told
    a = _advantages(pair.a, models[0], setting, both[["predicted", "outcome"]])
    b = _advantages(
        pair.b, models[1], setting, both[["predicted_run", "outcome_run"]].set_axis(["predicted", "outcome"], axis=1)
    )
    keys = ["explainer", "control", "image_id"]
    merged = a.merge(b, on=keys, suffixes=("", "_run"))
    for (explainer, control), part in merged.groupby(["explainer", "control"], sort=False):
        patients = both["patient_id"].reindex(part["image_id"])
        named = {**same, **setting, "explainer": explainer, "control": control}
        for quantity, column in (("advantage", "gap"), ("win_rate", "win_rate")):
            values = paired(part[column], part[f"{column}_run"], patients, seed)
            rows.append({**named, "quantity": quantity, **values})
    told += [
        f"{label}: {explainer} against {control} is not in the other run and is not compared."
        for label, frame, other in ((pair.reference, a, b), (pair.run, b, a))
        for explainer, control in sorted(_cells(frame) - _cells(other))
    ]
    return rows, told


def _cells(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["explainer"], frame["control"], strict=True))


def shared_setting(pair: Pair, models: tuple[str, str]) -> tuple[Row | None, list[str]]:
    """A setting that both runs measured: the reference's primary one, else the other's, else the first shared.

    Returns:
        Columns SETTING (level None for areas), None where nothing is shared; and what is to be told.
    """
    found = []
    for run, trial in zip((pair.a, pair.b), models, strict=True):
        chosen = (pads.field("trial_id") == trial) & (pads.field("bucket") == "all") & (pads.field("control") != "none")
        frame = run.pandas("summary", list(SETTING), chosen).drop_duplicates()
        found.append([tuple(_plain(v) for v in row) for row in frame.itertuples(index=False)])
    shared = [setting for setting in found[0] if setting in set(found[1])]
    wanted = [_primary(pair.a), _primary(pair.b)]
    for setting in (*wanted, *shared):
        if setting in shared:
            named = dict(zip(SETTING, setting, strict=True))
            if setting == wanted[0]:
                return named, []
            text = ", ".join(f"{key} {value}" for key, value in named.items() if value is not None)
            return named, [f"The primary setting of {pair.reference} is not in both runs; compared in {text}."]
    return None, [f"{pair.run} measured no map in a setting of {pair.reference}: accuracy alone is compared."]


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else value


def _primary(run: Run) -> tuple[Any, ...]:
    found = primary.of_run(run)
    values = (found.target_rule, found.grid, found.fill, found.metric, found.metric_level, found.scale)
    return values


def _advantages(run: Run, trial: str, setting: Mapping[str, Any], test: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``faithfulness`` of a model in the setting: explainer, control, image_id, gap, win_rate."""
    chosen = (pads.field("trial_id") == trial) & (pads.field("control") != "none")
    for key in SETTING[1:]:
        value = setting[key]
        chosen &= pads.field(key).is_null() if value is None else pads.field(key) == value
    columns = ["explainer", "control", "image_id", "target", "gap", "win_rate"]
    frame = run.pandas("faithfulness", columns, chosen)
    return buckets.of_rule(frame, test.reset_index(), setting["target_rule"]).drop(columns=["target", "outcome"])


def paired(one: Any, other: Any, patients: Any, seed: int) -> Row:
    """Means of both, and the mean paired difference with its interval, over images that have both values.

    Args:
        one, other: a value an image, of the reference and of the other run.
        patients: of each image.
        seed: of the bootstrap.

    The interval is ``resampling.patient_bootstrap``'s. Where every image differs by exactly the same, as a run from
    itself, it is that difference: no resampling can give another.
    """
    a, b = (np.asarray(values, np.float64) for values in (one, other))
    known = ~(np.isnan(a) | np.isnan(b))
    a, b, patients = a[known], b[known], np.asarray(patients, object)[known]
    n_patients = len(set(patients))
    row: Row = {"n": len(a), "n_patients": n_patients}
    if not len(a):
        return {**row, **dict.fromkeys(("mean", "mean_run", "difference", "lower", "upper", "ci_method"))}
    lower, upper, method = _interval(b - a, patients, n_patients, seed)
    means = {"mean": a.mean(), "mean_run": b.mean(), "difference": (b - a).mean()}
    return {**row, **means, "lower": lower, "upper": upper, "ci_method": method}


def _interval(
    values: NDArray[np.float64], patients: NDArray[Any], n_patients: int, seed: int
) -> tuple[float | None, float | None, str | None]:
    if n_patients < MIN_PATIENTS:
        return None, None, None
    if (values == values[0]).all():
        return float(values[0]), float(values[0]), IDENTICAL
    lower, upper = patient_bootstrap(values[:, None], patients, seed=seed)
    return (None, None, None) if np.isnan(lower[0]) else (float(lower[0]), float(upper[0]), CI_METHOD)


def verdicts(pair: Pair, models: Sequence[tuple[str, str]]) -> list[Row]:
    """Rows of ``run_verdicts``: what each run concludes, in its own settings, one beside the other."""
    named = {b: a for a, b in models}
    a, b = _verdicts_of(pair.a, {}), _verdicts_of(pair.b, named)
    return [
        {**pair.names, "kind": kind, "subject": subject, "verdict": a.get(key), "verdict_run": b.get(key)}
        for key in dict.fromkeys([*a, *b])
        for kind, subject in [key]
    ]


def _verdicts_of(run: Run, named: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(kind, subject) to the verdict; models under the names that they have in the reference."""
    found = {
        ("answer", f"{answer.explainer} on {named.get(answer.trial_id, answer.trial_id)}"): answer.claim
        for answer in answers.of_run(run)
    }
    for r in run.pandas("hypotheses").query("role == 'verdict'").to_dict("records"):
        found["hypothesis", f"{r['hypothesis']} ({r['subject']})"] = r["verdict"]
    for row in _sequential(run):
        model = named.get(row["trial_id"], row["trial_id"])
        subject = f"{row['explainer']} on {model} against {row['control']}, {row['bucket']}, {row['target_rule']}"
        found["sequential", subject] = row["decision"]
    return found


def _sequential(run: Run) -> list[Row]:
    try:
        return [{str(k): v for k, v in row.items()} for row in run.pandas("verdicts").to_dict("records")]
    except RunError:  # an older version's
        return []
