"""A run as its report needs it: what every section reads, loaded once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import pyarrow.compute as pc
from matplotlib.figure import Figure

from cxr_ray import results
from cxr_ray.analysis import findings
from cxr_ray.analysis.findings import BUCKETS
from cxr_ray.errors import RunError
from cxr_ray.report import figures, galleries, page
from cxr_ray.report.page import Block
from cxr_ray.storage import Store

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

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of ``summary`` that were measured so."""
        same = (frame["target_rule"] == self.rule) & (frame["grid"] == self.grid) & (frame["fill"] == self.fill)
        return frame[same]


class Loaded:
    """The run, its models in order of val_auroc, its settings and its summary."""

    def __init__(self, run: results.Run, data_path: str | None):
        self.run, self.sweep, self.store = run, run.sweep, Store(run.path, {})
        self.images = galleries.Images(run, data_path)
        self.predictions = run.pandas("predictions", ["trial_id", "image_id", "split", "label", "prob_pneumonia",
                                                      "logit_pneumonia", "predicted", "outcome"])  # fmt: skip
        self.test = self.predictions[self.predictions["split"] == "test"]
        if lacking := {"name", "data", "explain", "perturb", "controls", "seed"} - set(self.sweep):
            raise RunError(
                f"{run.path}/sweep.yaml is not that of a run ({', '.join(sorted(lacking))} missing). Run it again."
            )
        every = run.pandas("trials")
        self.trials = every.sort_values("val_auroc", ascending=False, kind="stable", na_position="last")
        explained = set(self.predictions["trial_id"])
        self.models = [t for t in self.trials["trial_id"] if t in explained]
        self.whole = self.models[:WHOLE_MODELS]
        perturb = self.sweep["perturb"]
        self.levels, self.orders = sorted(perturb["levels"]), perturb["orders"]
        self.level = findings.nearest_level(self.levels)
        self.explainers: list[str] = self.sweep["explain"]["explainers"]
        self.main = "gradcam" if "gradcam" in self.explainers else self.explainers[0]
        grids = sorted(perturb["grids"], key=lambda g: g != "pixel")  # the study's first
        self.settings = [
            Setting(*s) for s in itertools.product(self.sweep["explain"]["targets"], grids, perturb["fills"])
        ]
        self.first = self.settings[0]
        both = len(self.orders) == 2
        self.primary = "abpc" if both else "deletion_auc" if "morf" in self.orders else "insertion_auc"
        # Of models that are not shown whole, the primary metric alone.
        wanted = pc.field("trial_id").isin(self.whole) | (
            (pc.field("metric") == self.primary) & (pc.field("scale") == "logodds")
        )
        summary = run.pandas("summary", filter=~pc.field("contrast") & pc.field("bucket").isin(BUCKETS) & wanted)
        for column, order in (("bucket", BUCKETS), ("explainer", self.explainers), ("fill", perturb["fills"])):
            summary[column] = pd.Categorical(summary[column], order, ordered=True)
        self.summary = summary.sort_values(["explainer", "bucket", "fill", "level"], kind="stable")
        self.controls = sorted(set(summary["control"]) - {"none"}, key=page.strength)

    def each(
        self, blocks: Callable[[Loaded, str], Iterable[Block]], models: Sequence[str] | None = None
    ) -> list[tuple[str, list[Block]]]:
        """(model, its blocks) for each model that has any."""
        found = [(t, list(blocks(self, t))) for t in (self.whole if models is None else models)]
        return [(t, b) for t, b in found if b]

    def optional(self, name: str, trial_id: str | None = None) -> pd.DataFrame:
        """A table that an older run may lack."""
        try:
            return self.run.pandas(name, filter=None if trial_id is None else pc.field("trial_id") == trial_id)
        except RunError:
            return pd.DataFrame()

    def test_of(self, trial_id: str) -> pd.DataFrame:
        """The model's predictions on the test split."""
        return self.test[self.test["trial_id"] == trial_id]

    @cached_property
    def patients(self) -> dict[str, str]:
        """image_id to patient_id, test split."""
        table = self.run.pandas("images", ["image_id", "patient_id"], pc.field("split") == "test")
        return dict(zip(table["image_id"], table["patient_id"], strict=True))

    def drawn(self, trial_id: str, setting: int) -> bool:
        """Figures are drawn for the first setting, and for the first model in all of them: each takes a second."""
        return setting == 0 or trial_id == self.models[0]

    @cached_property
    def valid_shares(self) -> dict[str, dict[str, float]]:
        """Share of images whose filled image is a baseline, by model and fill; first target rule, main explainer."""
        shares = {}
        for trial_id in self.whole:
            valid = self.run.valid_baselines(self.primary, trial_id)
            valid = findings.of_rule(valid, self.test_of(trial_id), self.first.rule)
            valid = valid[(valid["explainer"] == self.main) & (valid["grid"] == self.first.grid)]
            shares[trial_id] = {str(f): float(s) for f, s in valid.groupby("fill")["baseline_valid"].mean().items()}
        return shares

    def picture(self, figure: Figure, inline: bool, name: str, alt: str, caption: str) -> Block:
        """Writes the figure as a file, and hands it to the page: inside it, or as a link."""
        png = figures.to_png(figure)
        self.store.write(png, "figures", name)
        return {
            "kind": "picture", "png": page.base64_of(png) if inline else None, "file": f"figures/{name}", "alt": alt,
            "caption": caption,
        }  # fmt: skip
