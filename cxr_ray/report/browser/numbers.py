"""What the cards of one model say, read from its tables: a column an image, NaN where nothing was measured.

Shapes: N test images of the model, D draws, O directions, L levels with 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr_ray.measure.concentration import CONCENTRATIONS
from cxr_ray.report.browser.masks import Values
from cxr_ray.report.rundata import RunData
from cxr_ray.schemas import SHARED

Floats = NDArray[np.floating]
OUTCOMES = ("TP", "FP", "FN", "TN")
PER_CONTROL = ("gap", "win_rate", "control_mean", "n_draws", "p_value")  # columns of faithfulness
DIRECTIONS = ("morf", "lerf")


@dataclass(frozen=True)
class Curve:
    """Log-odds of the target along the levels, [N, D, O, L], and ``curves.overlap`` of the first draw's deletion."""

    logit: Floats
    overlap: Floats

    def ends(self) -> tuple[Floats, Floats, Floats]:
        """The first draw, and the least and the most over draws, each [N, O, L]."""
        filled = np.isnan(self.logit)
        low = np.where(filled, np.inf, self.logit).min(1)
        high = np.where(filled, -np.inf, self.logit).max(1)
        none = filled.all(1)
        return self.logit[:, 0], np.where(none, np.nan, low), np.where(none, np.nan, high)


@dataclass(frozen=True)
class OfExplainer:
    """One explainer's numbers.

    Attributes:
        concentration: places in CONCENTRATIONS, [N]; -1: none.
        half_mass_area: [N].
        values: image_id to the finite map that was kept.
        signed: whether any map holds negative values.
        degenerate: image ids whose map is constant.
        lost: image ids whose map is not finite.
        measured: by control the columns PER_CONTROL, [N] each.
        curves: by control, ``none`` for the map itself.
    """

    concentration: NDArray[np.int64]
    half_mass_area: Floats
    values: Mapping[str, Values]
    signed: bool
    degenerate: frozenset[str]
    lost: frozenset[str]
    measured: Mapping[str, Mapping[str, Floats]]
    curves: Mapping[str, Curve]


@dataclass
class OfModel:
    """One model's test images and numbers, in the primary setting of the run.

    Attributes:
        data: the run.
        trial_id: the model.
        test: its predictions on test, in the order of the table ``images``.
        target: the explained class of each, [N].
    """

    data: RunData
    trial_id: str
    test: pd.DataFrame = field(init=False)
    target: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        order = self.data.tables["images"]["image_id"]
        found = self.data.test_of(self.trial_id).drop_duplicates("image_id").set_index("image_id")
        self.test = found.reindex([i for i in order if i in found.index])
        rule = self.data.first.rule
        self.target = np.where(rule == "pneumonia", 1, self.test["predicted"].to_numpy(np.int64)).astype(np.int64)

    @cached_property
    def ids(self) -> list[str]:
        """The images, N."""
        return list(self.test.index)

    @cached_property
    def levels(self) -> list[float]:
        """Of the curves, with 0 and 1."""
        return [0.0, *self.data.levels, 1.0]

    @cached_property
    def directions(self) -> list[str]:
        """Those measured."""
        return [d for d in DIRECTIONS if d in self.data.primary.directions]

    @property
    def place_of_level(self) -> int:
        """Where the level of drops stands among ``levels``."""
        return self.levels.index(self.data.primary.level)

    def of_explainer(self, explainer: str) -> OfExplainer:
        """What was measured of one explainer's maps."""
        columns = ["image_id", "target", "map", "map_height", "map_width", "degenerate", "concentration"]
        maps = self._rows("saliency", explainer, [*columns, "half_mass_area"])
        place = maps.pop("place").to_numpy()
        kind, area = np.full(len(self.ids), -1), np.full(len(self.ids), np.nan)
        names = {name: k for k, name in enumerate(CONCENTRATIONS)}
        kind[place] = [names.get(k, -1) if isinstance(k, str) else -1 for k in maps["concentration"]]
        area[place] = maps["half_mass_area"].to_numpy(float)
        values, lost = {}, set()
        for row in maps.to_dict("records"):
            if row["map"] is None:
                continue
            one = np.asarray(row["map"], np.float32).reshape(row["map_height"], row["map_width"])
            if np.isfinite(one).all():
                values[row["image_id"]] = one
            else:
                lost.add(row["image_id"])
        return OfExplainer(
            kind,
            area,
            values,
            any(v.min() < 0 for v in values.values()),
            frozenset(maps["image_id"][maps["degenerate"].eq(True)]),
            frozenset(lost),
            self._measured(explainer),
            self._curves(explainer) | self._curves(SHARED),
        )

    def _rows(self, table: str, explainer: str, columns: Sequence[str], more: Any = None) -> pd.DataFrame:
        """Rows of the primary target rule, with the place of their image."""
        wanted = (pc.field("trial_id") == self.trial_id) & (pc.field("explainer") == explainer)
        wanted = wanted if more is None else wanted & more
        rows = self.data.run.pandas(table, list(columns), wanted)
        place = pd.Index(self.ids).get_indexer(pd.Index(rows["image_id"]))
        kept = (place >= 0) & (rows["target"].to_numpy() == self.target[place]) if len(self.ids) else place >= 0
        return rows[kept].assign(place=place[kept])

    @property
    def _setting(self) -> Any:
        return (pc.field("grid") == self.data.first.grid) & (pc.field("fill") == self.data.first.fill)

    def _measured(self, explainer: str) -> dict[str, dict[str, Floats]]:
        primary = self.data.primary
        wanted = self._setting & primary.expression & (pc.field("scale") == primary.scale)
        rows = self._rows("faithfulness", explainer, ["image_id", "target", "control", *PER_CONTROL], wanted)
        found: dict[str, dict[str, Floats]] = {}
        for control, part in rows[rows["control"] != "none"].groupby("control", observed=True):
            place = part["place"].to_numpy()
            found[str(control)] = {name: self._column(place, part[name]) for name in PER_CONTROL}
        return found

    def _column(self, place: NDArray[np.integer], values: pd.Series) -> Floats:
        column = np.full(len(self.ids), np.nan)
        column[place] = values.to_numpy(float, na_value=np.nan)
        return column

    def _curves(self, explainer: str) -> dict[str, Curve]:
        columns = ["image_id", "target", "control", "draw", "direction", "level", "logit_target", "overlap"]
        rows = self._rows("curves", explainer, columns, self._setting)
        l_of_row = pd.Index(self.levels).get_indexer(pd.Index(rows["level"]))
        o_of_row = rows["direction"].map({d: o for o, d in enumerate(self.directions)}).fillna(-1).to_numpy(int)
        curves = {}
        for control in rows["control"].unique():
            mine = ((rows["control"] == control) & (o_of_row >= 0) & (l_of_row >= 0)).to_numpy()
            if not mine.any():
                continue
            draw, place = rows["draw"].to_numpy(int)[mine], rows["place"].to_numpy(int)[mine]
            logit = np.full((len(self.ids), draw.max() + 1, len(self.directions), len(self.levels)), np.nan, np.float32)
            overlap = np.full_like(logit, np.nan)
            at = place, draw, o_of_row[mine], l_of_row[mine]
            logit[at] = rows["logit_target"].to_numpy(float, na_value=np.nan)[mine]
            overlap[at] = rows["overlap"].to_numpy(float, na_value=np.nan)[mine]
            curves[str(control)] = Curve(logit, overlap[:, 0, 0, self.place_of_level])
        return curves
