"""Primary settings of a run: the one metric, scale, grid, fill, target rule, explainer and level that headlines are of.

They follow from the sweep alone, before any number is known, and are chosen here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_ray.config import Sweep
from cxr_ray.errors import RunError
from cxr_ray.measure import metrics
from cxr_ray.results import Run

ORIGINAL_LEVEL = 0.25  # share of pixels that the original Grad-CAM findings study deleted
FILE = "primary.json"  # in the run


@dataclass(frozen=True)
class PrimarySettings:
    """What the primary numbers of a run are measured with.

    Attributes:
        metric: abpc where both directions are measured, else deletion_auc (morf) or insertion_auc (lerf).
        scale: logodds.
        directions: those measured, as the sweep lists them.
        grid: of the page, the terminal and accuracy beside faithfulness: pixel if among the sweep's, else the first.
        first_grid: of hypotheses and sanity: the sweep's first. The two differ in a sweep that lists pixel later.
        fill: the sweep's first.
        target_rule: the sweep's first.
        explainer: gradcam, as in the original study, if among the sweep's, else the first.
        level: of drops: the one nearest to 0.25, the original study's; the smaller of two equally near.
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

    def to_json(self) -> str:
        """JSON that ``from_json`` reads; a run holds it as FILE."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PrimarySettings:
        """The settings that ``to_json`` wrote."""
        values = json.loads(text)
        return cls(**{**values, "directions": tuple(values["directions"])})


def resolve(sweep: Sweep | Mapping[str, Any]) -> PrimarySettings:
    """The primary settings of a sweep, or of its plain data as ``Run.sweep`` reads them."""
    plain = sweep.model_dump() if isinstance(sweep, Sweep) else sweep
    perturb, explainers = plain["perturb"], plain["explain"]["explainers"]
    directions = tuple(perturb["orders"])
    grids = [str(grid) for grid in perturb["grids"]]
    return PrimarySettings(
        metric=metrics.primary(directions),
        scale="logodds",
        directions=directions,
        grid="pixel" if "pixel" in grids else grids[0],
        first_grid=grids[0],
        fill=perturb["fills"][0],
        target_rule=plain["explain"]["targets"][0],
        explainer="gradcam" if "gradcam" in explainers else explainers[0],
        level=nearest_level(perturb["levels"]),
    )


def of_run(run: Run) -> PrimarySettings:
    """The settings that a run stores; those of a run that stores none follow from its sweep."""
    try:
        stored = run.json(FILE)
    except RunError:
        return resolve(run.sweep)
    return PrimarySettings.from_json(json.dumps(stored))


def nearest_level(levels: Sequence[float]) -> float:
    """The level nearest to the original study's.

    >>> nearest_level([0.1, 0.3, 0.5])
    0.3
    """
    return min(sorted(levels), key=lambda level: abs(level - ORIGINAL_LEVEL))
