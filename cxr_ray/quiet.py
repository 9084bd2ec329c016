"""Silence for libraries that print from C++, which Python's own streams do not see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent(descriptor: int) -> Iterator[None]:
    """Nothing comes out of a file descriptor of this process: 1 is stdout, 2 is stderr. Exceptions still tell."""
    c = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    sys.stdout.flush()
    sys.stderr.flush()
    c.fflush(None)
    kept = os.dup(descriptor)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        c.fflush(None)
        os.dup2(kept, descriptor)
        os.close(kept)
