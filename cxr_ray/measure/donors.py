"""Maps of other images, for the controls that need them: how the map pass keeps them, and how workers read them.

Files lie under ``.work`` until the run is done: one a shard, from which single maps can be fetched.

Shapes: P (image, target) pairs, D draws, V side of a map, S side of an image, U its pixels.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.config import Sweep
from cxr_ray.errors import DamagedRunError
from cxr_ray.machine import usable_cpus
from cxr_ray.measure import rankings
from cxr_ray.measure.controls import CONTROLS, MapName
from cxr_ray.measure.donor_index import COLUMNS, DonorIndex, Target
from cxr_ray.storage import Store, chunks, sealed, shard_parts, unsealed

CRC = "crc32"
DAMAGE = (pa.ArrowException, ValueError, LookupError, TypeError, OSError)  # what Arrow makes of damaged files
MAPS, INDEX, MEANS = ".work/maps", ".work/donor_index", ".work/means"
OPEN_FILES, KEPT_MAPS, KEPT_TOTALS = 64, 128, 32  # in a worker's memory
RANKED = 16  # maps at a time
READERS = 16  # files of other machines, read at a time

Array = NDArray[np.float32]
Parsed = TypeVar("Parsed")


class Maps(NamedTuple):
    """One explainer's maps, float32 [P, V, V], and by control the draws made from its class weights, [P, D, V, V]."""

    own: Tensor
    drawn: Mapping[str, Tensor]


class MapPiece(NamedTuple):
    """Images of a shard that were explained at a time.

    Attributes:
        logits: image_id to log-odds of PNEUMONIA.
        pairs: (image_id, target) of each map.
        maps: by explainer; those that failed are left out.
    """

    logits: Mapping[str, float]
    pairs: Sequence[tuple[str, int]]
    maps: Mapping[str, Maps]

    def lost(self) -> list[tuple[str, str, int]]:
        """(explainer, image_id, target) of each map that is not finite."""
        finite = {e: torch.isfinite(m.own).flatten(1).all(1).tolist() for e, m in self.maps.items()}
        return [(e, *pair) for e, of in finite.items() for pair, one in zip(self.pairs, of, strict=True) if not one]


def pack_maps(pieces: Sequence[MapPiece], errors: Sequence[Mapping[str, Any]]) -> bytes:
    """One shard's maps as an Arrow file: a record batch a map, and what is known of them in the schema's metadata.

    Both have checksums, since single maps are read.

    Args:
        pieces: of the shard.
        errors: rows of the errors table.
    """
    index = [{"logits": dict(p.logits), "pairs": [*p.pairs], "explainers": [*p.maps], "lost": p.lost()} for p in pieces]
    all_maps = [m for p in pieces for m in p.maps.values()]
    controls = list(dict.fromkeys(control for m in all_maps for control in m.drawn))
    known = {"pieces": index, "errors": list(errors)}
    schema = _map_schema(("map", *controls), known)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for made in all_maps:
            arrays = [made.own, *(made.drawn.get(control) for control in controls)]
            by_column = [None if a is None else a.cpu().numpy() for a in arrays]
            for n in range(len(made.own)):
                row = [None if a is None else a[n].tobytes() for a in by_column]
                writer.write_batch(pa.record_batch([[value] for value in (*row, _crc(row))], schema=schema))
    return sink.getvalue().to_pybytes()


def _map_schema(names: Iterable[str], known: Mapping[str, Any]) -> pa.Schema:
    """Columns of float32, row by row, null: none; and the checksum of their values."""
    text = json.dumps(known)
    columns = [*((name, pa.binary()) for name in names), (CRC, pa.uint32())]
    return pa.schema(columns, metadata={"known": text, CRC: str(zlib.crc32(text.encode()))})


def _crc(values: Iterable[bytes | None]) -> int:
    found = 0
    for value in values:
        found = zlib.crc32(b"null" if value is None else value, found)
    return found


def join_maps(files: Sequence[bytes]) -> bytes:
    """The files of parts of a shard as one."""
    opened = [pa.ipc.open_file(file) for file in files]
    known = [json.loads(file.schema.metadata[b"known"]) for file in opened]
    names = [*dict.fromkeys(name for file in opened for name in file.schema.names if name != CRC)]
    schema = _map_schema(names, {key: [one for of in known for one in of[key]] for key in ("pieces", "errors")})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for file in opened:
            for n in range(file.num_record_batches):
                (row,) = file.get_batch(n).to_pylist()
                row[CRC] = _crc(row.get(name) for name in names)
                writer.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
    return sink.getvalue().to_pybytes()


class MapFile:
    """One shard's maps, read one by one.

    Attributes:
        logits: of all pieces.
        errors: as packed.
        piece: the number of each image's piece.
    """

    def __init__(self, store: Store, shard: str):
        self._store, self._parts = store, (MAPS, *shard_parts(shard))
        self._stream: Any = store.fs.open_input_file(store.path(*self._parts))
        known = json.loads(self._parsed(self._known))
        self.errors: list[dict[str, Any]] = known["errors"]
        self.logits: dict[str, float] = {}
        self.piece: dict[str, int] = {}
        self._pair: dict[tuple[str, int], int] = {}  # place within its piece
        self._start: dict[tuple[int, str], int] = {}  # record batch of a piece's first map of an explainer
        self._lost: set[tuple[str, str, int]] = set()
        n_batches = 0
        for n, piece in enumerate(known["pieces"]):
            self.logits |= piece["logits"]
            self.piece |= dict.fromkeys(piece["logits"], n)
            self._pair |= {(i, t): place for place, (i, t) in enumerate(piece["pairs"])}
            self._lost |= {(e, i, t) for e, i, t in piece["lost"]}
            for e in piece["explainers"]:
                self._start[n, e] = n_batches
                n_batches += len(piece["pairs"])

    def _parsed(self, parse: Callable[[], Parsed]) -> Parsed:
        """What ``parse`` makes of the file.

        Where that fails, the file is fetched whole, and fails again only if it is damaged: Arrow says the same of a
        store that did not answer.

        Raises:
            DamagedRunError: the file is damaged.
            OSError: the store does not answer.
        """
        try:
            return parse()
        except DAMAGE:
            whole = self._store.read(*self._parts)
        self._stream = pa.BufferReader(whole)
        self.__dict__.pop("_file", None)
        try:
            return parse()
        except DAMAGE:
            raise self._store.damaged(*self._parts) from None

    @functools.cached_property
    def _file(self) -> Any:
        return pa.ipc.open_file(self._stream)

    def _known(self) -> bytes:
        metadata = self._file.schema.metadata
        text: bytes = metadata[b"known"]
        if str(zlib.crc32(text)).encode() != metadata[CRC.encode()]:
            raise ValueError(CRC)
        return text

    def _row(self, n: int) -> dict[str, bytes | None]:
        """A record batch, which holds one map, by column."""
        batch = self._file.get_batch(n)
        batch.validate(full=True)
        (row,) = batch.to_pylist()
        if _crc(value for name, value in row.items() if name != CRC) != row.pop(CRC):
            raise ValueError(CRC)
        found: dict[str, bytes | None] = row
        return found

    def has(self, explainer: str, image_id: str, target: int) -> bool:
        """Whether the map was made, finite or not."""
        return (image_id, target) in self._pair and (self.piece[image_id], explainer) in self._start

    def has_finite(self, explainer: str, image_id: str, target: int) -> bool:
        """Whether the map was made and is finite."""
        return self.has(explainer, image_id, target) and (explainer, image_id, target) not in self._lost

    def read(self, explainer: str, image_id: str, target: int) -> tuple[Array, dict[str, Array]]:
        """A map, float32 [V, V], and by control its draws, [D, V, V]."""
        start = self._start[self.piece[image_id], explainer]
        row = self._parsed(functools.partial(self._row, start + self._pair[image_id, target]))
        numbers = {name: np.frombuffer(value, np.float32) for name, value in row.items() if value is not None}
        side = round(len(numbers["map"]) ** 0.5)
        own = numbers.pop("map").reshape(side, side)
        return own, {name: draws.reshape(-1, side, side) for name, draws in numbers.items()}

    def maps(self, explainer: str, pairs: Sequence[tuple[str, int]]) -> Maps | None:
        """An explainer's maps of these (image_id, target) pairs of one piece; None where it failed."""
        if not self.has(explainer, *pairs[0]):
            return None
        own, drawn = zip(*(self.read(explainer, *pair) for pair in pairs), strict=True)
        by_control = {control: torch.from_numpy(np.stack([d[control] for d in drawn])) for control in drawn[0]}
        return Maps(torch.from_numpy(np.stack(own)), by_control)


def build_donor_index(store: Store, shards: Iterable[str], patients: pd.Series, wanted: Iterable[Target]) -> DonorIndex:
    """Read which image has which maps from the files of one model's shards.

    Args:
        store: the run.
        shards: the model's shards.
        patients: patient_id, indexed by image_id.
        wanted: the maps that an image may have.
    """
    wanted = list(wanted)

    def images_of(shard: str) -> tuple[pa.Table, dict[str, list[Target]]]:
        file = MapFile(store, shard)
        ids, logits = pa.array([*file.logits], pa.string()), np.array([*file.logits.values()], float)
        columns = {"image_id": ids, "predicted": (logits >= 0).astype(np.int8), "shard": pa.repeat(shard, len(ids))}
        lost = {i: [of for of in wanted if not file.has_finite(of[0], i, of[1])] for i in file.logits}
        return pa.table(columns), {i: of for i, of in lost.items() if of}

    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(images_of, shards))
    images = pa.concat_tables([COLUMNS.empty_table().drop_columns("patient"), *(table for table, _ in parts)])
    patient = pa.array(patients.reindex(images["image_id"].to_pandas()), pa.string())
    lost = {i: of for _, part in parts for i, of in part.items()}
    return DonorIndex(images.append_column("patient", patient).select(COLUMNS.names), lost)


def index_maps(
    maps: DonorMaps, shards: Iterable[str], trial: tuple[str, int], patients: pd.Series, sweep: Sweep
) -> DonorIndex:
    """Write the index of one model's maps, and their sums where a control reads them; for one process.

    Args:
        maps: whose store holds the shards.
        shards: the model's shards.
        trial: its trial_id, and the side of its images.
        patients: patient_id by image_id.
        sweep: its explainers are those of the maps.
    """
    trial_id, size = trial
    wanted = [(e, t) for e in sweep.explain.names for t in (0, 1)]
    index = build_donor_index(maps.store, shards, patients, wanted)
    maps.write_index(trial_id, index)
    if index.images and any(CONTROLS[control].rank_sums for control in sweep.controls):
        for of_maps in wanted:
            for predicted in (0, 1):
                if index.count(predicted, of_maps):
                    maps.write_total(trial_id, of_maps, predicted, size)
    return index


class DonorMaps:
    """Reads other images' maps in a worker. Picklable; keeps the files that it used last open."""

    def __init__(self, store: Store, sweep: Sweep):
        self.store, self.seed, self.sequential = store, sweep.seed, sweep.sequential
        self._open()

    def _open(self) -> None:
        self.file = lru_cache(maxsize=OPEN_FILES)(lambda shard: MapFile(self.store, shard))
        self.index = lru_cache(maxsize=4)(self._index)
        self.read = lru_cache(maxsize=KEPT_MAPS)(self._read)
        self.total = lru_cache(maxsize=KEPT_TOTALS)(self._total)
        self.means = lru_cache(maxsize=1)(self._means)  # the grids of a batch ask for the same

    def __getstate__(self) -> dict[str, Any]:
        return {k: self.__dict__[k] for k in ("store", "seed", "sequential")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _index(self, trial_id: str) -> DonorIndex:
        try:
            return DonorIndex.from_bytes(self.store.read(INDEX, f"{trial_id}.arrow"))
        except ValueError:
            raise self.store.damaged(INDEX, f"{trial_id}.arrow") from None

    def write_index(self, trial_id: str, index: DonorIndex) -> None:
        """For all workers to read."""
        self.store.write(index.to_bytes(), INDEX, f"{trial_id}.arrow")

    def _read(self, trial_id: str, image_id: str, wanted: Target) -> Array:
        shard = self.index(trial_id).shard(image_id)
        return self.file(shard).read(wanted[0], image_id, wanted[1])[0]

    def logit(self, trial_id: str, image_id: str) -> float:
        """Log-odds of PNEUMONIA of an image, as the map pass made them."""
        return self.file(self.index(trial_id).shard(image_id)).logits[image_id]

    def maps(self, trial_id: str, explainer: str, pairs: Sequence[tuple[str, int]]) -> Maps | None:
        """Maps of these (image_id, target) pairs of any shards; NaN where one was lost, None where all were."""
        read: list[tuple[Array, dict[str, Array]] | None] = []
        for image_id, target in pairs:
            file = self.file(self.index(trial_id).shard(image_id))
            known = file.has(explainer, image_id, target)
            read.append(file.read(explainer, image_id, target) if known else None)
        one = next((found for found in read if found is not None), None)
        if one is None:
            return None
        lost = np.full_like(one[0], np.nan), {control: np.full_like(draws, np.nan) for control, draws in one[1].items()}
        own, drawn = zip(*(found or lost for found in read), strict=True)
        by_control = {control: torch.from_numpy(np.stack([d[control] for d in drawn])) for control in one[1]}
        return Maps(torch.from_numpy(np.stack(own)), by_control)

    def donated(self, trial_id: str, image_id: str, wanted: Target, draws: Sequence[int]) -> Tensor | None:
        """The maps of these draws of other_image, float32 [<= D, V, V]: fewer where donors run out, None without."""
        donors = self.index(trial_id).donors(image_id, wanted, self.seed, draws[-1] + 1)[draws[0] :]
        maps = [self.read(trial_id, i, wanted) for i in donors]
        return torch.from_numpy(np.stack(maps)) if maps else None

    def _places(self, ids: Sequence[str], maps: Sequence[Array], size: int) -> NDArray[np.int32]:
        """Images' rank maps [N, U]: on the CPU, so that equal maps rank equally."""
        full = rankings.at_size(torch.from_numpy(np.stack(maps)), size)
        return rankings.rank_on(full, rankings.tie_fields(ids, self.seed, size), size).numpy()

    def write_total(self, trial_id: str, wanted: Target, predicted: int, size: int) -> None:
        """The sum of the rank maps of all images of a prediction, where it is not there yet."""
        name = _total_name(trial_id, wanted, predicted)
        if self.store.exists(MEANS, name):
            with contextlib.suppress(DamagedRunError):
                if len(self._total(trial_id, wanted, predicted)) == size**2:
                    return
        group = self.index(trial_id).group(predicted, wanted)
        self.store.write(sealed(self._all_places(trial_id, group, wanted, size).tobytes()), MEANS, name)

    def _all_places(self, trial_id: str, ids: list[str], wanted: Target, size: int) -> NDArray[np.int64]:
        """The sum of many rank maps, [U], on all CPUs: the one worker of a GPU would rank on one of them."""
        total, n = np.zeros(size * size, np.int64), usable_cpus()
        with ThreadPoolExecutor(n) as pool:
            for part in chunks(ids, RANKED * n):  # read by one thread, as MapFile is not for several
                maps = [self.read(trial_id, image_id, wanted) for image_id in part]
                parts = chunks(part, RANKED), chunks(maps, RANKED)
                for places in pool.map(self._places, *parts, itertools.repeat(size)):
                    total += places.sum(0, dtype=np.int64)
        return total

    def _total(self, trial_id: str, wanted: Target, predicted: int) -> NDArray[np.int64]:
        name = _total_name(trial_id, wanted, predicted)
        try:
            return np.frombuffer(unsealed(self.store.read(MEANS, name)), np.int64)
        except ValueError:
            raise self.store.damaged(MEANS, name) from None

    def _means(self, names: Sequence[MapName], size: int) -> list[Tensor | None]:
        """mean_map of each, float64 [S, S], higher is more salient: minus the mean rank map of all donors, or None."""
        families = [self.index(trial_id).of_same_patient(image_id, wanted) for trial_id, image_id, wanted in names]
        own = np.zeros((len(names), size * size), np.int64)  # sums over each patient's images
        of_family = [
            (n, (trial_id, i, wanted))
            for n, ((trial_id, _, wanted), family) in enumerate(zip(names, families, strict=True))
            for i in family
        ]
        for part in chunks(of_family, RANKED):
            maps = [self.read(*name) for _, name in part]
            places = self._places([image_id for _, (_, image_id, _) in part], maps, size)
            for (n, _), of_image in zip(part, places, strict=True):
                own[n] += of_image
        means: list[Tensor | None] = []
        for (trial_id, image_id, wanted), family, of_patient in zip(names, families, own, strict=True):
            index = self.index(trial_id)
            predicted = int(index.predicted[index.position(image_id)])
            n = index.count(predicted, wanted) - len(family)
            mean = (of_patient - self.total(trial_id, wanted, predicted)) / n if n else None
            means.append(None if mean is None else torch.from_numpy(mean).view(size, size))
        return means


def _total_name(trial_id: str, wanted: Target, predicted: int) -> str:
    return f"{trial_id}.{wanted[0]}.{wanted[1]}.{predicted}.int64"
