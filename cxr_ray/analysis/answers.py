"""The answer of a run in words: of each model and explainer one sentence that claims no more than its intervals.

The terminal's last lines and the first screen of the page are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow.dataset as pads

from cxr_ray.analysis import beating, class_order, primary
from cxr_ray.analysis.model_names import model_names
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.analysis.sequential_verdicts import title
from cxr_ray.config import explained
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.results import Run

UNSETTLED = "no answer before it is settled which output stands for which class"
UNMEASURED = "not compared with a control"
ALONE = "no strong control was measured"
GROUPS = {  # how a control fares, to the words before the controls
    "beaten": "more faithful than {}",
    "on average": "more faithful on average than {}, not shown to win more often than it loses",
    "often": "wins more often than it loses against {}, not shown to be more faithful on average",
    "open": "not shown to be better than {}",
    "worse": "less faithful than {}",
}


@dataclass(frozen=True)
class Answer:
    """What a run shows of one explainer on one model, over all test images.

    Attributes:
        trial_id: the model.
        model: its name for people.
        explainer: whose maps they are.
        claim: the words after the subject.
        rows: of ``summary`` behind the claim, a control a row; the one with the smallest mean advantage last.
    """

    trial_id: str
    model: str
    explainer: str
    claim: str
    rows: pd.DataFrame

    @property
    def subject(self) -> str:
        """Explainer and model."""
        return f"{title(self.explainer)} on {self.model}"

    @property
    def sentence(self) -> str:
        """One sentence, such as "Grad-CAM on plain: more faithful than shifted maps."."""
        return f"{self.subject}: {self.claim}."


def of_run(run: Run) -> list[Answer]:
    """The answers of a finished run, read from its tables: the primary explainer of each model first."""
    settings, trials = primary.of_run(run), run.pandas("trials")
    field = pads.field
    summary = run.pandas("summary", filter=settings.expression & (field("bucket") == "all") & ~field("contrast"))
    asked = [question.trial_id for question in class_order.questions(run.pandas("classification"), trials)]
    of_models = trials[trials["trial_id"].isin(summary["trial_id"])]
    of_models = of_models.sort_values("val_auroc", ascending=False, kind="stable", na_position="last")
    return answers(summary, of_models, settings, explained(run.sweep), asked)


def answers(
    summary: pd.DataFrame,
    trials: pd.DataFrame,
    settings: PrimarySettings,
    explainers: Sequence[str],
    unsettled: Iterable[str] = (),
) -> list[Answer]:
    """An answer of each model and explainer that ``summary`` holds; the primary explainer's of all models first.

    Args:
        summary: rows of the table; those of other settings, buckets and contrasts are left out here.
        trials: the models, in their order: trial_id, variant, seed, status, config.
        settings: the primary settings of the run.
        explainers: in their order.
        unsettled: models whose classes may be the other way round; nothing is claimed of them.
    """
    rows = primary_rows(summary, settings)
    names, unsettled = model_names(trials), set(unsettled)
    order = sorted(explainers, key=lambda e: e != settings.explainer)
    found = []
    for explainer in order:
        for trial_id, name in names.items():
            mine = rows[(rows["trial_id"] == trial_id) & (rows["explainer"] == explainer)]
            if len(mine):
                compared = mine[mine["control"] != "none"].sort_values("mean", ascending=False, kind="stable")
                said = UNSETTLED if trial_id in unsettled else claim(compared)
                found.append(Answer(trial_id, name, explainer, said, compared))
    return found


def primary_rows(summary: pd.DataFrame, settings: PrimarySettings) -> pd.DataFrame:
    """The rows over all test images in the primary metric, scale and setting."""
    same = settings.chosen(summary) & (summary["bucket"] == "all") & ~summary["contrast"].astype(bool)
    for column in ("scale", "grid", "fill", "target_rule"):
        same &= summary[column] == getattr(settings, column)
    return summary[same]


def claim(rows: pd.DataFrame) -> str:
    """What the comparisons show, in words.

    Beaten takes both tests and both intervals (``beating.beaten``). A map is called less faithful where the intervals
    of mean advantage and win rate both lie wholly below chance; no correction for several comparisons enters there.

    Args:
        rows: of ``summary``, a control a row, in the order in which controls are named.
    """
    records: list[Any] = list(rows.itertuples(index=False))
    if not records:
        return UNMEASURED
    groups: dict[str, list[str]] = {name: [] for name in GROUPS}
    untested: dict[str, list[str]] = {}
    for r in records:
        place = standing(r)
        if place is None:
            untested.setdefault(beating.in_words(r).partition(";")[0], []).append(phrase(r.control))
        else:
            groups[place].append(phrase(r.control))
    parts = [GROUPS[name].format(listed(names)) for name, names in groups.items() if names]
    for why, names in untested.items():
        against = "any control" if len(names) == len(records) > 1 else listed(names)
        parts.append(why.replace("not tested", f"not tested against {against}"))
    if not any(CONTROLS[r.control].strong for r in records if r.control in CONTROLS):
        parts.append(ALONE)
    return "; ".join(parts)


def standing(r: Any) -> str | None:
    """How a map fares against a control: a key of GROUPS; None: not tested."""
    if pd.isna(r.beaten):
        return None
    if r.beaten == beating.YES:
        return "beaten"
    if r.beaten == beating.DIFFERS:
        return "on average" if r.mean_p_holm < beating.ALPHA and r.lower > 0 else "often"
    return "worse" if r.upper < 0 and r.win_upper < 0.5 else "open"


def phrase(control: str) -> str:
    """A control in a sentence."""
    known = CONTROLS[control].phrase if control in CONTROLS else ""
    return known or f"the control {control}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
