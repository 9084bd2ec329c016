"""The cards of one model: columns of numbers to filter and sort by, and each image's pictures and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cxr_ray.report.browser import pictures
from cxr_ray.report.browser.masks import MapsOfTarget, Mask, Masking, can_be_drawn, donor_index
from cxr_ray.report.browser.numbers import OUTCOMES, OfExplainer, OfModel
from cxr_ray.report.browser.pictures import Grey
from cxr_ray.report.browser.views import View

WHOLE = 56  # side of the largest map that is kept; a map of this side may have been larger
ROOM = 8e6  # bytes of a model's pictures of controls; above it, one control an explainer is pictured
FILLED = 4000  # bytes of an image under a fill that depends on the mask
TRIED = 4  # images that tell how many they would be


def rounded(values: ArrayLike, digits: int = 3) -> list[float | None]:
    """Numbers for JSON; None for none."""
    return [None if np.isnan(v) else round(float(v), digits) for v in np.asarray(values, float).ravel()]


@dataclass
class CardsOfModel:
    """What the page shows of one model's images."""

    model: OfModel
    view: View

    @cached_property
    def explainers(self) -> Mapping[str, OfExplainer]:
        """Those that were measured."""
        return {e: self.model.of_explainer(e) for e in self.model.data.explainers}

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Each image's place among the model's."""
        return {i: n for n, i in enumerate(self.model.ids)}

    @cached_property
    def masking(self) -> Masking:
        """Of the primary setting."""
        data = self.model.data
        return Masking(data.sweep["seed"], data.first.grid, self.view.size, data.primary.level)

    @cached_property
    def drawn(self) -> Mapping[str, list[str]]:
        """Controls whose first draw is pictured by each explainer's maps: all that can be, where ROOM allows.

        Else the hardest strong one alone, or the first that can be drawn.
        """
        drawable = [c for c in self.model.data.controls if can_be_drawn(c)]
        if self._room(drawable) <= ROOM:
            return dict.fromkeys(self.explainers, drawable)
        rows = self.summary
        hardest = {r["explainer"]: r["control"] for r in rows if r["bucket"] == "all" and r["hardest"]}
        return {e: [hardest[e]] if hardest.get(e) in drawable else drawable[:1] for e in self.explainers}

    def _room(self, controls: Sequence[str]) -> float:
        """Bytes that pictures of these controls would take, told from TRIED images; ``mean_map`` as the others."""
        ids = self.model.ids[:: max(1, len(self.model.ids) // TRIED)][:TRIED]
        sizes = [
            len(json.dumps(self._control(e, c, i, None, self.masking.of_map(i, of.values[i]))))
            for e, of in self.explainers.items()
            for i in ids
            if i in of.values
            for c in controls
            if c != "mean_map"
        ]
        each = float(np.mean(sizes)) if sizes else 0.0
        each += FILLED if pictures.depends_on_mask(self.view.fill) else 0
        return each * len(self.model.ids) * len(self.explainers) * len(controls)

    def prepare(self, pool: ThreadPoolExecutor) -> None:
        """Make what cards share, before threads make the cards."""
        for explainer, maps in self.maps.items():
            if "mean_map" in self.drawn[explainer]:
                maps.sum_ranks(self.masking, pool)

    @cached_property
    def maps(self) -> Mapping[str, MapsOfTarget]:
        """Each explainer's maps, with their donors."""
        ids, target = self.model.ids, self.model.target
        images = self.model.data.tables["images"]
        patients = dict(zip(images["image_id"], images["patient_id"], strict=True))
        predicted = dict(zip(ids, self.model.test["predicted"].tolist(), strict=True))
        lost: dict[str, list[tuple[str, int]]] = {}
        for explainer, of in self.explainers.items():
            for image_id, t in zip(ids, target.tolist(), strict=True):
                if image_id not in of.values:
                    lost.setdefault(image_id, []).append((explainer, t))
        donors = donor_index(predicted, patients, lost)
        targets = dict(zip(ids, target.tolist(), strict=True))
        return {e: MapsOfTarget(e, targets, of.values, donors) for e, of in self.explainers.items()}

    def index(self, order: Sequence[str]) -> dict[str, Any]:
        """Columns over all images of the page, null for those that the model has no score of."""
        place = np.array([self.place.get(i, -1) for i in order])
        test = self.model.test

        def column(values: ArrayLike, digits: int = 3) -> list[float | None]:
            every = np.append(np.asarray(values, float), np.nan)  # the last: of no image
            return rounded(every[place], digits)

        outcomes = {name: k for k, name in enumerate(OUTCOMES)}
        return {
            "outcome": column([outcomes.get(o, np.nan) for o in test["outcome"]], 0),
            "label": column(test["label"], 0),
            "predicted": column(test["predicted"], 0),
            "target": column(self.model.target, 0),
            "prob": column(test["prob_pneumonia"]),
            "logit": column(test["logit_pneumonia"]),
            "levels": self.model.levels,
            "directions": self.model.directions,
            "summary": self.summary,
            "verdicts": self._verdicts(),
            "explainers": {
                e: {
                    "concentration": column(np.where(of.concentration < 0, np.nan, of.concentration), 0),
                    "signed": of.signed,
                    "drawn": self.drawn[e],
                    "area": column(of.half_mass_area),
                    "controls": {
                        control: {
                            "gap": column(c["gap"]),
                            "win_rate": column(c["win_rate"]),
                            "p_value": column(c["p_value"], 4),
                            "draws": int(np.nanmax(c["n_draws"], initial=0)),
                        }
                        for control, c in of.measured.items()
                    },
                }
                for e, of in self.explainers.items()
            },
        }

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """The rows of ``summary`` in the primary metric that compare with a control."""
        rows = self.model.data.primary_rows
        rows = rows[(rows["trial_id"] == self.model.trial_id) & (rows["control"] != "none")]
        names = ["explainer", "control", "bucket", "n", "n_patients", "hardest", "beaten"]
        numbers = ["mean", "lower", "upper", "win_rate", "win_lower", "win_upper"]
        texts = rows[names].astype(object).where(rows[names].notna(), None).to_dict("records")
        values = [dict(zip(numbers, rounded(row), strict=True)) for row in rows[numbers].to_numpy(float)]
        return [{str(k): _plain(v) for k, v in t.items()} | v for t, v in zip(texts, values, strict=True)]

    def _verdicts(self) -> list[dict[str, str]]:
        """What sequential verdicts of the primary target rule said, by explainer, control and bucket."""
        rows = self.model.data.of_model("verdicts", self.model.trial_id)
        rows = rows[rows["target_rule"] == self.model.data.first.rule]
        return [
            {str(k): v for k, v in row.items()}
            for row in rows[["explainer", "control", "bucket", "sentence"]].astype(str).to_dict("records")
        ]

    def card(self, image_id: str, grey: Grey | None) -> dict[str, Any] | None:
        """One image's maps, masks and curves; None where the model has no score of it."""
        if image_id not in self.place:
            return None
        return {e: self._of_explainer(e, image_id, grey) for e in self.explainers}

    def _of_explainer(self, explainer: str, image_id: str, grey: Grey | None) -> dict[str, Any]:
        of, n = self.explainers[explainer], self.place[image_id]
        made: dict[str, Any] = {"curves": {c: _curve(curve.ends(), n) for c, curve in of.curves.items()}}
        made["curves"] = {c: curve for c, curve in made["curves"].items() if curve}
        if image_id in of.lost:
            return {**made, "why": "lost"}
        values = of.values.get(image_id)
        if values is None:
            return made
        approximate = len(values) == WHOLE < self.view.size
        own = self.masking.of_map(image_id, values)
        made |= {
            "map": pictures.heat(values),
            "mask": pictures.mask(own, approximate),
            "deleted": self.view.deleted(image_id, grey, own),
        }
        pictured = {c: self._control(explainer, c, image_id, grey, own) for c in self.drawn[explainer]}
        made["controls"] = {name: picture for name, picture in pictured.items() if picture is not None}
        return made

    def _control(self, explainer: str, name: str, image_id: str, grey: Grey | None, own: Mask) -> dict[str, Any] | None:
        """The pictures of a control's first draw; None where the image has none."""
        of = self.explainers[explainer]
        control = self.maps[explainer].control(name, self.masking, image_id)
        if control is None:
            return None
        approximate = len(of.values[image_id]) == WHOLE < self.view.size
        stored = float(of.curves[name].overlap[self.place[image_id]]) if name in of.curves else np.nan
        differs = abs((own & control.mask).sum() / own.sum() - stored) > 1 / self.masking.n
        return {
            "map": None if control.values is None else pictures.heat(control.values),
            "signed": of.signed and control.image_id is not None,
            "mask": pictures.mask(control.mask, approximate),
            "deleted": self.view.deleted(image_id, grey, control.mask),
            "of": control.image_id,
            "differs": approximate if np.isnan(stored) else bool(differs),
        }


def _curve(ends: tuple[Any, Any, Any], n: int) -> list[list[list[float | None]]] | None:
    """[direction][first draw, least, most][level]; None where nothing was measured."""
    first, low, high = (end[n] for end in ends)
    if np.isnan(first).all():
        return None
    return [[rounded(end[o]) for end in (first, low, high)] for o in range(len(first))]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
