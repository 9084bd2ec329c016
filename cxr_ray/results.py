"""Reads a run: ``open_run(path)`` gives its tables as pandas, pyarrow or SQL."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
from pyarrow import fs as pafs

from cxr_ray import credentials, schemas
from cxr_ray.errors import DamagedRunError, RunError
from cxr_ray.reading import LARGEST_TEXT, read_file
from cxr_ray.registry import did_you_mean
from cxr_ray.upgrades import upgraded
from cxr_ray.yamlfile import parse_yaml

CHECKED = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """A local path or a URI (s3://, gs://, ...) to pyarrow's file system and the path inside it."""
    if "://" in path:
        try:
            return pafs.FileSystem.from_uri(credentials.revealed(path))
        except (OSError, ValueError) as e:  # pyarrow quotes what it was given
            raise type(e)(credentials.redacted(str(e))) from None
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def split_options(path: str) -> tuple[str, str]:
    """A path or URI, and the options behind it from their question mark on.

    >>> split_options("s3://bucket/labels.csv?region=eu-west-1"), split_options("labels?.csv")
    (('s3://bucket/labels.csv', '?region=eu-west-1'), ('labels?.csv', ''))
    """
    place, mark, options = path.partition("?") if "://" in path else (path, "", "")
    return place, mark + options


@dataclass(frozen=True)
class Run:
    """A finished (or unfinished) run, opened for reading.

    What cannot be read of a table is a DamagedRunError: its pages have checksums.
    """

    path: str
    fs: pafs.FileSystem
    root: str

    def arrow(self, name: str, columns: list[str] | None = None, filter: Any = None) -> pa.Table:
        """A table as pyarrow, partition columns as strings. ``filter``: a pyarrow.dataset expression."""
        with self._readable(name):
            return self.dataset(name).to_table(columns=columns, filter=filter)

    def batches(self, name: str, **how: Any) -> Iterator[pa.RecordBatch]:
        """A table in pieces, for what is larger than memory. ``how``: as of pyarrow's ``Dataset.to_batches``."""
        with self._readable(name):
            yield from self.dataset(name).to_batches(**how)

    def count_rows(self, name: str, filter: Any = None) -> int:
        """Rows of a table that a pyarrow.dataset expression chooses."""
        with self._readable(name):
            return int(self.dataset(name).count_rows(filter=filter))

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as e:
            reason = "".join(c if c.isprintable() else "?" for c in " ".join(str(e).split())).rstrip(".")
            raise DamagedRunError(
                f"got {self.path} with a table {name!r} that cannot be read ({reason}); expected it as it was written; "
                "take it from a copy, or run the sweep again."
            ) from None

    def dataset(self, name: str) -> pads.Dataset:
        """A table as a pyarrow dataset, for what is larger than memory."""
        if name not in schemas.TABLES:
            raise RunError(f"got the table {name!r}.{did_you_mean(name, schemas.TABLES)}")
        table = schemas.TABLES[name]
        folder = f"{self.root}/tables/{name}"
        if self.fs.get_file_info(folder).type != pafs.FileType.Directory:
            raise RunError(
                f"got {self.path} without the table {name!r}; expected a finished run; finish it with --resume, or run "
                "the sweep again if the table was lost."
            )
        self._require_files(name)
        fields = [pa.field(p, pa.string()) for p in table.partitions]
        partitioning = pads.partitioning(pa.schema(fields), flavor="hive") if fields else None
        schema = pa.schema([*table.schema.remove_metadata(), *fields])
        if self.schema_version < schemas.SCHEMA_VERSION:  # read whole: pyarrow cannot rename columns on the way
            if name not in self._upgraded:
                found = pads.dataset(folder, filesystem=self.fs, format="parquet", partitioning=partitioning)
                self._upgraded[name] = pads.dataset(upgraded(name, found.to_table()))
            return self._upgraded[name]
        return pads.dataset(folder, schema=schema, filesystem=self.fs, format=CHECKED, partitioning=partitioning)

    def _require_files(self, name: str) -> None:
        """Raise DamagedRunError where a file of a table is gone: pyarrow would read the others without a word."""
        expected = [file for file in self._files if file.startswith(f"{name}/")]
        lost = [file for file in expected if not self.fs.get_file_info(f"{self.root}/tables/{file}").is_file]
        if lost:
            raise DamagedRunError(
                f"got {self.path} without {lost[0]} and {len(lost) - 1} more files of the table {name!r}; expected all "
                f"{len(expected)}; take them from a copy, or run the sweep again."
            )

    @cached_property
    def _files(self) -> list[str]:
        """The files of all tables, as a finished run notes them; none where it does not."""
        try:
            return [str(file) for file in self.json("provenance.json").get("tables", ())]
        except (RunError, OSError, TypeError):
            return []

    @cached_property
    def _upgraded(self) -> dict[str, pads.Dataset]:
        """Tables of an earlier version that were read so far."""
        return {}

    @cached_property
    def schema_version(self) -> int:
        """Of the run's tables, as its provenance says; today's where it does not say."""
        try:
            return int(self.json("provenance.json").get("schema_version", schemas.SCHEMA_VERSION))
        except (RunError, OSError, TypeError, ValueError):
            return schemas.SCHEMA_VERSION

    def pandas(self, name: str, columns: list[str] | None = None, filter: Any = None) -> pd.DataFrame:
        """A table as a pandas frame."""
        return self.arrow(name, columns, filter).to_pandas()

    def sql(self, query: str) -> pd.DataFrame:
        """DuckDB SQL over the tables by name (extra ``analysis``)."""
        try:
            import duckdb
        except ImportError as e:
            raise RunError(
                "got SQL without DuckDB; expected the extra analysis; install it: pip install 'cxr-ray[analysis]'."
            ) from e
        with duckdb.connect() as connection:
            for name in schemas.TABLES:
                if self.fs.get_file_info(f"{self.root}/tables/{name}").type == pafs.FileType.Directory:
                    connection.register(name, self.dataset(name))
            return connection.sql(query).df()

    def json(self, name: str) -> dict[str, Any]:
        """``provenance.json``, ``primary.json`` or ``test_metrics.json``."""
        if not self.fs.get_file_info(f"{self.root}/{name}").is_file:
            raise RunError(f"got {self.path} without {name}; expected a finished run; finish it with --resume.")
        try:
            found = json.loads(read_file(self.fs, f"{self.root}/{name}", LARGEST_TEXT))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RunError(f"got {self.path}/{name}, which is damaged; expected JSON; run the sweep again.")
        return found

    @cached_property
    def sweep(self) -> dict[str, Any]:
        """The resolved sweep, as plain data."""
        try:
            sweep = parse_yaml(read_file(self.fs, f"{self.root}/sweep.yaml", LARGEST_TEXT).decode(), "sweep.yaml")
        except ValueError:  # SweepError among them
            raise RunError(
                f"got {self.path}/sweep.yaml, which is damaged; expected YAML; run the sweep again."
            ) from None
        if not isinstance(sweep, dict):
            raise RunError(
                f"got {self.path}/sweep.yaml, which holds no sweep; expected a mapping; run the sweep again."
            )
        return sweep


def open_run(path: str | Path) -> Run:
    """Opens the run folder ``path``, local or a URI.

    Raises:
        RunError: there is no ``sweep.yaml`` in it.
    """
    path = credentials.without(str(path))
    try:
        fs, root = filesystem(path)
    except (OSError, pa.ArrowException) as e:
        raise RunError(
            f"got {path}, which cannot be opened ({' '.join(str(e).split())}); expected a run; give a folder, or a URI "
            "that pyarrow knows (s3://, gs://)."
        ) from None
    if fs.get_file_info(f"{root}/sweep.yaml").type != pafs.FileType.File:
        raise RunError(
            f"got {path}, which is not a run (no sweep.yaml); expected a run; give the folder that --out named."
        )
    return Run(path, fs, root)


def newest_run(*folders: str) -> str:
    """The run that was written last, in any of the local folders that hold runs.

    Raises:
        RunError: there is none.
    """
    found = [path.parent for folder in folders for path in Path(folder).glob("*/sweep.yaml")]
    finished = [run for run in found if (run / "test_metrics.json").exists()]
    if not finished:
        raise RunError(
            f"got no finished run in {' or '.join(folders)}; expected one; make one (cxr-ray run), or name one "
            "(CXR_RAY_RUN)."
        )
    return str(max(finished, key=lambda run: (run / "test_metrics.json").stat().st_mtime))
