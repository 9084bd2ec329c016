"""Settings of two runs: the keys in which they differ, and those in which their maps are compared.

Maps are compared in one setting where both runs measured it. Where they share none, each is taken in its own primary
target rule, grid and fill: the difference is then of models, maps and settings together, which is said wherever it
stands. The metric, its level and the scale are always one and the same, since areas of other curves have other sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow.dataset as pads

from cxr_ray.analysis import primary
from cxr_ray.analysis.model_names import flat
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.errors import RunError
from cxr_ray.measure.metrics import METRICS
from cxr_ray.results import Run
from cxr_ray.schemas import to_json

PLACE, METRIC = ("target_rule", "grid", "fill"), ("metric", "level", "scale")
SETTING = (*PLACE, *METRIC)
WORDS = {"target_rule": "the target", "grid": "the grid", "fill": "the fill"}
PROVENANCE = ("cxr_ray", "schema_version", "data_fingerprint", "python", "versions", "machine", "checkpoints", "maps")
Setting = dict[str, Any]  # SETTING; level None for areas


@dataclass(frozen=True)
class Pair:
    """The reference and another run, with the names that the user gave them."""

    reference: str
    run: str
    a: Run
    b: Run

    @property
    def names(self) -> dict[str, Any]:
        """The columns that every row has."""
        return {"reference": self.reference, "run": self.run}


@dataclass(frozen=True)
class Compared:
    """In which settings maps of two models are compared.

    Attributes:
        reference, run: the setting of each; the same, or one that differs in PLACE.
        told: what the user must know of the choice, if anything.
    """

    reference: Setting
    run: Setting
    told: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """Of a row of ``run_differences``."""
        place = {key: self.run[key] for key in PLACE}
        same = all(self.reference[key] == place[key] for key in PLACE)
        return {**self.reference, "setting_run": None if same else to_json(place)}


def differing(pair: Pair, models: Sequence[tuple[str, str]] = ()) -> Iterator[dict[str, Any]]:
    """Rows of ``run_settings``: the keys under which the runs differ.

    Args:
        pair: the runs.
        models: trial_id of the reference and of the other run; what is said of the second stands under the first.
    """
    renamed = {b: a for a, b in models}
    a, b = _settings_of(pair.a), {_renamed(key, renamed): value for key, value in _settings_of(pair.b).items()}
    for key in dict.fromkeys([*a, *b]):
        one, other = (to_json(of[key]) if key in of else None for of in (a, b))
        if one != other:
            yield {**pair.names, "key": key, "value": one, "value_run": other}


def _renamed(key: str, renamed: Mapping[str, str]) -> str:
    for section in ("checkpoints.", "provenance.checkpoints."):
        if key.startswith(section):
            name, dot, rest = key.removeprefix(section).partition(".")
            return f"{section}{renamed.get(name, name)}{dot}{rest}"
    return key


def _settings_of(run: Run) -> dict[str, Any]:
    try:
        known = run.json("provenance.json")
    except RunError:
        known = {}
    provenance = {key: known[key] for key in PROVENANCE if key in known}
    return {**flat(json.dumps(run.sweep, default=str)), **flat(json.dumps({"provenance": provenance}, default=str))}


def compared(pair: Pair, models: tuple[str, str]) -> tuple[Compared | None, str]:
    """The settings in which maps of two models are compared; or None, and why there are none."""
    found = [_measured(run, trial) for run, trial in zip((pair.a, pair.b), models, strict=True)]
    chosen = [primary.of_run(run) for run in (pair.a, pair.b)]
    for label, settings in zip((pair.reference, pair.run), found, strict=True):
        if not settings:
            return None, f"{label} compared no map with a control: accuracy and AUROC alone are compared."
    shared = [s for s in found[0] if s in found[1]]
    wanted = [_plain(settings) for settings in chosen]
    for setting in (*wanted, *shared):
        if setting in shared and all(of.shows(setting["metric"]) for of in chosen):
            told = "" if setting == wanted[0] else _instead(pair, wanted[0], setting, chosen[1])
            return Compared(setting, setting, told), ""
    return _own(pair, found, chosen)


def _instead(pair: Pair, wanted: Setting, setting: Setting, other: PrimarySettings) -> str:
    why = f"is not in {pair.run}"
    if not other.shows(wanted["metric"]):
        why = f"needs a valid baseline, which {pair.run} does not have"
    return f"The primary setting of {pair.reference} {why}: maps are compared in {said(setting)}."


def _own(
    pair: Pair, found: Sequence[Sequence[Setting]], chosen: Sequence[PrimarySettings]
) -> tuple[Compared | None, str]:
    """Each run in its own target rule, grid and fill, in a metric that both measured there."""
    places = [{key: getattr(of, key) for key in PLACE} for of in chosen]
    metrics = [
        [{key: s[key] for key in METRIC} for s in of if all(s[key] == place[key] for key in PLACE)]
        for of, place in zip(found, places, strict=True)
    ]
    differ = [key for key in PLACE if places[0][key] != places[1][key]]
    why = " and ".join(f"{WORDS[key]} ({places[0][key]}, {places[1][key]})" for key in differ)
    for metric in ({key: _plain(of)[key] for key in METRIC} for of in chosen):
        if all(metric in of for of in metrics) and all(of.shows(metric["metric"]) for of in chosen):
            a, b = ({**place, **metric} for place in places)
            return Compared(
                a,
                b,
                f"{pair.reference} and {pair.run} differ in {why}, and measured no map in one setting. Each is taken "
                f"in its own, in {metric_of(metric)}: a difference of maps may come from these settings as well as "
                "from models and maps.",
            ), ""
    return None, (
        f"{pair.reference} and {pair.run} share no metric of maps (they differ in {why or 'their metrics'}), and areas "
        "of other curves have other sizes: accuracy and AUROC alone are compared."
    )


def _measured(run: Run, trial: str) -> list[Setting]:
    """The settings in which the maps of a model were compared with a control."""
    chosen = (pads.field("trial_id") == trial) & (pads.field("bucket") == "all") & (pads.field("control") != "none")
    frame = run.pandas("summary", list(SETTING), chosen).drop_duplicates()
    return [
        {key: None if pd.isna(value) else value for key, value in zip(SETTING, row, strict=True)}
        for row in frame.itertuples(index=False)
    ]


def _plain(settings: PrimarySettings) -> Setting:
    values = {key: getattr(settings, key) for key in (*PLACE, "metric", "scale")}
    return {**values, "level": settings.metric_level}


def metric_of(setting: Mapping[str, Any]) -> str:
    """The metric in words, with its level and scale."""
    level = "" if pd.isna(setting["level"]) else f" at {setting['level']:g}"
    scale = {"logodds": "log-odds", "prob": "probability"}[setting["scale"]]
    return f"{METRICS[setting['metric']].label}{level}, {scale}"


def said(setting: Mapping[str, Any]) -> str:
    """A setting in words."""
    place = f"grid {setting['grid']}, fill {setting['fill']}, target {setting['target_rule']}"
    return f"{metric_of(setting)}, {place}"
