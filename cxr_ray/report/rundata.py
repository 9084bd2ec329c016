"""A run as its page needs it: the tables, read once, and the settings that they were made with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from cxr_ray.analysis import class_order
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.class_order import Question
from cxr_ray.analysis.model_names import model_names
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.config import explained
from cxr_ray.measure.controls import strong_first
from cxr_ray.results import Run

WHOLE_MODELS = 6  # models shown with everything; of the others the primary table stands on the page


@dataclass(frozen=True)
class Setting:
    """What a number was measured with."""

    rule: str
    grid: str
    fill: str

    def __str__(self) -> str:
        return f"grid {self.grid}, fill {self.fill}, target rule {self.rule}"

    @property
    def slug(self) -> str:
        """For file names."""
        return f"{self.rule}-{self.grid}-{self.fill}"

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of ``summary`` that were measured so."""
        same = (frame["target_rule"] == self.rule) & (frame["grid"] == self.grid) & (frame["fill"] == self.fill)
        return frame[same]


@dataclass(frozen=True)
class RunData:
    """A run's tables in the order of the page.

    Attributes:
        run: for the tables of single images, which are read where they are drawn.
        sweep, provenance: the resolved sweep, and where it was made.
        primary: the settings of the primary analysis.
        models: those that were explained, the highest val_auroc first.
        trials: the whole table, in the same order.
        summary: of models after the first WHOLE_MODELS the primary metric alone.
        predictions: the test split.
        tables: the other small tables, whole.
    """

    run: Run
    sweep: Mapping[str, Any]
    provenance: Mapping[str, Any]
    primary: PrimarySettings
    models: Sequence[str]
    trials: pd.DataFrame
    summary: pd.DataFrame
    predictions: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]

    @property
    def whole(self) -> Sequence[str]:
        """Models that are shown with everything."""
        return self.models[:WHOLE_MODELS]

    @property
    def explainers(self) -> Sequence[str]:
        """In the sweep's order, maps from outside last."""
        return explained(self.sweep)

    @property
    def rules(self) -> Sequence[str]:
        """Target rules, in the sweep's order."""
        return self.sweep["explain"]["targets"]

    @property
    def fills(self) -> Sequence[str]:
        """In the sweep's order."""
        return self.sweep["perturb"]["fills"]

    @property
    def levels(self) -> Sequence[float]:
        """From the lowest."""
        return sorted(self.sweep["perturb"]["levels"])

    @cached_property
    def controls(self) -> Sequence[str]:
        """Those that were measured, strong ones first."""
        return strong_first(set(self.buckets["control"]) - {"none"})

    @cached_property
    def class_order(self) -> Sequence[Question]:
        """Models whose classes may be the other way round."""
        return class_order.questions(self.tables["classification"], self.trials)

    @property
    def first(self) -> Setting:
        """The primary setting."""
        return Setting(self.primary.target_rule, self.primary.grid, self.primary.fill)

    @property
    def settings(self) -> Sequence[Setting]:
        """All settings, the primary one first."""
        grids = [str(g) for g in self.sweep["perturb"]["grids"]]
        every = [Setting(*s) for s in itertools.product(self.rules, grids, self.fills)]
        return sorted(every, key=lambda s: s != self.first)

    @property
    def metric(self) -> str:
        """The primary metric's name in print."""
        return self.primary.label

    @cached_property
    def buckets(self) -> pd.DataFrame:
        """Rows of ``summary`` of the buckets of the page, without contrasts."""
        return self.summary[~self.summary["contrast"].astype(bool) & self.summary["bucket"].isin(BUCKETS)]

    @property
    def primary_rows(self) -> pd.DataFrame:
        """Rows of ``buckets`` in the primary metric, scale and setting."""
        part = self.first.rows(self.buckets)
        return part[self.primary.chosen(part) & (part["scale"] == self.primary.scale)]

    @cached_property
    def names(self) -> Mapping[str, str]:
        """trial_id to the model's name for people."""
        return model_names(self.trials[self.trials["trial_id"].isin(self.models)])

    def name(self, trial_id: str) -> str:
        """The model's name for people; of a model that was not explained, its trial_id."""
        return self.names.get(trial_id, trial_id)

    def of_model(self, table: str, trial_id: str) -> pd.DataFrame:
        """The rows of a table that are of one model."""
        frame = self.tables[table]
        return frame[frame["trial_id"] == trial_id]

    def agreement(self, kind: str, subject: str | None = None) -> pd.DataFrame:
        """The rows of ``agreement`` of one kind, and of one subject."""
        frame = self.tables["agreement"]
        same = frame["kind"] == kind
        return frame[same if subject is None else same & (frame["subject"] == subject)]

    def test_of(self, trial_id: str) -> pd.DataFrame:
        """The model's predictions on the test split."""
        return self.predictions[self.predictions["trial_id"] == trial_id]

    def regions(self, trial_id: str) -> pd.DataFrame:
        """The model's rows of the table ``regions``."""
        return self.run.pandas("regions", filter=pc.field("trial_id") == trial_id)

    def drawn(self, trial_id: str, setting: Setting) -> bool:
        """Whether figures are drawn: of the primary setting, and of the first model in all. Each takes a second."""
        return setting == self.first or trial_id == self.models[0]
