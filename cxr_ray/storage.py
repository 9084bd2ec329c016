"""Writes a run: finished shards, and from them, once all are there, the tables.

A shard is one file, put in place whole, named after its work: a retry overwrites itself, and a resumed run leaves out
what exists. The tables are merged from the shards in a fixed order, so they are the same whatever computed them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cxr_ray.errors import DamagedRunError
from cxr_ray.results import filesystem, split_options
from cxr_ray.schemas import ERRORS, TABLES, file_metadata

SHARDS, PRECISION = ".work/shards", ".work/precision"  # of the scoring pass; of what is decided before it
ROW_GROUP, GROUP_BYTES = 2**17, 2**26
PARQUET: dict[str, Any] = {"row_group_size": ROW_GROUP, "write_page_checksum": True}
MERGED_SHARDS = 2048  # of at most 16 images, that one file of a table holds
FOLDER_FILES = 1000  # shards of one folder
PER_SHARD = (
    *("predictions", "saliency", "lungs", "localisation", "curves", "faithfulness"),
    *("filled", "regions", "donor_swaps", "sanity", "stability"),
)
SEAL = b"\ncxr_ray sha256 "  # before the digest that ends a sealed file
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8,32}\.tmp")  # the name of a file that is being written
Tables = Mapping[tuple[str, str], pa.Table]


def sealed(data: bytes) -> bytes:
    """Bytes with their sha256 at the end: Arrow would read many a flipped bit as another number."""
    return data + SEAL + hashlib.sha256(data).digest()


def unsealed(data: bytes) -> bytes:
    """What ``sealed`` sealed. Raises ValueError where it is damaged.

    >>> unsealed(sealed(b"data"))
    b'data'
    """
    at = len(data) - hashlib.sha256().digest_size
    content = data[: at - len(SEAL)]
    if at < len(SEAL) or sealed(content) != data:
        raise ValueError("its digest is another")
    return content


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON with the sha256 of its values."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=2, sort_keys=True, default=str) + "\n").encode()


def unsealed_json(data: bytes) -> dict[str, Any]:
    """What ``sealed_json`` sealed, and JSON without a digest as it is. Raises ValueError where it is damaged.

    >>> unsealed_json(sealed_json({"a": 1}))
    {'a': 1}
    """
    try:
        found = dict(json.loads(data))
    except (RecursionError, TypeError) as e:
        raise ValueError(str(e)) from None
    digest = found.pop("sha256", None)
    if digest is not None and json.loads(sealed_json(found))["sha256"] != digest:
        raise ValueError("its digest is another")
    return found


def pack(tables: Tables) -> bytes:
    """Tables of one shard as one Arrow stream of (table, explainer, Arrow stream), sealed.

    It is compressed as a whole: column by column, a shard's few rows would take 14 times as long and be larger.
    """
    rows = []
    for (name, explainer), table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        rows.append((name, explainer, sink.getvalue().to_pybytes()))
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    kinds = {"table": pa.string(), "explainer": pa.string(), "data": pa.binary()}
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)]
    outer = pa.table(dict(zip(kinds, arrays, strict=True)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, outer.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(outer)
    return sealed(sink.getvalue().to_pybytes())


def unpack(data: bytes) -> dict[tuple[str, str], pa.Table]:
    """What ``pack`` packed. Raises ValueError where it is damaged."""
    outer = pa.ipc.open_stream(unsealed(data)).read_all().to_pylist()
    return {(row["table"], row["explainer"]): pa.ipc.open_stream(row["data"]).read_all() for row in outer}


@dataclass(frozen=True)
class Store:
    """The run folder, for writing; local or a URI. Picklable: it stays the same folder in a process of another one.

    Attributes:
        out: as the user names it.
        run: run_id and sweep_hash, stamped on every file.
        place: the same, absolute where it is local.
    """

    out: str
    run: Mapping[str, str]
    place: str = field(init=False)

    def __post_init__(self) -> None:
        is_uri = "://" in self.out
        object.__setattr__(self, "place", self.out.rstrip("/") if is_uri else filesystem(self.out)[1])

    @property
    def fs(self) -> pafs.FileSystem:
        """The file system that the run lies on."""
        return filesystem(self.place)[0]

    def path(self, *parts: str) -> str:
        """A path inside the run, as ``fs`` reads it."""
        return "/".join([filesystem(self.place)[1].rstrip("/"), *parts])

    def named(self, *parts: str) -> str:
        """A file of the run as it can be opened anywhere: ``place``, with the parts before a URI's options."""
        base, options = split_options(self.place)
        return "/".join([base.rstrip("/"), *parts]) + options

    def write(self, data: bytes, *parts: str) -> None:
        """Writes a file whole or not at all: under a temporary name first, then renamed."""
        fs, path = self.fs, self.path(*parts)
        folder, _, name = path.rpartition("/")
        fs.create_dir(folder, recursive=True)
        if not isinstance(fs, pafs.LocalFileSystem):  # object stores show an object only when it is complete
            with fs.open_output_stream(path) as f:
                f.write(data)
            return
        hidden = f"{folder}/{temporary(name)}"
        try:
            with fs.open_output_stream(hidden) as f:
                f.write(data)
            fs.move(hidden, path)
        except OSError:
            with contextlib.suppress(OSError):
                fs.delete_file(hidden)
            raise

    def write_json(self, value: Any, *parts: str) -> None:
        """Readable JSON."""
        self.write((json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode(), *parts)

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self.fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound)

    def read(self, *parts: str) -> bytes:
        """A whole file."""
        with self.fs.open_input_stream(self.path(*parts)) as f:
            return bytes(f.read())

    def write_table(self, name: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> None:
        """A table without partitions, as one file."""
        table = rows if isinstance(rows, pa.Table) else TABLES[name].from_rows(list(rows))
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(file_metadata(self.run)), sink, **PARQUET)
        self.write(sink.getvalue().to_pybytes(), "tables", name, "part-0.parquet")

    def write_part(self, name: str, trial_id: str, part: str, table: pa.Table) -> None:
        """Another file of a trial's partition; the empty file of a table without rows gives way."""
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(file_metadata(self.run)), sink, **PARQUET)
        self.write(sink.getvalue().to_pybytes(), "tables", name, f"trial_id={trial_id}", f"part-{part}.parquet")
        if self.exists("tables", name, "part-0.parquet"):
            self.fs.delete_file(self.path("tables", name, "part-0.parquet"))

    def finished_shards(self, folder: str = SHARDS) -> set[str]:
        """Names of the shards that are there."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=True)
        names = {i.base_name.removesuffix(".arrow"): i.path for i in self.fs.get_file_info(selector) if _is_shard(i)}
        return {name for name, path in names.items() if path == self.shard_path(name, folder)}

    def shard_path(self, name: str, folder: str = SHARDS) -> str:
        """Where a shard lies, as ``fs`` reads it."""
        return self.path(folder, *shard_parts(name))

    def write_shard(self, name: str, data: bytes, folder: str = SHARDS) -> None:
        """A packed shard."""
        self.write(data, folder, *shard_parts(name))

    def merge(self, shards_by_trial: Mapping[str, Iterable[str]], errors: list[dict[str, Any]]) -> None:
        """Shards to tables, one after another: ``clear_tables``, ``merge_portion`` of each, ``finish_merge``.

        ``errors`` are added to those of the shards; an error met by several models stands once.
        """
        self.clear_tables()
        finish = [self.merge_portion(portion) for portion in portions(shards_by_trial)]
        self.finish_merge(finish, errors)

    def clear_tables(self) -> None:
        """Remove the tables that shards make."""
        for name in PER_SHARD:
            if self.exists("tables", name):
                self.fs.delete_dir(self.path("tables", name))

    def merge_portion(self, portion: Portion) -> Merged:
        """Shards of one model to a file of each of its partitions; memory does not grow with their number."""
        written, found = set(), []
        with _Writers(self, portion) as writers:
            for shard in portion.shards:
                for (name, explainer), table in self.read_shard(shard).items():
                    if name == "errors":
                        found += table.to_pylist()
                    else:
                        writers.add(name, explainer, table)
                        written.add(name)
        return Merged(written, found)

    def finish_merge(self, merged: Iterable[Merged], errors: list[dict[str, Any]]) -> None:
        """Write the tables that no shard had rows of, and the errors."""
        written: set[str] = set()
        unique = {tuple(row[k] for k in ERRORS.key): row for row in errors}
        for part in merged:
            written |= part.tables
            unique |= {tuple(row[k] for k in ERRORS.key): row for row in part.errors}
        for name in PER_SHARD:
            if name not in written:
                self.write_table(name, [])
        self.write_table("errors", sorted(unique.values(), key=lambda r: (str(r["path"]), str(r["stage"]))))

    def read_shard(self, name: str, folder: str = SHARDS) -> dict[tuple[str, str], pa.Table]:
        """A packed shard. Raises DamagedRunError where it is damaged."""
        data = self.read(folder, *shard_parts(name))  # a store that does not answer is no damage
        try:
            return unpack(data)
        except ValueError:
            raise self.damaged(folder, *shard_parts(name)) from None

    def damaged(self, *parts: str) -> DamagedRunError:
        """The error of a file under ``.work`` that is not as it was written."""
        path = "/".join([self.out, *parts])
        return DamagedRunError(
            f"got {path}, which is damaged; expected it as it was written; delete it, and --resume computes it again."
        )

    def table_files(self) -> list[str]:
        """The files of all tables, relative to ``tables``."""
        root = self.path("tables")
        found = self.fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
        return sorted(i.path[len(root) + 1 :] for i in found if i.is_file and i.base_name.endswith(".parquet"))

    def clean(self) -> None:
        """Remove the shards, once the tables stand, and what writers left that were killed."""
        if self.exists(".work"):
            self.fs.delete_dir(self.path(".work"))
        for info in self.fs.get_file_info(pafs.FileSelector(self.path(), allow_not_found=True, recursive=True)):
            if info.is_file and TEMPORARY.fullmatch(info.base_name):
                self.fs.delete_file(info.path)


def temporary(name: str) -> str:
    """A hidden name for a file that is being written, of this writer alone, on whatever machine it runs."""
    return f".{name}.{uuid4().hex}.tmp"


def shard_parts(name: str) -> tuple[str, str, str]:
    """A shard's folders and file: no folder holds more than FOLDER_FILES files.

    >>> shard_parts("plain.test.16.01234")
    ('plain.test.16', '0001', 'plain.test.16.01234.arrow')
    """
    series, _, number = name.rpartition(".")
    return series, f"{int(number) // FOLDER_FILES:04d}", f"{name}.arrow"


def _is_shard(info: pafs.FileInfo) -> bool:
    """Whether a file is a shard, not one that is being written or that macOS left; its name ends in a number."""
    name = info.base_name
    return bool(info.is_file and name.endswith(".arrow") and name[0] != "." and name[:-6].rpartition(".")[2].isdigit())


class Portion(NamedTuple):
    """Shards of one model that are merged together, and the name of the files that they become."""

    trial_id: str
    file: str
    shards: list[str]


class Merged(NamedTuple):
    """What a portion held: names of tables, and rows of errors."""

    tables: set[str]
    errors: list[dict[str, Any]]


def portions(shards_by_trial: Mapping[str, Iterable[str]], most: int | None = None) -> Iterator[Portion]:
    """Each model's shards in their order, ``most`` at a time (MERGED_SHARDS); files' names sort as the portions do."""
    for trial_id, shards in shards_by_trial.items():
        parts = list(chunks(list(shards), most or MERGED_SHARDS))
        width = len(str(len(parts) - 1))
        yield from (Portion(trial_id, f"part-{n:0{width}d}.parquet", part) for n, part in enumerate(parts))


class _Writers:
    """Open Parquet files of one portion, one a (table, explainer)."""

    def __init__(self, store: Store, portion: Portion):
        self.store, self.portion, self.fs = store, portion, store.fs
        self.open: dict[tuple[str, str], _Writer] = {}
        self.hidden = temporary(portion.file)

    def __enter__(self) -> _Writers:
        return self

    def add(self, name: str, explainer: str, table: pa.Table) -> None:
        key = name, explainer
        if key not in self.open:
            parts = ["tables", name, f"trial_id={self.portion.trial_id}"]
            folder = self.store.path(*parts, *([f"explainer={explainer}"] if explainer else []))
            self.fs.create_dir(folder, recursive=True)
            schema = TABLES[name].schema.with_metadata(file_metadata(self.store.run))
            file = pq.ParquetWriter(f"{folder}/{self.hidden}", schema, filesystem=self.fs, write_page_checksum=True)
            self.open[key] = _Writer(file, folder)
        self.open[key].add(table)

    def __exit__(self, kind: object, *rest: object) -> None:
        for writer in self.open.values():
            if kind is None:
                writer.flush()
            writer.file.close()
            if kind is None:
                self.fs.move(f"{writer.folder}/{self.hidden}", f"{writer.folder}/{self.portion.file}")


class _Writer:
    """One Parquet file, whose row groups hold at most about ROW_GROUP rows and GROUP_BYTES bytes."""

    def __init__(self, file: pq.ParquetWriter, folder: str):
        self.file, self.folder = file, folder
        self.waiting: list[pa.Table] = []
        self.rows = self.bytes = 0

    def add(self, table: pa.Table) -> None:
        self.waiting.append(table)
        self.rows += table.num_rows
        self.bytes += table.nbytes
        if self.rows >= ROW_GROUP or self.bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            metadata = self.file.schema.metadata
            self.file.write_table(pa.concat_tables(t.replace_schema_metadata(metadata) for t in self.waiting))
        self.waiting, self.rows, self.bytes = [], 0, 0


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive pieces of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
