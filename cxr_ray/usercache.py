"""Files in the user's cache folder, which may be deleted at any time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

_INSTEAD: ContextVar[Path | None] = ContextVar("_INSTEAD", default=None)


def folder(kind: str) -> Path:
    """Where files of a kind lie: ``cxr_ray/KIND`` in XDG_CACHE_HOME, ~/.cache by default."""
    if (instead := _INSTEAD.get()) is not None:
        return instead / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr_ray" / kind


def write(file: Path, data: bytes) -> None:
    """Put a file in place whole; where its folder cannot be written, nothing is kept."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=file.parent, prefix=".", suffix=file.suffix, delete=False) as part:
            part.write(data)
        Path(part.name).replace(file)


@contextlib.contextmanager
def unused() -> Iterator[None]:
    """Inside, nothing that was kept before is read, and nothing is kept."""
    with TemporaryDirectory() as folder:
        token = _INSTEAD.set(Path(folder))
        try:
            yield
        finally:
            _INSTEAD.reset(token)
