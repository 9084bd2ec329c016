"""Whether a map stays when its image hardly changes (noise, small shifts), beside what infidelity says of it.

An image's draws of noise are the same for every explainer and target, and so are an explainer's own random numbers for
an image and its copies: what differs between their maps comes from the image alone.

A control stands where the copy's map stands: is the map of the copy more like the map than the control is? A control
has an order alone. It gets the map's values in that order, as in ``lung_enrichment``. That a control would itself
change with the image is not asked: those made from nothing do not read it, and those made from the map change as it.

Shapes: B images, P (image, target) pairs, D draws, U pixels, V side of a map, S side of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.config import Stability, Sweep
from cxr_ray.measure import infidelity, likeness, rankings
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.capacity import PLACES
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.donors import DonorMaps, Maps
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.map_rankings import MapRankings
from cxr_ray.measure.measurement import make_maps
from cxr_ray.measure.shards import take
from cxr_ray.measure.transfer import to_host
from cxr_ray.schemas import STABILITY

Array = NDArray[np.floating]
GRID = "pixel"  # on which controls are drawn: maps are compared at image size
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # of shifts: down, up, right, left
VALUES = ("sensitivity", "spearman", "ssim", "logit_change", "infidelity", "unexplained")


def narrowed(sweep: Sweep, fill: str | None = None) -> Sweep:
    """The sweep with what stability takes of it: grid pixel, one fill (None: the first), controls of that grid."""
    fills = [fill or sweep.perturb.fills[0]]
    return sweep.model_copy(
        update={
            "perturb": sweep.perturb.model_copy(update={"grids": [GRID], "fills": fills}),
            "controls": {c: n for c, n in sweep.controls.items() if CONTROLS[c].grids([GRID])},
            "sequential": None,
            "regions": None,
        }
    )


class Change(NamedTuple):
    """A small change of an image.

    Attributes:
        kind, size: noise (the most that a pixel changes, of its range) or shift (share of the image's side).
        draw: its number; of a shift that of its direction.
    """

    kind: str
    size: float
    draw: int

    def pixels(self, size: int) -> tuple[int, int]:
        """By how many pixels an image of this side moves down and right."""
        if self.kind != "shift":
            return 0, 0
        down, right = DIRECTIONS[self.draw]
        step = max(1, round(self.size * size))
        return down * step, right * step


def changes(asked: Stability) -> list[Change]:
    """Those that are asked for, one an altered copy of an image."""
    noise = [Change("noise", radius, draw) for radius in asked.noise for draw in range(asked.draws)]
    return noise + [Change("shift", s, draw) for s in asked.shifts for draw in range(len(DIRECTIONS))]


def changed(batch: Batch, change: Change) -> Tensor:
    """The images after a change in pixel space, [B, 3, S, S].

    Noise is uniform, equal in all channels, and cut to [0, 1]. A shift repeats the edge that it leaves behind.
    """
    if change.kind == "noise":
        keys = batch.keys(f"stability noise {change.draw}")
        field_B1SS = randomness.uniform(keys, batch.size**2).view(-1, 1, batch.size, batch.size)
        return (batch.pixels + change.size * (2 * field_B1SS - 1)).clamp(0, 1)
    at = torch.arange(batch.size, device=batch.device)
    rows, columns = ((at - step).clamp(0, batch.size - 1) for step in change.pixels(batch.size))
    return batch.pixels[:, :, rows][:, :, :, columns]


@dataclass(frozen=True)
class Altered:
    """A shard's altered copies and the effects of its squares: they are made for every explainer, scored once.

    Attributes:
        batch: the images, under the narrowed sweep.
        asked: how many of each.
    """

    batch: Batch
    asked: Stability
    _logits: dict[Change, Mapping[str, float]] = field(default_factory=dict)

    def copies(self) -> Iterator[tuple[Change, Batch]]:
        """Each change, and the batch after it, with the pairs of the images as they were."""
        own = self.batch
        for change in changes(self.asked):
            shard = replace(own.shard, pixels=to_host(changed(own, change)))
            copy = Batch(own.sweep, shard, own.network, own.device, self._logits.get(change), tested=own.tested)
            self._logits[change] = dict(zip(copy.ids, copy.logit.tolist(), strict=True))
            copy.pairs = own.pairs
            yield change, copy

    @cached_property
    def squares(self) -> Tensor:
        """Of ``infidelity``, int64 [P, K, 4]."""
        batch = self.batch
        made = infidelity.squares(batch.ids, batch.sweep.seed, batch.size, self.asked.squares)
        return made.to(batch.device)

    @cached_property
    def effects(self) -> Tensor:
        """The fall of the target's log-odds for each square, float32 [P, K]."""
        found = infidelity.effects(self.batch, self.squares)
        return found[self.batch.image_of_pair] * self.batch.sign[:, None]

    def infidelity(self, maps_PSS: Tensor) -> dict[str, Array]:
        """Infidelity of maps at image size and what they leave unexplained, [P] each."""
        foretold = infidelity.sums(maps_PSS, self.squares[self.batch.image_of_pair])
        found = infidelity.infidelity(foretold, self.effects)
        return dict(zip(("infidelity", "unexplained"), map(to_host, found), strict=True))


def stability_rows(altered: Altered, explainer: str, donor_maps: DonorMaps | None = None) -> pa.Table:
    """Rows of ``stability`` of one explainer: its maps of altered copies, its infidelity, and those of its controls.

    Args:
        altered: the shard.
        explainer: its name. Maps from outside cannot be made again: they have infidelity alone.
        donor_maps: maps of other images, where a control needs them.
    """
    batch, model = altered.batch, altered.batch.network.model
    maps = _Maps(altered, MapRankings(batch, explainer, make_maps(batch, explainer, model), donor_maps))
    made_again = explainer in EXPLAINERS and explainer not in batch.shard.maps
    rows = [maps.of_squares()] if altered.asked.squares else []
    for change, copy in altered.copies() if made_again else ():
        rows.append(maps.of_copy(change, copy, make_maps(copy, explainer, model)))
    for control in maps.controls:
        rows += maps.of_control(control, made_again)
    return pa.concat_tables([maps.table(explainer, row) for row in rows])


class _Row(NamedTuple):
    """What was changed (kind and size), control and draw, the values that there are, [P], and which pairs have them."""

    kind: str
    size: float | None
    control: str
    draw: int
    values: Mapping[str, Array]
    there: NDArray[np.bool_] | None = None


class _Maps:
    """An explainer's maps of the images as they are, and what is compared with them."""

    def __init__(self, altered: Altered, made: MapRankings):
        self.altered, self.batch, self.made = altered, altered.batch, made
        self.full_PU = made.full.flatten(1).double()
        self._norm_P = self.full_PU.norm(dim=1)
        self._ranks: dict[int, Array] = {}  # by the margin that is cut off
        self.controls = made.every_control(GRID)

    def of_squares(self) -> _Row:
        """Infidelity of the maps."""
        return _Row("square", None, "none", 0, self.altered.infidelity(self.made.full))

    def of_copy(self, change: Change, copy: Batch, maps: Maps) -> _Row:
        """The map of an altered copy against the map: a shift is taken back, and a margin as wide is cut off."""
        size, (down, right) = self.batch.size, change.pixels(self.batch.size)
        margin = max(abs(down), abs(right))
        rows, columns = (slice(margin + step, size - margin + step) for step in (down, right))
        other_PSS = rankings.at_size(maps.own.to(self.batch.device), size)
        inner_PVV = to_host(other_PSS[:, rows, columns].double())
        usable = likeness.varies(inner_PVV.reshape(len(inner_PVV), -1))
        ranks = likeness.ranks(np.nan_to_num(inner_PVV.reshape(len(inner_PVV), -1)))
        values = {
            "spearman": np.where(usable, likeness.correlation(self._own_ranks(margin), ranks), np.nan),
            "ssim": likeness.ssim(self._inner(margin), inner_PVV),
            "logit_change": (copy.logit - self.batch.logit)[self.batch.pairs.image] * self.batch.pairs.sign,
        }
        if change.kind == "noise":
            values["sensitivity"] = self._distance(other_PSS)
        return _Row(change.kind, change.size, "none", change.draw, values)

    def of_control(self, control: str, likened: bool) -> Iterator[_Row]:
        """A control's draws with the maps' values in their order: infidelity and, if asked, likeness to the maps."""
        draws, every = self.controls[control], np.arange(len(self.batch.pairs))
        ordered_PU = self.full_PU.sort(dim=1, descending=True).values
        at_once = max(1, PLACES // self.full_PU.numel())
        for first in range(0, draws, at_once):
            numbers = range(first, min(first + at_once, draws))
            places_PDU, drawn_PD = self.made.draws(control, GRID, every, numbers)
            for i, draw in enumerate(numbers):
                places_PU, there = places_PDU[:, i].long(), drawn_PD[:, i]
                maps_PSS = ordered_PU.gather(1, places_PU).view_as(self.made.full)
                if likened:
                    yield _Row("none", None, control, draw, self._likeness(places_PU, maps_PSS), there)
                if self.altered.asked.squares:
                    yield _Row("square", None, control, draw, self.altered.infidelity(maps_PSS), there)

    def _likeness(self, places_PU: Tensor, maps_PSS: Tensor) -> dict[str, Array]:
        """Of a control's maps to the maps, whose values and so whose ranks they have."""
        own = self._own_ranks(0)
        ranks = np.take_along_axis(-np.sort(-own, axis=1), to_host(places_PU), axis=1)
        return {
            "spearman": likeness.correlation(own, ranks),
            "ssim": likeness.ssim(self._inner(0), to_host(maps_PSS)),
            "sensitivity": self._distance(maps_PSS),
        }

    def _distance(self, other_PSS: Tensor) -> Array:
        """Euclidean, over the length of the map; NaN for maps of zeros."""
        distance = (other_PSS.flatten(1).double() - self.full_PU).norm(dim=1) / self._norm_P
        return to_host(torch.where(self._norm_P > 0, distance, torch.nan))

    def _inner(self, margin: int) -> Array:
        cut = slice(margin, self.batch.size - margin)
        return to_host(self.made.full[:, cut, cut].double())

    def _own_ranks(self, margin: int) -> Array:
        if margin not in self._ranks:
            self._ranks[margin] = likeness.ranks(self._inner(margin).reshape(len(self.full_PU), -1))
        return self._ranks[margin]

    def table(self, explainer: str, row: _Row) -> pa.Table:
        """The rows of the pairs that are there; without values where the map is not finite."""
        pairs = self.batch.pairs
        there = np.flatnonzero(np.ones(len(pairs), dtype=bool) if row.there is None else row.there)
        same = {"perturbation": row.kind, "size": row.size, "control": row.control, "draw": row.draw}
        columns: dict[str, Any] = {name: [value] * len(there) for name, value in same.items()}
        columns |= {"explainer": [explainer] * len(there), "image_id": take(pairs.ids, there)}
        columns |= {"target": pairs.target[there]}
        for name in VALUES:
            values = row.values.get(name, np.full(len(pairs), np.nan))
            columns[name] = np.where(self.made.missing, np.nan, values)[there]
        return STABILITY.build(columns)
