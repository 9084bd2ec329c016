"""Two runs compared on the same images: paired differences with intervals over patients, and verdicts.

An image is the same where its id is: a hash of split, class, name and bytes. What cannot be paired is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow.dataset as pads

from cxr_ray.analysis import answers, between_settings, buckets
from cxr_ray.analysis.between_settings import SETTING, Pair, Setting
from cxr_ray.analysis.model_names import model_names
from cxr_ray.analysis.paired_differences import Row, corrected, paired_auroc, paired_means
from cxr_ray.errors import RunError
from cxr_ray.results import Run

OF_LABEL = {"accuracy": (0, 1), "sensitivity": (1,), "specificity": (0,)}


def explained(run: Run) -> pd.DataFrame:
    """The trials that a run explained, with their names for people in column ``name``.

    Raises:
        RunError: the run is not finished.
    """
    trials = run.pandas("trials")
    known = set(run.arrow("predictions", ["trial_id"])["trial_id"].unique().to_pylist())
    trials = trials[trials["trial_id"].isin(known)]
    return trials.assign(name=trials["trial_id"].map(model_names(trials)))


def paired_models(pair: Pair, named: Sequence[tuple[str, str]] = ()) -> tuple[list[tuple[str, str]], list[str]]:
    """Models of both runs that are compared with each other, and sentences on those that are not.

    Models of one name are; where no name is in both, and each run has one model, these two are.

    Args:
        pair: the runs.
        named: model of the reference and of the other run, where the user says so, by trial_id or by name.

    Raises:
        RunError: a named model is not there.
    """
    a, b = explained(pair.a), explained(pair.b)
    if named:
        ids = (
            [_trial_of(label, frame, asked) for asked in of]
            for label, frame, of in ((pair.reference, a, [p[0] for p in named]), (pair.run, b, [p[1] for p in named]))
        )
        pairs = list(zip(*ids, strict=True))
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


def has_model(run: Run, asked: str) -> bool:
    """Whether a run explained a model of this trial_id or name."""
    found = explained(run)
    return asked in {*found["trial_id"], *found["name"]}


def _trial_of(label: str, frame: pd.DataFrame, asked: str) -> str:
    """The trial of a run that the user named."""
    for column in ("trial_id", "name"):
        found = frame["trial_id"][frame[column] == asked]
        if len(found):
            return str(found.iloc[0])
    raise RunError(
        f"got the model {asked}, which {label} does not have; expected one of: {', '.join(frame['trial_id'])}; give "
        "that."
    )


def predictions(pair: Pair, models: tuple[str, str]) -> tuple[pd.DataFrame, Row]:
    """Test images that both models scored: label, patient_id, and what each run says of them; and what is not.

    Returns:
        A frame by image_id with columns ``predicted``, ``outcome``, ``logit_pneumonia`` and the same with the ending
        ``_run``; a row of ``run_images``.
    """
    test = pads.field("split") == "test"
    columns = ["image_id", "label", "predicted", "outcome", "logit_pneumonia"]
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
    same = {**pair.names, "trial_id": models[0], "trial_id_run": models[1]}
    rows = [{**same, **row} for row in _of_predictions(both, _seed(pair))]
    setting, told = between_settings.compared(pair, models)
    if setting is None:
        return corrected(rows), [told]
    a = _advantages(pair.a, models[0], setting.reference, both[["predicted", "outcome"]])
    b = _advantages(
        pair.b,
        models[1],
        setting.run,
        both[["predicted_run", "outcome_run"]].set_axis(["predicted", "outcome"], axis=1),
    )
    rows += [{**same, **setting.columns, **row} for row in _of_maps(a, b, both["patient_id"], _seed(pair))]
    missing = [
        f"{label}: {'; '.join(lacking)} are not in the other run and are not compared."
        for label, frame, other in ((pair.reference, a, b), (pair.run, b, a))
        if (lacking := _lacking(_cells(frame), _cells(other)))
    ]
    return corrected(rows), [*([setting.told] if setting.told else []), *missing]


def _seed(pair: Pair) -> int:
    return int(pair.a.sweep.get("seed", 0))


def _of_predictions(both: pd.DataFrame, seed: int) -> Iterator[Row]:
    """Accuracy, sensitivity, specificity and AUROC."""
    nothing = {**dict.fromkeys(("explainer", "control", *SETTING, "setting_run")), "bucket": "all"}
    one, other = (both[f"logit_pneumonia{end}"].to_numpy(float, na_value=np.nan) for end in ("", "_run"))
    chance = not np.array_equal(one, other)  # of models that score alike, none differs by chance
    for quantity, labels in OF_LABEL.items():
        part = both[both["label"].isin(labels)]
        a, b = ((part[f"predicted{end}"] == part["label"]).astype(float) for end in ("", "_run"))
        yield {**nothing, "quantity": quantity, **paired_means(a, b, part["patient_id"], seed, share=chance)}
    yield {**nothing, "quantity": "auroc", **paired_auroc(both["label"], one, other, both["patient_id"])}


def _of_maps(a: pd.DataFrame, b: pd.DataFrame, patients: pd.Series, seed: int) -> Iterator[Row]:
    """Advantage and win rate of each explainer over each control, over all images and those of one outcome in both."""
    merged = a.merge(b, on=["explainer", "control", "image_id"], suffixes=("", "_run"))
    for (explainer, control), every in merged.groupby(["explainer", "control"], sort=False):
        for bucket in buckets.BUCKETS:
            part = every
            if bucket != "all":
                part = every[(every["outcome"] == bucket) & (every["outcome_run"] == bucket)]
            if part.empty:
                continue
            named = {"explainer": explainer, "control": control, "bucket": bucket}
            chance = not (part["gap"] == part["gap_run"]).all()
            of = patients.reindex(part["image_id"])
            yield {**named, "quantity": "advantage", **paired_means(part["gap"], part["gap_run"], of, seed)}
            win = paired_means(part["win_rate"], part["win_rate_run"], of, seed, share=chance)
            yield {**named, "quantity": "win_rate", **win}


def _lacking(cells: set[tuple[str, str]], other: set[tuple[str, str]]) -> list[str]:
    """Explainers with the controls that the other run lacks, in words."""
    named: dict[str, list[str]] = {}
    for explainer, control in sorted(cells - other):
        named.setdefault(explainer, []).append(control)
    return [f"{explainer} against {answers.listed(controls)}" for explainer, controls in named.items()]


def _cells(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["explainer"], frame["control"], strict=True))


def _advantages(run: Run, trial: str, setting: Setting, test: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``faithfulness`` of a model in the setting: explainer, control, image_id, outcome, gap, win_rate."""
    chosen = (pads.field("trial_id") == trial) & (pads.field("control") != "none")
    for key in SETTING[1:]:
        value = setting[key]
        chosen &= pads.field(key).is_null() if value is None else pads.field(key) == value
    columns = ["explainer", "control", "image_id", "target", "gap", "win_rate"]
    frame = run.pandas("faithfulness", columns, chosen)
    return buckets.of_rule(frame, test.reset_index(), setting["target_rule"]).drop(columns=["target"])


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
        found["hypothesis", f"{r['hypothesis']} ({named.get(r['subject'], r['subject'])})"] = r["verdict"]
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
