"""Masks of maps and of their controls, drawn again from the tables of a run.

The tables hold maps, not masks. What else a mask is made of follows from the seed and the image_id, so it can be made
again where the map was kept at its own resolution. ``curves.overlap`` tells whether that came out the same.

Shapes: V side of a map, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.measure import rankings
from cxr_ray.measure.controls import CONTROLS, Draws
from cxr_ray.measure.donor_index import DonorIndex

Values = NDArray[np.floating]
Mask = NDArray[np.bool_]
CPU = torch.device("cpu")
KEPT = 2**28  # bytes of an explainer's rank maps


@dataclass(frozen=True)
class Masking:
    """How masks of a run are made.

    Attributes:
        seed: the sweep's.
        grid: units that are ranked.
        size: S.
        level: share of the units that is perturbed.
    """

    seed: int
    grid: str
    size: int
    level: float

    @property
    def side(self) -> int:
        """Units along one side."""
        return rankings.side(self.grid, self.size)

    @property
    def n(self) -> int:
        """Units that are perturbed."""
        return rankings.counts([self.level], self.side**2)[0]

    def of_map(self, image_id: str, values: Values) -> Mask:
        """The most salient units of an image under a map [V, V], bool [S, S]."""
        return self._at_size(rankings.first(*self._units(image_id, values), self.n))

    def places(self, image_id: str, values: Values) -> Tensor:
        """The whole ranking, int32 [1, U]."""
        return rankings.rank(*self._units(image_id, values))

    def of_places(self, places_1U: Tensor) -> Mask:
        """The mask of a ranking."""
        return self._at_size(places_1U < self.n)

    def _units(self, image_id: str, values: Values) -> tuple[Tensor, Tensor]:
        full = rankings.at_size(torch.from_numpy(values.copy())[None], self.size)
        ties = rankings.tie_fields([image_id], self.seed, self.size)
        return rankings.units(full, ties, self.side)

    def _at_size(self, mask_1U: Tensor) -> Mask:
        units = mask_1U.view(self.side, self.side)
        if self.side == self.size:
            return units.numpy()
        cell = rankings.cell_of(self.size, self.side)
        return units[cell][:, cell].numpy()


class Control(NamedTuple):
    """A control's first draw for one image.

    Attributes:
        mask: what it perturbs, [S, S].
        values: its map [V, V], where it is a map; of ``mean_map`` 1 where all rank a pixel first.
        image_id: whose map it is, where it is another image's.
    """

    mask: Mask
    values: Values | None = None
    image_id: str | None = None


@dataclass(frozen=True)
class MapsOfTarget:
    """One explainer's maps of the explained targets.

    Attributes:
        explainer: its name.
        target: image_id to the class that is explained.
        values: image_id to the finite map.
        donors: which images lend their maps to which.
        sums: by predicted class the sum of the rank maps [S * S] and their number, once ``sum_ranks`` made them.
        ranks: image_id to its rank map, of a run whose rank maps fit into KEPT.
    """

    explainer: str
    target: Mapping[str, int]
    values: Mapping[str, Values]
    donors: DonorIndex
    sums: dict[int, tuple[NDArray[np.int64], int]] = field(default_factory=dict)
    ranks: dict[str, NDArray[np.integer]] = field(default_factory=dict)

    def control(self, name: str, masking: Masking, image_id: str) -> Control | None:
        """The first draw of a control that ``can_be_drawn``; None where the image has none."""
        entry = CONTROLS[name]
        asked = Draws([image_id], masking.seed, [0], CPU)
        if entry.family == "nothing":
            return Control(masking.of_places(entry.draw(asked, masking.grid, masking.size)[:, 0]))
        if image_id not in self.values:
            return None
        if entry.family == "ranking":
            places = entry.draw(asked, masking.places(image_id, self.values[image_id]))
            return Control(masking.of_places(places[:, 0]))
        return {"other_image": self._other_image, "mean_map": self._mean_map}[name](masking, image_id)

    def sum_ranks(self, masking: Masking, pool: ThreadPoolExecutor) -> None:
        """Rank all maps, which ``mean_map`` is made of: a few milliseconds each."""
        for image_id, target in self.target.items():  # images of a prediction share their target
            predicted = self._predicted(image_id)
            if predicted not in self.sums:
                ids = self.donors.group(predicted, (self.explainer, target))
                total = np.zeros(masking.size**2, np.int64)
                for places in pool.map(lambda i: self._ranks(masking, i), ids):
                    total += places
                self.sums[predicted] = total, len(ids)

    def _predicted(self, image_id: str) -> int:
        return int(self.donors.predicted[self.donors.position(image_id)])

    def _ranks(self, masking: Masking, image_id: str) -> NDArray[np.integer]:
        if image_id in self.ranks:
            return self.ranks[image_id]
        places = replace(masking, grid="pixel").places(image_id, self.values[image_id])[0].numpy()
        if len(self.values) * 2 * places.size <= KEPT and places.size <= 2**16:
            self.ranks[image_id] = places.astype(np.uint16)
        return places

    def _mean_map(self, masking: Masking, image_id: str) -> Control | None:
        total, n = self.sums[self._predicted(image_id)]
        own = self.donors.of_same_patient(image_id, (self.explainer, self.target[image_id]))
        if n == len(own):
            return None
        mean = (sum(self._ranks(masking, i).astype(np.int64) for i in own) - total) / (n - len(own))
        mean = mean.reshape(masking.size, masking.size)
        return Control(masking.of_map(image_id, mean), (1 + mean / mean.size).astype(np.float32))

    def _other_image(self, masking: Masking, image_id: str) -> Control | None:
        wanted = self.explainer, self.target[image_id]
        donors = [i for i in self.donors.donors(image_id, wanted, masking.seed, 1) if i in self.values]
        if not donors:
            return None
        values = self.values[donors[0]]
        return Control(masking.of_map(image_id, values), values, donors[0])


def can_be_drawn(control: str) -> bool:
    """Whether a control's mask follows from the tables: weights of the network do not stand in them."""
    return CONTROLS[control].family in ("nothing", "ranking") or control in ("other_image", "mean_map")


def donor_index(
    predicted: Mapping[str, int], patients: Mapping[str, str], lost: Mapping[str, list[tuple[str, int]]]
) -> DonorIndex:
    """Which test images lend their maps to which.

    Args:
        predicted: image_id to the predicted class, of all images that have a score.
        patients: image_id to patient_id.
        lost: image_id to the (explainer, target) without a finite map.
    """
    ids = list(predicted)
    columns = {
        "image_id": ids,
        "patient": [patients[i] for i in ids],
        "predicted": pa.array(list(predicted.values()), pa.int8()),
        "shard": [""] * len(ids),
    }
    return DonorIndex(pa.table(columns), lost)
