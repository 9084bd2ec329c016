"""What was read of the files of a folder, remembered: a file whose size and time are as before is not read again.

One Parquet file a data folder lies in the user's cache folder. One that cannot be read, or of another form, counts as
none.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_ray import usercache
from cxr_ray.data.entries import Stamp

_VERSION = 2  # of what is read of a file
SETTLED = 2.0  # seconds: a file that changed later may change again without another time
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("identity", pa.string()),
        ("image_id", pa.string()),
        ("content_hash", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
    ]
)


class Known(NamedTuple):
    """What is known of the content of an image file.

    identity: split/class/name, of which image_id is made as well.
    """

    identity: str
    image_id: str
    content_hash: str
    width: int
    height: int
    mode: str


class Memory:
    """The files of one folder: what was known of them, and what is from now on."""

    def __init__(self, where: str):
        """Takes an absolute path."""
        name = f"{_VERSION}:{where}"
        self._file = usercache.folder("images") / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.parquet"
        self._before = _read(self._file)
        self._now: dict[str, tuple[Stamp, Known]] = {}

    def known(self, path: str, stamp: Stamp, identity: str) -> Known | None:
        """What is known of a file; None where its stamp or its identity is new. Threads may share this."""
        before = self._before.get(path)
        return before[1] if before and before[0] == stamp and before[1].identity == identity else None

    def note(self, path: str, stamp: Stamp, known: Known) -> None:
        """This is known of a file from now on."""
        self._now[path] = stamp, known

    def keep(self) -> None:
        """Write what is known now, but of files that were written just before."""
        if self._now == self._before:
            return
        latest = (time.time() - SETTLED) * 1e9
        rows = [(path, *stamp, *known) for path, (stamp, known) in self._now.items() if stamp.mtime_ns < latest]
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(arrays, schema=SCHEMA), sink)
        usercache.write(self._file, sink.getvalue().to_pybytes())


def _read(file: Path) -> dict[str, tuple[Stamp, Known]]:
    try:
        table = pq.read_table(file, partitioning=None)
    except (OSError, ValueError, pa.ArrowException):
        return {}
    if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
        return {}
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return {path: (Stamp(size, mtime), Known(*known)) for path, size, mtime, *known in rows}
