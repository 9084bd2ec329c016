"""The rankings of one explainer's maps, and the controls that are made from or for them.

Shapes: P (image, target) pairs, N of them, D draws, U units (pixels or cells), S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.measure import rankings, smoothness
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.controls import CONTROLS, Draws, of_family
from cxr_ray.measure.curves import Axes, Curves, overlaps, score_rankings, with_equal_masks
from cxr_ray.measure.donors import DonorMaps, Maps
from cxr_ray.measure.transfer import to_device, to_host

Drawn = tuple[Tensor, NDArray[np.bool_]]
"""Rankings int32 [N, D, U], and whether there is such a draw, [N, D]."""


class MapRankings:
    """The rankings of one explainer's maps, and any draws of the controls that are made from or for them.

    Attributes:
        full: the maps at image size, [P, S, S]; those that are not finite are zero.
        controls: those made from or for the maps, with their numbers of draws.
    """

    def __init__(self, batch: Batch, explainer: str, maps: Maps, donor_maps: DonorMaps | None):
        """Take an explainer's maps of the batch's pairs, and the maps of other images where a control needs them."""
        self.batch, self.drawn = batch, maps.drawn
        self.explainer, self.donor_maps = explainer, donor_maps
        own = maps.own.to(batch.device, non_blocking=True)
        self._finite = torch.isfinite(own).flatten(1).all(1)
        self.full = rankings.at_size(torch.where(self._finite[:, None, None], own, 0.0), batch.size)
        self._places: dict[str, Tensor] = {}
        families = {c: CONTROLS[c].family for c in batch.sweep.controls}
        made = [c for c, f in families.items() if f in ("ranking", "other images") or c in maps.drawn]
        self.controls = {c: batch.sweep.controls[c] for c in made}

    def every_control(self, grid: str) -> dict[str, int]:
        """All controls that a grid has, those made from nothing too, with their numbers of draws."""
        asked = self.batch.sweep.controls
        return {c: n for c, n in asked.items() if c in self.controls or c in _from_nothing(asked, grid)}

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """Whether a map is not finite, bool [P]."""
        return ~to_host(self._finite)

    def own(self, grid: str) -> Tensor:
        """The maps' own rankings, int32 [P, U]."""
        if grid not in self._places:
            side = rankings.side(grid, self.batch.size)
            self._places[grid] = rankings.rank_on(self.full, self.batch.ties, side)
        return self._places[grid]

    def draws(self, control: str, grid: str, pairs: NDArray[np.integer], numbers: range) -> Drawn:
        """These draws of a control for N of the pairs."""
        batch, entry = self.batch, CONTROLS[control]
        asked = Draws([batch.pairs.ids[i] for i in pairs], batch.sweep.seed, numbers, batch.device)
        every = np.ones((len(pairs), len(numbers)), dtype=bool)
        if entry.family == "nothing":
            return entry.draw(asked, grid, batch.size), every
        own = self.own(grid)[to_device(pairs, batch.device)]
        if entry.family == "ranking":
            return entry.draw(asked, own), every
        found = self._maps(control, pairs, numbers)
        drawn = np.arange(len(numbers)) < np.array([len(maps) for maps in found])[:, None]
        places = own[:, None].repeat(1, len(numbers), 1)
        if drawn.any():
            of_pair, draw = np.nonzero(drawn)
            ties = batch.ties[to_device(pairs[of_pair], batch.device)]
            side = rankings.side(grid, batch.size)
            at = to_device(of_pair, batch.device), to_device(draw, batch.device)
            places[at] = rankings.rank_on(torch.cat(found), ties, side)
        return places, drawn

    def _maps(self, control: str, pairs: NDArray[np.integer], numbers: range) -> list[Tensor]:
        """Each pair's maps at image size that stand for draws of a control, [<= D, S, S]: as many as there are."""
        batch, size = self.batch, self.batch.size
        if control in self.drawn:
            drawn = self.drawn[control]
            maps = drawn[to_device(pairs, drawn.device)][:, numbers.start : numbers.stop]
            maps = maps.to(batch.device, non_blocking=True)
            return list(rankings.at_size(maps.flatten(0, 1), size).split(len(numbers)))
        names = tuple(
            (batch.shard.trial_id, batch.pairs.ids[pair], (self.explainer, int(batch.pairs.target[pair])))
            for pair in pairs
        )
        found: list[Tensor | None] = CONTROLS[control].draw(self.donor_maps, names, numbers, size)
        there = [maps for maps in found if maps is not None]
        if not there:
            return [self.full[:0]] * len(found)
        full = rankings.at_size(torch.cat(there).to(batch.device, non_blocking=True), size)
        return list(full.split([0 if maps is None else len(maps) for maps in found]))

    def like_the_map(self, grid: str, places_NDU: Tensor, pairs: NDArray[np.integer]) -> Tensor:
        """Whether a draw ranks as the map does, [N, D]. It has the map's curve: another batch might round it apart."""
        own = self.own(grid)[to_device(pairs, places_NDU.device)]
        return (places_NDU == own[:, None]).all(2)

    def scored(self, axes: Axes) -> dict[str, Curves]:
        """The map ("none") and each control made from or for it: its curves on one grid."""
        portions: dict[str, list[_Portion]] = {}
        n_rankings = len(self.batch.pairs) * max(1, len(self.controls))
        for numbers in axes.portions(max(self.controls.values(), default=1), n_rankings):
            own = portions["none"][0].logit[:, 0] if portions else None
            for control, portion in self._portion(axes, numbers, own).items():
                portions.setdefault(control, []).append(portion)
        return {control: self._joined(axes, parts) for control, parts in portions.items()}

    def _portion(self, axes: Axes, numbers: range, own_PFOL: Tensor | None) -> dict[str, _Portion]:
        """These draws of each control that has them, scored together; the map's own as well without ``own_PFOL``."""
        batch, every, grid = self.batch, np.arange(len(self.batch.pairs)), axes.grid
        own_places = self.own(grid)
        made: dict[str, Drawn] = {}
        if own_PFOL is None:
            made["none"] = own_places[:, None], np.ones((len(every), 1), dtype=bool)
        for control, draws in self.controls.items():
            if numbers.start < draws:
                some = range(numbers.start, min(numbers.stop, draws))
                made[control] = self.draws(control, grid, every, some)
        places = torch.cat([places for places, _ in made.values()], 1)
        drawn = np.concatenate([drawn for _, drawn in made.values()], 1)
        logit = score_rankings(batch, axes, places, batch.pairs.image, scored_ND=drawn)
        logit = logit * batch.sign.view(-1, 1, 1, 1, 1)
        logit_own = logit[:, 0] if own_PFOL is None else own_PFOL
        equal = self.like_the_map(grid, places, every) & to_device(drawn, batch.device)
        logit = torch.where(equal[:, :, None, None, None], logit_own[:, None], logit)
        parts = zip(made.items(), logit.split([places.shape[1] for places, _ in made.values()], 1), strict=True)
        portions = {}
        for (control, (control_places, control_drawn)), part in parts:
            overlap = overlaps(axes, own_places, control_places)
            quarter = smoothness.overlap_of_quarters(own_places, control_places)
            there = to_device(control_drawn, batch.device)
            of_control = with_equal_masks(part, logit_own, overlap, there)
            if control == "none":
                overlap, quarter = torch.full_like(overlap, torch.nan), torch.full_like(quarter, torch.nan)
            portions[control] = _Portion(of_control, control_drawn, overlap, quarter)
        return portions

    def _joined(self, axes: Axes, parts: Sequence[_Portion]) -> Curves:
        """One control's draws from portions of them; NaN for maps that are not finite."""
        put = self.batch.results.put
        logit = torch.cat([part.logit for part in parts], 1)
        logit = torch.where(self._finite.view(-1, 1, 1, 1, 1), logit, torch.nan)
        drawn = np.concatenate([part.drawn for part in parts], 1)
        overlap, quarter = (
            torch.cat(shares, 1) for shares in zip(*((p.overlap, p.quarter) for p in parts), strict=True)
        )
        return Curves(axes, put(logit), drawn, put(overlap), put(quarter))


def _from_nothing(controls: Collection[str], grid: str) -> set[str]:
    return {c for c in of_family("nothing", controls) if CONTROLS[c].grids([grid])}


class _Portion(NamedTuple):
    """Some draws of a control: log-odds [P, D, F, O, L + 2], which there are, and their overlaps as in ``Curves``."""

    logit: Tensor
    drawn: NDArray[np.bool_]
    overlap: Tensor
    quarter: Tensor
