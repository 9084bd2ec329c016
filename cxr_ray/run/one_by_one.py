"""Shards that ended their workers, image by image: the guilty images become rows of errors, the rest is computed.

A worker reads, decodes and computes one image at a time, so that it does not matter which of these kills it. What the
images gave is joined into the shard's one file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from cxr_ray.run import deaths
from cxr_ray.run.deaths import Died
from cxr_ray.run.terminal import ShardDone
from cxr_ray.schemas import ERRORS
from cxr_ray.storage import Store, pack

if TYPE_CHECKING:
    from cxr_ray.measure.shards import Tables
    from cxr_ray.run.plan import ShardPlan
    from cxr_ray.run.workers import Call, WorkerPool

STAGE = "worker"  # of rows of errors


def pieces(shard: ShardPlan) -> list[ShardPlan]:
    """A shard for each image, or for each recipient with its donor images; under the same name."""
    starts = [n for n, row in enumerate(shard.rows) if shard.split != "donors" or row["swap"] is None]
    ends = [*starts[1:], len(shard.rows)]
    return [replace(shard, rows=shard.rows[start:end]) for start, end in zip(starts, ends, strict=True)]


def guilty(piece: ShardPlan, reason: str, stage: str = "") -> dict[str, Any]:
    """The row of errors of the image that ended its workers; in donors, of the recipient. ``stage``: if not a split."""
    row = piece.rows[0]
    return {
        "path": row["path"],
        "image_id": row["image_id"],
        "stage": f"{STAGE}:{piece.trial_id}:{stage or piece.split}",
        "reason": f"The worker's process ended {deaths.ALONE} times on this image alone: {reason}.",
    }


@dataclass
class _Open:
    """A shard whose pieces are being tried.

    Attributes:
        n_pieces: of which it waits for results.
        refs: the tables of those that were computed.
        errors: rows for those that were not.
        row: what a worker told of one of them.
        images: of those that were computed.
    """

    n_pieces: int = 1
    refs: list[Any] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    row: dict[str, Any] | None = None
    images: int = 0


class OneByOne:
    """Shards on their way through the pool.

    Attributes:
        given_up: images that ended their workers.
    """

    def __init__(self, pool: WorkerPool, ask: Sequence[Any], store: Store, folder: str, is_map_pass: bool):
        """Begin with no shard.

        Args:
            pool: the workers.
            ask: the function that a worker calls with a piece as plain data, and its first arguments.
            store, folder: where the shards' files lie.
            is_map_pass: what they hold.
        """
        self.pool, self.ask, self.folder = pool, ask, folder
        self.given_up: list[dict[str, Any]] = []
        self._write = ray.remote(num_cpus=0)(write_joined), (store, folder, is_map_pass)
        self._waiting: deque[ShardPlan] = deque()
        self._open: dict[str, _Open] = {}
        self._piece_of: dict[Call, ShardPlan] = {}

    def run(self, shards: Sequence[ShardPlan]) -> Generator[ShardDone, None, None]:
        """Compute the shards: each whole once more, and those that end another worker in pieces."""
        pool = self.pool
        self._open = {shard.name: _Open() for shard in shards}
        self._waiting = deque(shards)
        while self._waiting or pool.is_busy:
            while self._waiting and pool.is_free:
                self._submit(self._waiting.popleft())
            call, result = pool.wait()
            if call.is_task:
                yield ShardDone(result["images"], result["backend"], tuple(result["notes"]), result["name"])
            else:
                self._take(call, self._piece_of.pop(call), result)

    def _submit(self, piece: ShardPlan) -> None:
        most = deaths.ALONE if len(pieces(piece)) == 1 else 1
        function, *first = self.ask
        call = self.pool.submit(
            function, *first, piece.to_plain(), num_returns=2, topic=piece.trial_id, kind=self.folder, most=most
        )
        self._piece_of[call] = piece

    def _take(self, call: Call, piece: ShardPlan, result: Any) -> None:
        shard = self._open[piece.name]
        parts = pieces(piece)
        if isinstance(result, Died) and len(parts) > 1:
            shard.n_pieces = len(parts)
            self._waiting.extend(parts)
            return
        shard.n_pieces -= 1
        if isinstance(result, Died):
            shard.errors.append(guilty(piece, result.reason))
            self.given_up.append(shard.errors[-1])
        else:
            shard.row, shard.images = result, shard.images + result["images"]
            shard.refs.append(call.refs[1])
        if not shard.n_pieces:
            del self._open[piece.name]
            self._put(piece.name, shard)

    def _put(self, name: str, shard: _Open) -> None:
        write, arguments = self._write
        told = {"backend": "none", "notes": (), **(shard.row or {}), "name": name, "images": shard.images}
        self.pool.add(write.remote(*arguments, told, shard.errors, *shard.refs))


def write_joined(
    store: Store,
    folder: str,
    is_map_pass: bool,
    told: Mapping[str, Any],
    errors: list[dict[str, Any]],
    *parts: Tables | bytes,
) -> Mapping[str, Any]:
    """In a task: the file of a shard whose pieces were computed apart; returns ``told``."""
    store.write_shard(told["name"], joined_maps(parts, errors) if is_map_pass else pack(joined(parts, errors)), folder)
    return told


def joined(parts: Sequence[Any], errors: list[dict[str, Any]]) -> Tables:
    """The tables of a shard's pieces as those of the shard, with more rows of errors."""
    more: Tables = {("errors", ""): ERRORS.from_rows(errors)} if errors else {}
    every = [*parts, more]
    keys = dict.fromkeys(key for part in every for key in part)
    return {key: pa.concat_tables([part[key] for part in every if key in part]) for key in keys}


def joined_maps(parts: Sequence[Any], errors: list[dict[str, Any]]) -> bytes:
    """The same of the map pass, whose pieces are files."""
    from cxr_ray.measure import donors  # torch

    return donors.join_maps([*parts, donors.pack_maps([], errors)])
