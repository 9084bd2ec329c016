"""One writer: a run's folder belongs to one sweep at a time, on local disks and on object stores.

The lock is a file in the folder that says who holds it. Its holder writes it anew every few seconds. So a lock whose
holder crashed is told from one that is held: by its process where that ran on this machine, else by waiting whether the
file changes. No clocks of two machines are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from pyarrow import ArrowException

from cxr_ray.errors import UserError
from cxr_ray.run import signals, terminal
from cxr_ray.storage import Store

NAME = ".lock.json"
BEAT = 10.0  # seconds between two writings
PATIENCE = 3 * BEAT  # without one, a holder on another machine is taken for dead
SETTLED = 1.0  # after which, of two that took it at the same time, the first sees the second
_HELD: set[str] = set()  # by this process

Holder = dict[str, Any]


@contextlib.contextmanager
def held(out: str) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Raises:
        UserError: another sweep holds it, or takes it over while this process stands still.
    """
    store, lost = Store(out, {}), threading.Event()
    own: Holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now(), "owner": uuid4().hex}
    if (before := _read(store)) is not None:
        if _is_alive(before, store):
            raise _refusal(out, before)
        terminal.say(f"The last sweep in {out} ({_who(before)}) ended without giving it back; going on.")
    _write(store, own)
    _HELD.add(own["owner"])
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, own, done, lost), daemon=True)
    beating.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise _refusal(out, _read(store) or {}) from None
        raise
    finally:
        done.set()
        beating.join()
        _HELD.discard(own["owner"])
        with contextlib.suppress(OSError, ArrowException):
            if _owner(_read(store)) == own["owner"]:
                store.fs.delete_file(store.path(NAME))


def _refusal(out: str, holder: Holder) -> UserError:
    return UserError(
        f"--out: got {out}, into which another sweep writes ({_who(holder)}); expected a folder of its own; wait for "
        "it, end it, or give another folder (--out PATH)."
    )


def _who(holder: Holder) -> str:
    """For a message. The file may be anybody's: nothing of it that could move a terminal's cursor."""
    pid, host, since = (
        "".join(c for c in str(holder.get(k)) if c.isprintable())[:80] for k in ("pid", "host", "since")
    )
    return f"process {pid} on {host}, since {since}"


def owner(store: Store) -> str | None:
    """Which sweep holds the run's folder; None: nobody does."""
    found = _owner(_read(store))
    return None if found is None else str(found)


def _owner(holder: Holder | None) -> Any:
    return None if holder is None else holder.get("owner")


def _beat(store: Store, own: Holder, done: threading.Event, lost: threading.Event) -> None:
    """Write the lock anew until ``done``; end the sweep where the lock is another's."""
    wait, beat = SETTLED, 0
    while not done.wait(wait):
        wait, beat = BEAT, beat + 1
        with contextlib.suppress(OSError, ArrowException):  # a full disk, a store that does not answer: the next time
            if _owner(_read(store)) not in (None, own["owner"]):
                lost.set()
                signals.interrupt()
                return
            _write(store, {**own, "beat": beat})


def _is_alive(holder: Holder, store: Store) -> bool:
    """Whether the holder of a lock still runs."""
    if "owner" not in holder:  # damaged: locks are written whole
        return False
    if holder.get("host") == socket.gethostname():
        return _runs(holder)
    terminal.say(f"{store.out} is held by {_who(holder)}: looking for {PATIENCE:.0f} seconds whether that still runs.")
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        time.sleep(BEAT / 10)
        if (found := _read(store)) != holder:
            return found is not None
    return False


def _runs(holder: Holder) -> bool:
    """Whether a process of this machine runs."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():  # of a container that was started anew, unless it is held by this very process
        return holder["owner"] in _HELD
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it runs, and belongs to another user
        return True
    return True


def _read(store: Store) -> Holder | None:
    """The lock; None where there is none. One that cannot be read is that of nobody who lives."""
    try:
        found = json.loads(store.read(NAME))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(store: Store, content: Holder) -> None:
    store.write(json.dumps(content).encode(), NAME)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
