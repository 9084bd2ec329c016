"""A run whose images are measured: what its statistics read, a model at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow.dataset as pads

from cxr_ray import results
from cxr_ray.analysis import buckets, primary, ranks
from cxr_ray.config import explained
from cxr_ray.errors import RunError

Rows = list[dict[str, Any]]

SCALE = "logodds"  # of comparisons of explainers


@dataclass(frozen=True)
class Measured:
    """A run whose images are measured, and what all statistics need of it, read once."""

    run: results.Run
    _predictions: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @cached_property
    def sweep(self) -> Mapping[str, Any]:
        """The resolved sweep, as plain data."""
        return self.run.sweep

    @cached_property
    def primary(self) -> primary.PrimarySettings:
        """What the primary numbers are measured with."""
        return primary.of_run(self.run)

    @cached_property
    def ranked(self) -> tuple[Rows, Rows]:
        """The rows of `comparisons` and of `ranks`, which come from the same bootstrap."""
        comparisons: Rows = []
        rank_rows: Rows = []
        for trial_id in self.explained:
            values = self.map_values(trial_id)
            for rule in self.target_rules:
                of_rule = buckets.of_rule(values, self.test_of(trial_id), rule)
                for (grid, fill), part in of_rule.groupby(["grid", "fill"], sort=False):
                    same = {"trial_id": trial_id, "target_rule": rule, "grid": grid, "fill": fill, "scale": SCALE}
                    same["level"] = self.primary.metric_level
                    explainers = explained(self.sweep)
                    found = ranks.compare_explainers(
                        part, self.patients, explainers, self.primary.metric, seed=self.seed
                    )
                    for rows, more in zip((comparisons, rank_rows), found, strict=True):
                        rows += [{**same, **row} for row in more]
        return comparisons, rank_rows

    def map_values(self, trial_id: str) -> pd.DataFrame:
        """The primary metric of a model's maps themselves, in log-odds, image by image."""
        chosen = (pads.field("trial_id") == trial_id) & self.primary.expression
        chosen &= (pads.field("control") == "none") & (pads.field("scale") == SCALE)
        columns = ["image_id", "target", "explainer", "grid", "fill", "value"]
        return self.run.pandas("faithfulness", columns, chosen)

    @property
    def seed(self) -> int:
        """The sweep's, of every bootstrap and permutation."""
        return int(self.sweep["seed"])

    @property
    def target_rules(self) -> list[str]:
        """As the sweep lists them."""
        return list(self.sweep["explain"]["targets"])

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The table, by trial_id."""
        return self.run.pandas("trials").set_index("trial_id")

    @cached_property
    def patients(self) -> pd.Series:
        """image_id to patient_id."""
        return self.run.pandas("images", ["image_id", "patient_id"]).set_index("image_id")["patient_id"]

    @cached_property
    def explained(self) -> list[str]:
        """Models with predictions, in the order of `trials`."""
        return [t for t in self.trials.index if self.run.count_rows("predictions", pads.field("trial_id") == t)]

    def predictions_of(self, trial_id: str) -> pd.DataFrame:
        """A model's rows of `predictions`."""
        if trial_id not in self._predictions:
            self._predictions.clear()  # of one model at a time
            found = self.run.pandas("predictions", filter=pads.field("trial_id") == trial_id)
            self._predictions[trial_id] = found.drop(columns="trial_id")
        return self._predictions[trial_id]

    def test_of(self, trial_id: str) -> pd.DataFrame:
        """A model's predictions on the test split."""
        predictions = self.predictions_of(trial_id)
        return predictions[predictions["split"] == "test"]

    def of_trial(self, name: str, trial_id: str, columns: list[str] | None = None) -> pd.DataFrame:
        """A model's rows of a table; none where the run lacks it."""
        try:
            return self.run.pandas(name, columns, pads.field("trial_id") == trial_id)
        except RunError:
            return pd.DataFrame(columns=columns)
