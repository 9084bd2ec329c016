"""A run's tables, as far as hypotheses need them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.config import Sweep


@dataclass(frozen=True)
class Inputs:
    """A run's tables, as far as hypotheses need them; partition columns are columns.

    Attributes:
        sweep: the resolved sweep.
        primary: whose maps the hypotheses are about, and how these are measured.
        trials: the whole table.
        predictions: the whole table.
        patients: image_id to patient_id.
        regions: the whole table.
        saliency: trial_id, image_id, target and concentration of the primary explainer.
        faithfulness: trial_id, image_id, target, control, gap, win_rate and p_value of the same explainer, in the
            metric, level, scale, first grid and fill of `primary`.
        donor_swaps: the whole table; no rows where the run lacks it.
        lungs: trial_id, image_id, target, control, mask and enrichment of the same explainer; none without masks.
    """

    sweep: Sweep
    primary: PrimarySettings
    trials: pd.DataFrame
    predictions: pd.DataFrame
    patients: pd.Series
    regions: pd.DataFrame
    saliency: pd.DataFrame
    faithfulness: pd.DataFrame
    donor_swaps: pd.DataFrame
    lungs: pd.DataFrame

    @property
    def test(self) -> pd.DataFrame:
        """Predictions of the test split with patient_id and variant."""
        test = self.predictions[self.predictions["split"] == "test"]
        variant = self.trials.set_index("trial_id")["variant"]
        return test.assign(
            patient_id=test["image_id"].map(self.patients), variant=test["trial_id"].map(variant)
        ).sort_values(["trial_id", "image_id"])

    @property
    def setting(self) -> str:
        """What `faithfulness` is measured with, in words."""
        return f"{self.primary.label}, grid {self.primary.first_grid}, fill {self.primary.fill}, PNEUMONIA, log-odds"

    def maps(self, test: pd.DataFrame) -> pd.DataFrame:
        """Maps of the primary explainer towards PNEUMONIA, with predictions and patients."""
        maps = self.saliency[self.saliency["target"] == 1]
        return test.merge(maps[["trial_id", "image_id", "concentration"]], on=["trial_id", "image_id"])
