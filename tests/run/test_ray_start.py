"""What is wrong where Ray does not start is one line with what to do; Ray on this machine is this user's alone."""

import os
import socket
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cxr_ray.errors import ClusterError
from cxr_ray.run import ahead, ray_start, ray_wait

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.55.0
    Python: 3.12.1
This process on node 10.0.0.7 was started with:
    Ray: 2.60.0
    Python: 3.11.2
"""
TOO_LARGE = "Package at gcs://x has a size of 3.1GiB, which exceeds the maximum size of 512 MiB."


@pytest.fixture
def init(monkeypatch):
    """Stands in for ``ray.init``: what it was asked for; raises what stands in ``fails``, in turn."""
    asked = SimpleNamespace(calls=[], fails=[], ended=0)

    def start(**options):
        asked.calls.append({**options, "constants": {n: getattr(ray._private.ray_constants, n) for n in SWITCHES}})
        if asked.fails:
            raise asked.fails.pop(0)

    def shutdown():
        asked.ended += 1

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", shutdown)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_start, "_be_quiet", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return asked


SWITCHES = ("ENABLE_RAY_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")


@pytest.fixture
def refused(init, monkeypatch):
    """The one line that a start with RAY_ADDRESS ends in."""

    def start(address: str, *fails: Exception) -> str:
        monkeypatch.setenv("RAY_ADDRESS", address)
        init.fails[:] = fails
        with pytest.raises(ClusterError) as told:
            ray_start.start_ray()
        (line,) = str(told.value).splitlines()
        assert line.endswith((".", ")."))
        assert "; expected " in line
        return line

    return start


def test_a_ray_of_this_process_is_used_and_left_alone(init, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    started = ray_start.start_ray()
    assert not started.local
    started.end()
    assert not init.calls
    assert not init.ended


def test_ray_on_this_machine_has_a_token_in_no_file_and_a_folder_that_ends_with_it(init, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_start, "LONGEST_FOLDER", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    started = ray_start.start_ray()
    (asked,) = init.calls
    assert asked["address"] == "local"
    assert asked["constants"] == dict.fromkeys(SWITCHES, False)
    assert getattr(ray._private.ray_constants, SWITCHES[0]), "as it was"
    folder = Path(asked["_temp_dir"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token"
    started.end()
    assert init.ended == 1
    assert not list(tmp_path.iterdir())
    assert "RAY_AUTH_TOKEN" not in os.environ
    ray_start.start_ray().end()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_processes_that_idle_are_kept_unless_the_user_says_otherwise(init, monkeypatch):
    name, kept = ray_start.KEEP_IDLE
    monkeypatch.setenv(name, "1000")
    ray_start.start_ray().end()
    assert os.environ[name] == "1000"
    monkeypatch.delenv(name)
    ray_start.start_ray().end()
    assert os.environ.pop(name) == kept


def test_a_token_of_the_user_stays(init, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    ray_start.start_ray().end()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"


def test_a_ray_that_fails_at_once_gets_a_second_try(init):
    init.fails = [Exception("its process raylet ended at once, with exit code 1")]
    started = ray_start.start_ray()
    assert started.local
    assert len(init.calls) == 2
    started.end()


def test_a_ray_that_took_its_time_to_fail_gets_none(init, monkeypatch):
    monkeypatch.setattr(ray_start, "AGAIN_SECONDS", -1)
    init.fails = [Exception("it was too slow")]
    with pytest.raises(ClusterError, match=r"does not start on this machine \(it was too slow\); expected"):
        ray_start.start_ray()
    assert len(init.calls) == 1


def test_what_a_start_waits_for_is_told_with_its_end(init, monkeypatch):
    told = []
    monkeypatch.setattr(ray, "init", lambda **_: told.append((ray_wait.told(), str(ray_start.too_slow()))))
    ray_start.start_ray().end()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    ray_start.start_ray()
    (here, slow_here), (there, slow_there) = told
    assert here == "waits for Ray's processes; gives up after 3 minutes"
    assert "it still waited for Ray's processes, after 180 seconds); expected" in slow_here
    assert there == "waits for the cluster of RAY_ADDRESS=auto; gives up after 22 seconds"
    assert "got RAY_ADDRESS=auto, where no cluster answers (no end of its greeting in 22 seconds); exp" in slow_there
    assert ray_wait.told() == "imports Ray"


def test_a_node_of_the_cluster_is_looked_for_on_this_machine_for_less_than_a_start_may_take(init, monkeypatch):
    services: Any = ray._private.services
    asked = []
    monkeypatch.setattr(services, "get_node_to_connect_for_driver", lambda **limits: asked.append(limits))
    before = services.get_node_to_connect_for_driver
    monkeypatch.setattr(ray, "init", lambda **_: services.get_node_to_connect_for_driver())
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    ray_start.start_ray()
    assert asked == [{"timeout_seconds": ray_start.NODE_SECONDS}]
    assert ray_start.ANSWER_SECONDS + ray_start.NODE_SECONDS < ray_start.JOIN_SECONDS + ahead.GRACE_SECONDS < 30
    assert services.get_node_to_connect_for_driver is before


def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing(init, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_start, "LONGEST_FOLDER", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    init.fails = [Exception("Failed to start GCS.\nLast 0 lines of files:")] * 2
    with pytest.raises(ClusterError, match=r"does not start on this machine \(Failed to start GCS\); expected"):
        ray_start.start_ray()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_such(init):
    init.fails = [OSError(28, "No space left on device")]
    with pytest.raises(OSError, match="No space left"):
        ray_start.start_ray()


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_long_temporary_folder_is_refused(init, monkeypatch, tmp_path, name):
    folder = tmp_path / ("long" * 10)
    folder.mkdir()
    monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(ray_start.tempfile, "tempdir", None)  # it is kept
    with pytest.raises(ClusterError, match=rf"got {name}=.*at most 28 characters.*RAY_TMPDIR=/tmp"):
        ray_start.start_ray()


def test_the_longest_folder_holds_rays_sockets():
    session = "session_2026-11-28_07-25-39_703196_4194304"  # the largest process id
    socket_path = f"{'x' * ray_start.LONGEST_FOLDER}/cxr-12345678/r/{session}/sockets/plasma_store"
    assert len(socket_path) == 107


def test_a_temporary_folder_that_cannot_be_written_is_refused(init, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/1")
    with pytest.raises(ClusterError, match=r"got /proc/1, .* cannot be written .*RAY_TMPDIR=PATH"):
        ray_start.start_ray()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001", "https://x"])
def test_addresses_of_other_doors_are_refused(refused, address):
    assert "HOST:PORT" in refused(address)


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(refused, address):
    assert f"RAY_ADDRESS={address}" in refused(address)


def test_a_port_that_nobody_listens_to_is_refused_at_once(refused, init):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    line = refused(address)
    assert "where no cluster answers (" in line
    assert "unset RAY_ADDRESS" in line
    assert not init.calls


@pytest.mark.parametrize(("answer", "reason"), [(None, "no answer"), (b"HTTP/1.1 400 Bad Request\r\n", "is no Ray")])
def test_what_does_not_speak_as_ray_does_is_not_waited_for(refused, init, monkeypatch, answer, reason):
    """A machine that takes connections and is silent, and another server."""
    monkeypatch.setattr(ray_start, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            connection.recv(100)
            connection.sendall(answer)
            connection.close()

        if answer is not None:
            threading.Thread(target=reply, daemon=True).start()
        assert reason in refused(f"127.0.0.1:{server.getsockname()[1]}")
    assert not init.calls


FAILURES = {
    "other versions": (RuntimeError(MISMATCH), "Ray: 2.55.0 Python: 3.12.1", "install the cluster's here"),
    "no token": (ray.exceptions.AuthenticationError("Token authentication is enabled but"), "token", "RAY_AUTH_TOKEN"),
    "a large folder": (RuntimeError(TOO_LARGE), "512 MiB", "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0"),
    "no node here": (
        RuntimeError("No node info found matching attributes: '' when trying to resolve node to connect to."),
        "of which no node runs on this machine",
        "ray job submit",
    ),
    "anything else": (
        ConnectionError("it is gone\nmore"),
        "where no cluster answers (it is gone)",
        "unset RAY_ADDRESS",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_why_a_cluster_was_not_joined_is_one_line(refused, monkeypatch, case):
    error, reason, remedy = FAILURES[case]
    line = refused("auto", error)
    assert reason in line
    assert remedy in line
    wrapped = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    wrapped.__cause__ = error
    assert refused("auto", wrapped) == line, "the reason, not what Ray says of each"
