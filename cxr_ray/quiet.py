"""Silence for libraries that print from C++, which Python's own streams do not see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

from cxr_ray.credentials import redacted

_lock = threading.RLock()
_kept: dict[int, int] = {}  # a silent descriptor to what it was


def complain(text: str) -> None:
    """A line on stderr, also while another thread keeps it silent."""
    text = redacted(text)
    with _lock:
        if 2 in _kept:
            os.write(_kept[2], f"{text}\n".encode(errors="replace"))
        else:
            sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def silent(descriptor: int) -> Iterator[None]:
    """Nothing comes out of a file descriptor of this process: 1 is stdout, 2 is stderr. Exceptions still tell."""
    c = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    sys.stdout.flush()
    sys.stderr.flush()
    c.fflush(None)
    with _lock, open(os.devnull, "wb") as nowhere:
        kept = _kept[descriptor] = os.dup(descriptor)
        os.dup2(nowhere.fileno(), descriptor)
    try:
        yield
    finally:
        with _lock:
            sys.stdout.flush()
            sys.stderr.flush()
            c.fflush(None)
            os.dup2(kept, descriptor)
            os.close(kept)
            del _kept[descriptor]
