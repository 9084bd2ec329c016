"""Many files read at once: in threads, and why one of them cannot be read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.counting import done
from cxr_ray.credentials import redacted, without
from cxr_ray.data import images
from cxr_ray.data.entries import Source
from cxr_ray.errors import ImageError

Row = dict[str, Any]
AtOnce = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Pixels(NamedTuple):
    """Images that could be decoded, and why others could not.

    images_NCHW: uint8 RGB [N, 3, size, size], N the rows kept, in their order.
    keep: bool, one for each row asked for.
    errors: rows of ``schemas.ERRORS`` for the others.
    """

    images_NCHW: NDArray[np.uint8]
    keep: NDArray[np.bool_]
    errors: list[Row]


def load_pixels(
    source: Source, rows: pd.DataFrame, size: int, fit: images.Fit = "squash", preprocess: str = "none"
) -> Pixels:
    """Reads, decodes and preprocesses the images of ``rows`` (columns path and image_id) in threads.

    An image that cannot be decoded is left out and becomes an error of stage ``decode``.
    """

    bits = used_bits(source)

    def load(path: str) -> NDArray[np.uint8] | str:
        try:
            return images.preprocess(images.decode(source.read(path), size, fit, bits), preprocess)
        except ImageError as e:
            return str(e)
        except (OSError, pa.ArrowException) as e:
            return unreadable(e)

    pixels = np.empty((len(rows), 3, size, size), np.uint8)
    keep = np.zeros(len(rows), bool)
    errors: list[Row] = []
    kept = 0
    with ThreadPoolExecutor(_threads()) as pool:
        for i, loaded in enumerate(_counted(pool.map(load, rows["path"]))):
            if isinstance(loaded, str):
                row = rows.iloc[i]
                errors.append({"path": row["path"], "image_id": row["image_id"], "stage": "decode", "reason": loaded})
            else:
                pixels[kept] = loaded
                keep[i] = True
                kept += 1
    return Pixels(pixels[:kept], keep, errors)


def absolute(path: str) -> str:
    """A path that names the same file from another folder, as a worker's; a URI without its credentials."""
    return without(path) if "://" in path else os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def used_bits(source: Source) -> int:
    """How many bits 16-bit images of a source use."""
    return getattr(source, "bits", None) or 16


def _threads() -> int:
    return min(32, 4 * (os.cpu_count() or 1))  # reading waits, decoding releases the interpreter's lock


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function of each item, in order, many at a time; each is counted as done."""
    with ThreadPoolExecutor(_threads()) as pool:
        return list(_counted(pool.map(function, items)))


_AT_ONCE: ContextVar[AtOnce] = ContextVar("at_once", default=in_threads)


@contextlib.contextmanager
def reading_by(read: AtOnce) -> Iterator[None]:
    """Inside, ``at_once`` is this function."""
    token = _AT_ONCE.set(read)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function, which can be pickled, of each item, in order: in threads, or as ``reading_by`` says."""
    return _AT_ONCE.get()(function, items)


def _counted(results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
        done()
        yield result


def unreadable(error: Exception) -> str:
    """The reason of a row of ``errors`` for a file that could not be read."""
    return f"The file cannot be read: {one_line(error)}."


def one_line(error: Exception) -> str:
    """The kind of an error and what it says, at most 200 characters on one line.

    >>> one_line(OSError("no such   file."))
    'OSError: no such file'
    """
    text = redacted(" ".join(str(error).split()).rstrip("."))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
