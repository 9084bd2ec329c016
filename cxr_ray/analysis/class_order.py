"""Whether a model ranks the two classes the wrong way round: a question to the user, never a result."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from cxr_ray.schemas import CLASSES

LOWEST_AUROC = 0.4  # of a model whose classes are in order
CHANCE, BELOW = 0.5, -1.96  # the AUROC of a model that knows nothing; the normal deviate that is shown to lie below
STAGE = "class_order"  # in the table errors
NAMES = {"val": "validation", "test": "test"}


class Question(NamedTuple):
    """What to ask of a model.

    Attributes:
        trial_id: the model.
        split: whose AUROC is below LOWEST_AUROC.
        checkpoint: the model's weights.
        text: what was got and expected, and what to do.
    """

    trial_id: str
    split: str
    checkpoint: str
    text: str


def questions(classification: pd.DataFrame, trials: pd.DataFrame) -> list[Question]:
    """A question for each model whose AUROC is below LOWEST_AUROC: on validation, of given models also on test.

    The AUROC has to be shown to lie below 0.5: by its interval, or under 20 patients by the number of images
    (``is_below_chance``). Networks that were trained on shuffled labels have nothing to learn, and are not asked about.

    Args:
        classification: the table, or its rows: trial_id, split, auroc with its bounds, tp, fp, tn, fn, n.
        trials: trial_id, status, config (JSON) and checkpoint.
    """
    if classification.empty:
        return []
    found = []
    for trial in trials.to_dict("records"):
        of_model = classification[classification["trial_id"] == trial["trial_id"]].drop_duplicates("split")
        for split in ("val", "test") if trial["status"] == "given" else ("val",):
            rows = of_model[(of_model["split"] == split) & (of_model["auroc"] < LOWEST_AUROC)].to_dict("records")
            if rows and _is_shown(rows[0]) and (text := question(trial, split, rows[0])) is not None:
                found.append(Question(trial["trial_id"], split, str(trial["checkpoint"]), text))
                break
    return found


def of_validation(trial: Mapping[str, Any], predictions: pd.DataFrame) -> list[str]:
    """What to ask of a model whose validation images alone are scored: one text, or none.

    Args:
        trial: trial_id, status, config (JSON) and checkpoint.
        predictions: its label and logit_pneumonia of the validation split.
    """
    from sklearn.metrics import roc_auc_score  # half a second, which a mistake need not wait for

    known = predictions[predictions["logit_pneumonia"].notna()]
    if known["label"].nunique() < 2:
        return []
    auroc, positive = float(roc_auc_score(known["label"], known["logit_pneumonia"])), int(known["label"].sum())
    if auroc >= LOWEST_AUROC:
        return []
    text = question(trial, "val", {"auroc": auroc, "n": len(known)})
    if text is None or is_below_chance(auroc, positive, len(known) - positive):
        return [] if text is None else [text]
    return [
        f"{trial['trial_id']}: an AUROC of {auroc:.3f} on {len(known)} validation images, too few to tell whether the "
        "classes are the other way round."
    ]


def is_below_chance(auroc: float, positive: int, negative: int) -> bool:
    """Whether an AUROC is shown to lie below 0.5, two-sided at 5%, by the Mann-Whitney test's normal deviate.

    >>> is_below_chance(0.0, 3, 3), is_below_chance(0.25, 2, 4), is_below_chance(0.3, 40, 40)
    (True, False, True)
    """
    pairs = positive * negative
    return (auroc - CHANCE) * pairs < BELOW * math.sqrt(pairs * (positive + negative + 1) / 12)


def _is_shown(row: Mapping[Any, Any]) -> bool:
    """Whether a row of ``classification`` shows an AUROC below 0.5."""
    upper = row.get("auroc_upper")
    if upper is not None and not pd.isna(upper):
        return bool(upper < CHANCE)
    positive, negative = row["tp"] + row["fn"], row["tn"] + row["fp"]
    return is_below_chance(row["auroc"], int(positive), int(negative))


def question(trial: Mapping[Any, Any], split: str, row: Mapping[Any, Any]) -> str | None:
    """What to ask of a model with such an AUROC; None where its training asks for none.

    Args:
        trial: trial_id, status and config of the model.
        split: val or test.
        row: auroc, n and, if they are known, auroc_lower and auroc_upper.
    """
    config = json.loads(trial["config"]) if isinstance(trial["config"], str) else {}
    if config.get("train", {}).get("labels") == "shuffled":
        return None
    name, lower, upper = trial["trial_id"], row.get("auroc_lower"), row.get("auroc_upper")
    bounds = "" if lower is None or pd.isna(lower) else f" [{lower:.3f}, {upper:.3f}]"
    got = f"{name}: got an AUROC of {row['auroc']:.3f}{bounds} on {row['n']:.0f} {NAMES[split]} images; expected at "
    got += f"least {LOWEST_AUROC:g}"
    if trial["status"] != "given":
        return (
            f"{got} of a network that has learned; are the labels of train those of {NAMES[split]}, and are "
            "train.epochs and train.lr enough?"
        )
    return f"{got}; may the classes be the other way round? {_remedy(name, config)}"


def _remedy(name: str, config: Mapping[str, Any]) -> str:
    """What would turn the classes of a given model round."""
    key, columns = f"checkpoints.{name}.outputs", config.get("columns")
    if columns is None:
        columns = [[], [0]] if config.get("outputs") == 1 else [[0], [1]]
    if max(map(len, columns)) > 1:
        return f"Check {key}: which of its outputs stand for which class."
    turned = {c: outputs for c, outputs in zip(CLASSES, reversed(columns), strict=True) if outputs}
    text = ", ".join(f"{c}: {outputs}" for c, outputs in turned.items())
    return f"If so, set {key} to {{{text}}}, or exchange the two lists of data.classes."


def error_rows(asked: Iterable[Question]) -> list[dict[str, Any]]:
    """The questions as rows of the table ``errors``."""
    return [{"path": q.checkpoint, "image_id": None, "stage": f"{STAGE}:{q.trial_id}", "reason": q.text} for q in asked]
