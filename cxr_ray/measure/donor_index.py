"""Which images are donors of which: the index of one model's test images after the map pass.

A donor of an image is an image of another patient with the same prediction, whose map of the same target exists and is
finite. The index holds columns, not objects: every worker has it in memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cxr_ray import randomness
from cxr_ray.storage import sealed, unsealed

Target = tuple[str, int]  # explainer, target
COLUMNS = pa.schema({"image_id": pa.string(), "patient": pa.string(), "predicted": pa.int8(), "shard": pa.string()})


class DonorIndex:
    """The donor images of each test image of one model.

    Attributes:
        table: COLUMNS, then for each target that lost a map whether each image has one, named as JSON of the target.
        predicted: of each image.
    """

    def __init__(self, images: pa.Table, lost: Mapping[str, Sequence[Target]]):
        """Takes the images, a table of COLUMNS in any order, and by image_id the targets without a finite map."""
        table = images.sort_by("image_id").cast(COLUMNS)
        without: dict[Target, set[str]] = defaultdict(set)
        for image_id, targets in lost.items():
            for explainer, target in targets:
                without[explainer, target].add(image_id)
        ids = table["image_id"].to_pylist()
        for wanted, lacking in sorted(without.items()):
            table = table.append_column(json.dumps(wanted), pa.array([i not in lacking for i in ids], pa.bool_()))
        self._take(table)

    def _take(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        targets = table.column_names[len(COLUMNS) :]
        self._has: dict[Target, NDArray[np.bool_]] = {tuple(json.loads(t)): table[t].to_numpy() for t in targets}
        self._ids = np.array(self.table["image_id"].cast(pa.binary()).to_numpy(), "S")
        self._patient = self.table["patient"].combine_chunks().dictionary_encode().indices.to_numpy()
        self.predicted = self.table["predicted"].to_numpy()
        self._counts: dict[tuple[int, Target], int] = {}

    @classmethod
    def from_bytes(cls, data: bytes) -> DonorIndex:
        """What ``to_bytes`` gave. Raises ValueError where it is damaged."""
        index = cls.__new__(cls)
        index._take(pa.ipc.open_file(unsealed(data)).read_all())
        return index

    def to_bytes(self) -> bytes:
        """An Arrow file, sealed."""
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, self.table.schema, options=options) as writer:
            writer.write_table(self.table)
        return sealed(sink.getvalue().to_pybytes())

    @property
    def images(self) -> Mapping[str, Mapping[str, Any]]:
        """image_id to {patient, predicted, shard}, in the order of the ids."""
        return _Images(self)

    def position(self, image_id: str) -> int:
        """The place of an image among the sorted ids. Raises KeyError."""
        at = int(np.searchsorted(self._ids, image_id.encode()))
        if at == len(self._ids) or self._ids[at] != image_id.encode():
            raise KeyError(image_id)
        return at

    def image_id(self, at: int) -> str:
        """The image at a place."""
        return str(self._ids[at].decode())

    def shard(self, image_id: str) -> str:
        """The shard that holds an image's maps."""
        return str(self.table["shard"][self.position(image_id)])

    def _with_map(self, places: NDArray[np.integer], wanted: Target) -> list[str]:
        kept = places[self._has[wanted][places]] if wanted in self._has else places
        return [self.image_id(at) for at in kept.tolist()]

    @cached_property
    def _predicted_at(self) -> dict[int, NDArray[np.integer]]:
        """The places of each prediction."""
        return {p: np.flatnonzero(self.predicted == p) for p in (0, 1)}

    @cached_property
    def _by_patient(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Places sorted by patient, and where each patient begins among them."""
        order = np.argsort(self._patient, kind="stable")
        starts = np.searchsorted(self._patient[order], np.arange(self._patient.max(initial=-1) + 2))
        return order, starts

    def _own(self, at: int) -> NDArray[np.integer]:
        """The places of the same patient's images of the same prediction, itself among them, in order."""
        order, starts = self._by_patient
        patient = self._patient[at]
        places = order[starts[patient] : starts[patient + 1]]
        return places[self.predicted[places] == self.predicted[at]]

    def group(self, predicted: int, wanted: Target) -> list[str]:
        """All images of this prediction that have the map."""
        return self._with_map(self._predicted_at[predicted], wanted)

    def count(self, predicted: int, wanted: Target) -> int:
        """How many images of this prediction have the map."""
        if (predicted, wanted) not in self._counts:
            same = self._predicted_at[predicted]
            self._counts[predicted, wanted] = int(self._has[wanted][same].sum()) if wanted in self._has else len(same)
        return self._counts[predicted, wanted]

    def of_same_patient(self, image_id: str, wanted: Target) -> list[str]:
        """Images of the same patient and prediction, itself among them, that have the map."""
        return self._with_map(self._own(self.position(image_id)), wanted)

    def donors(self, image_id: str, wanted: Target, seed: int, most: int) -> list[str]:
        """Up to so many donors, drawn without replacement: the same for every explainer, but for maps that are lost."""
        at = self.position(image_id)
        predicted = int(self.predicted[at])
        same, own = self._predicted_at[predicted], self._own(at)
        others = np.delete(same, np.searchsorted(same, own))
        key = torch.tensor([randomness.key(seed, image_id, "other_image")])
        lost = len(same) - self.count(predicted, wanted)
        enough = min(len(others), most + lost)  # as many as may be drawn in vain
        drawn = randomness.first_of_permutation(key, len(others), enough)[0].numpy()
        return self._with_map(others[drawn], wanted)[:most]


class _Images(Mapping[str, Mapping[str, Any]]):
    """The rows of an index, each made when it is asked for."""

    def __init__(self, index: DonorIndex):
        self.index = index

    def __len__(self) -> int:
        return int(self.index.table.num_rows)

    def __iter__(self) -> Iterator[str]:
        return map(self.index.image_id, range(len(self)))

    def __getitem__(self, image_id: str) -> Mapping[str, Any]:
        at = self.index.position(image_id)
        return {name: self.index.table[name][at].as_py() for name in COLUMNS.names[1:]}
