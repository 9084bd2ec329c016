"""Whole files, whose size and first bytes are looked at before the rest: what someone sent may be of any size."""

from __future__ import annotations

from collections.abc import Callable

from pyarrow import fs as pafs

SMALL = 2**20  # bytes that are read at once, whatever they are
HEAD = 4096  # bytes in which a format shows
LARGEST_TEXT = 2**26  # bytes of a run's JSON or YAML


class TooLargeError(ValueError):
    """A file is larger than what it should be ever is."""

    def __init__(self, size: int, most: int):
        super().__init__(f"it has {size} bytes, more than {most}")


def read_file(fs: pafs.FileSystem, path: str, most: int, check: Callable[[bytes], object] | None = None) -> bytes:
    """The bytes of a file.

    Args:
        fs, path: where it is.
        most: bytes.
        check: takes the first bytes of a file over SMALL, and raises where it is not what it should be.

    Raises:
        OSError: there is no such file, or it cannot be read.
        TooLargeError: more than ``most`` bytes.
    """
    with fs.open_input_file(path) as file:
        size = file.size()
        if check is not None and size > SMALL:
            check(file.read(HEAD))
            file.seek(0)
        if size > most:
            raise TooLargeError(size, most)
        data: bytes = file.read()
        return data
