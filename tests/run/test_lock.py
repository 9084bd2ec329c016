"""One sweep at a time in a folder; a lock whose holder died is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from cxr_ray import results
from cxr_ray.errors import UserError
from cxr_ray.run import lock, signals
from cxr_ray.storage import Store

HOLDER = """
import sys, time
from cxr_ray.run import lock
with lock.held(sys.argv[1]):
    print(1, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def beats(monkeypatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    monkeypatch.setattr(lock, "SETTLED", 0.01)


def write(out: Path, **content: object) -> None:
    found = {"host": socket.gethostname(), "pid": 1, "since": "2026-01-01T00:00:00Z", "owner": "another"}
    (out / lock.NAME).write_text(json.dumps({**found, **content}))


def test_a_lock_is_there_while_it_is_held_and_gone_afterwards(tmp_path, beats):
    with lock.held(str(tmp_path)):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"into which another sweep writes \(process {os.getpid()} on "):
            lock.held(str(tmp_path)).__enter__()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), lock.held(str(tmp_path)):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


class Bucket(FSSpecHandler):
    """An object store in memory: an object is there once it is whole, and nothing can be renamed."""

    def move(self, src, dest):
        raise AssertionError("an object store renames nothing")


@pytest.fixture
def bucket(monkeypatch) -> Store:
    """A run in it."""
    files = MemoryFileSystem(skip_instance_cache=True)
    files.store, files.pseudo_dirs = {}, [""]
    opened = PyFileSystem(Bucket(files))
    from_uri = SimpleNamespace(from_uri=lambda uri: (opened, uri.removeprefix("s3://")))
    monkeypatch.setattr(results, "pafs", SimpleNamespace(FileSystem=from_uri, LocalFileSystem=LocalFileSystem))
    return Store("s3://bucket/run", {})


def test_the_lock_of_a_run_on_an_object_store_is_held_refused_and_taken_over(bucket, beats, capfd):
    def hold(host: str, beat: int = 0) -> None:
        holder = {"host": host, "pid": 7, "since": "2026-01-01T00:00:00Z", "owner": "another", "beat": beat}
        bucket.write(json.dumps(holder).encode(), lock.NAME)

    with lock.held(bucket.out):
        assert json.loads(bucket.read(lock.NAME))["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"got {bucket.out}, into which another sweep writes"):
            lock.held(bucket.out).__enter__()
    assert not bucket.exists(lock.NAME)
    hold("elsewhere")
    changing = threading.Timer(0.1, hold, ["elsewhere", 1])
    changing.start()
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        lock.held(bucket.out).__enter__()
    changing.join()
    with lock.held(bucket.out):
        assert json.loads(bucket.read(lock.NAME))["host"] == socket.gethostname()
    assert "ended without giving it back" in capfd.readouterr().out
    assert not bucket.exists(lock.NAME)


def test_another_process_is_refused_until_the_first_is_killed(tmp_path, capfd):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match=rf"process {process.pid} on {socket.gethostname()}, since 20"):
            lock.held(str(tmp_path)).__enter__()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with lock.held(str(tmp_path)):
        assert "ended without giving it back; going on." in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_is_refused_while_it_changes_and_taken_over_when_it_does_not(tmp_path, beats, capfd):
    write(tmp_path, host="elsewhere", pid=7)
    changing = threading.Timer(0.1, write, [tmp_path], {"host": "elsewhere", "pid": 7, "beat": 1})
    changing.start()
    with pytest.raises(UserError, match=r"process 7 on elsewhere, since 2026-01-01T00:00:00Z"):
        lock.held(str(tmp_path)).__enter__()
    changing.join()
    assert "looking for" in capfd.readouterr().out
    with lock.held(str(tmp_path)):
        assert json.loads((tmp_path / lock.NAME).read_text())["host"] == socket.gethostname()


def test_a_holder_that_stood_still_ends_when_another_took_its_folder(tmp_path, beats):
    def hold() -> None:
        with signals.handled(), lock.held(str(tmp_path)):
            write(tmp_path, host="elsewhere", pid=7)
            time.sleep(60)  # interrupted

    with pytest.raises(UserError, match=r"process 7 on elsewhere"):
        hold()
    assert json.loads((tmp_path / lock.NAME).read_text())["host"] == "elsewhere", "the other's lock stays"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"pid": "\\u001b[2J"}', b'{"host": 3, "owner": null}'],
)
def test_a_damaged_lock_stops_nothing_and_says_nothing_that_moves_the_cursor(tmp_path, beats, capfd, content):
    (tmp_path / lock.NAME).write_bytes(content)
    with lock.held(str(tmp_path)):
        pass
    assert "\x1b" not in capfd.readouterr().out


@pytest.mark.parametrize("pid", [0, -1, 2**70, None, "1", "own"])
def test_a_lock_of_a_process_that_cannot_be_is_taken_over(tmp_path, beats, pid):
    write(tmp_path, pid=os.getpid() if pid == "own" else pid)  # as in a container that was started anew
    with lock.held(str(tmp_path)):
        assert json.loads((tmp_path / lock.NAME).read_text())["owner"] != "another"
