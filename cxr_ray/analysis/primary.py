"""Primary settings of a run: the one metric, scale, grid, fill, target rule, explainer and level that headlines are of.

They follow from the sweep, and the fill also from the validation split: the first that is a valid baseline for every
model. They are fixed before test is scored, and are chosen here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads

from cxr_ray.config import Sweep, explained
from cxr_ray.errors import DamagedRunError, RunError
from cxr_ray.measure import metrics
from cxr_ray.measure.metrics import METRICS
from cxr_ray.results import Run
from cxr_ray.storage import sealed_json, unsealed_json

FILE = "primary.json"  # in the run


@dataclass(frozen=True)
class PrimarySettings:
    """What the primary numbers of a run are measured with.

    Attributes:
        metric: abpc where both directions are measured, else deletion_auc (morf) or insertion_auc (lerf); drop where
            the levels are too few for areas.
        scale: logodds.
        directions: those measured, as the sweep lists them.
        grid: of the page, the terminal and accuracy beside faithfulness: pixel if among the sweep's, else the first.
        first_grid: of hypotheses and sanity: the sweep's first. The two differ in a sweep that lists pixel later.
        fill: the sweep's first that is a valid baseline; where none is, the one with the largest smallest share of
            validation images over models, and the metric is of deletion alone.
        target_rule: the sweep's first.
        explainer: gradcam, as in the original study, if among the sweep's, else the first.
        level: of drops, the primary metric or not: the one nearest to 0.25, the original study's.
        baseline_valid: the fill makes a valid baseline for every model; None: not measured, in an older run.
    """

    metric: str
    scale: str
    directions: tuple[str, ...]
    grid: str
    first_grid: str
    fill: str
    target_rule: str
    explainer: str
    level: float
    baseline_valid: bool | None = None

    @property
    def metric_level(self) -> float | None:
        """The level of the primary metric; None: an area."""
        return self.level if METRICS[self.metric].leveled else None

    @property
    def key(self) -> metrics.Key:
        """The primary metric and its level, NaN for an area."""
        return self.metric, np.nan if self.metric_level is None else self.level

    @property
    def tested(self) -> metrics.Tested:
        """What a worker needs to know of it."""
        return metrics.Tested(self.key, self.fill)

    @property
    def deletion_alone(self) -> bool:
        """The primary metric does not read insertion, for which the filled image must be a neutral baseline."""
        return "lerf" not in METRICS[self.metric].directions

    def shows(self, metric: str) -> bool:
        """Whether page and terminal show a metric: no area of insertion where no fill is a valid baseline."""
        reads_insertion = not METRICS[metric].leveled and "lerf" in METRICS[metric].directions
        return self.baseline_valid is not False or not reads_insertion or metric == self.metric

    @property
    def label(self) -> str:
        """The primary metric's name in print."""
        label = METRICS[self.metric].label
        return label if self.metric_level is None else f"{label} at level {self.level:g}"

    def chosen(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows of ``faithfulness`` or ``summary`` are in the primary metric, at its level."""
        same = frame["metric"] == self.metric
        return same if self.metric_level is None else same & (frame["level"] == self.level)

    @property
    def expression(self) -> pads.Expression:
        """The same, to filter a table as it is read."""
        same = pads.field("metric") == self.metric
        return same if self.metric_level is None else same & (pads.field("level") == self.level)

    def to_json(self) -> str:
        """JSON that ``from_json`` reads; a run holds it as FILE."""
        return sealed_json(dataclasses.asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> PrimarySettings:
        """The settings that ``to_json`` wrote. Raises ValueError where they are damaged."""
        values = unsealed_json(text.encode())
        try:
            return cls(**{**values, "directions": tuple(values["directions"])})
        except (KeyError, TypeError) as e:
            raise ValueError(str(e)) from None


def resolve(sweep: Sweep | Mapping[str, Any]) -> PrimarySettings:
    """The primary settings of a sweep, or of its plain data as ``Run.sweep`` reads them."""
    plain = sweep.model_dump() if isinstance(sweep, Sweep) else sweep
    perturb, explainers = plain["perturb"], explained(plain)
    directions = tuple(perturb["orders"])
    grids = [str(grid) for grid in perturb["grids"]]
    return PrimarySettings(
        metric=metrics.primary(directions, perturb["levels"])[0],
        scale="logodds",
        directions=directions,
        grid="pixel" if "pixel" in grids else grids[0],
        first_grid=grids[0],
        fill=perturb["fills"][0],
        target_rule=plain["explain"]["targets"][0],
        explainer="gradcam" if "gradcam" in explainers else explainers[0],
        level=metrics.nearest_level(perturb["levels"]),
    )


def with_baselines(
    settings: PrimarySettings, sweep: Sweep | Mapping[str, Any], baselines: Sequence[Mapping[str, Any]]
) -> PrimarySettings:
    """The settings once the fills are known as baselines, from rows of ``baselines`` of every model.

    A model without a validation image under the primary target rule says nothing of the fills.
    """
    perturb = (sweep.model_dump() if isinstance(sweep, Sweep) else sweep)["perturb"]
    judged = [row for row in baselines if row["target_rule"] == settings.target_rule and row["n"]]
    of_fill = {fill: [row for row in judged if row["fill"] == fill] for fill in perturb["fills"]}
    for fill, rows in of_fill.items():
        if rows and all(row["valid"] for row in rows):
            return dataclasses.replace(settings, fill=fill, baseline_valid=True)
    least = {fill: min((row["share"] for row in rows), default=0.0) for fill, rows in of_fill.items()}
    deletion = [d for d in settings.directions if d == "morf"] or settings.directions
    return dataclasses.replace(
        settings,
        fill=max(least, key=lambda fill: least[fill]),  # the first of two alike
        metric=metrics.primary(deletion, perturb["levels"])[0],
        baseline_valid=False,
    )


def of_run(run: Run) -> PrimarySettings:
    """The settings that a run stores; those of a run that stores none follow from its sweep."""
    if not run.fs.get_file_info(f"{run.root}/{FILE}").is_file:
        return resolve(run.sweep)
    try:
        return PrimarySettings.from_json(json.dumps(run.json(FILE)))
    except (RunError, ValueError):
        raise DamagedRunError(
            f"got {run.path}/{FILE}, which is damaged; expected it as it was written; take it from a copy, or run the "
            "sweep again."
        ) from None
