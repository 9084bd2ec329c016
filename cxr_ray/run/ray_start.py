"""Ray's start: on this machine alone, for this user alone, or joined; whatever is wrong is one line.

Ray on this machine listens on 127.0.0.1, asks for a token that stands in no file, and keeps its session in a folder
that nobody else can enter. A Ray that runs in this process already is used, and left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import ray

from cxr_ray import credentials
from cxr_ray.errors import ClusterError, first_line
from cxr_ray.machine import usable_cpus
from cxr_ray.quiet import silent
from cxr_ray.run import ray_processes, ray_wait

SPARE_CPUS = 1  # logical CPUs of one machine for tasks that read and write, next to the real ones that compute
ANSWER_SECONDS = 10.0  # within which a cluster takes a connection, and answers
LONGEST_FOLDER = 28  # characters: sockets lie 79 further down, and their paths may have 107
JOIN_SECONDS = 22.0  # after which a cluster is not joined
NODE_SECONDS = 14.0  # for its node on this machine
LOCAL_SECONDS = 180.0  # after which a Ray on this machine, whose processes live, does not start
AGAIN_SECONDS = 12.0  # within which it failed, to be tried again
TOKEN = "RAY_AUTH_TOKEN"
# Of processes above one a CPU, Ray ends those that idle for a second, and begins others for the next shards: seconds of
# CPU time each.
KEEP_IDLE = "RAY_idle_worker_killing_time_threshold_ms", "600000"
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # of HTTP/2, and empty settings


@dataclass(frozen=True)
class RayStart:
    """Ray, as it was started.

    Attributes:
        local: on this machine for this run, with SPARE_CPUS more than it has.
        joined: it ran in this process before, and is not ours to end.
        folder: of the session, which ends with it.
        own_token: made for it, and set in this process's environment.
    """

    local: bool
    joined: bool = False
    folder: str | None = None
    own_token: bool = False

    def end(self) -> None:
        """End Ray, or leave the cluster."""
        if self.joined:
            return
        ray.shutdown()
        if self.own_token:
            os.environ.pop(TOKEN, None)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def start_ray() -> RayStart:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine alone.

    Raises:
        ClusterError: the cluster does not answer, or Ray does not start.
    """
    if ray.is_initialized():
        return RayStart(local=False, joined=True)
    _be_quiet()
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if address and address != "local":
            ray_wait.begin(f"the cluster of RAY_ADDRESS={address}", JOIN_SECONDS)
            _join(address)
            return RayStart(local=False)
        ray_wait.begin("Ray's processes", LOCAL_SECONDS)
        return _start()
    finally:
        ray_wait.end()


def too_slow() -> ClusterError:
    """What is said of a start that is still waited for, and will be no longer."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        return ClusterError(_no_cluster(address, f"no end of its greeting in {JOIN_SECONDS:.0f} seconds"))
    return ClusterError(_no_start(f"it still waited for {ray_wait.what()}, after {LOCAL_SECONDS:.0f} seconds"))


def _be_quiet() -> None:
    """Tune's tables, Data's bars and plans, and what raylets say of processes give way to our own lines."""
    for library in ("ray.data", "ray.tune"):  # their stack traces: one line says what ended a trial or a run
        importlib.import_module(library)  # which sets the level itself
        logging.getLogger(library).setLevel(logging.CRITICAL)
    for name, value in (
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_BACKEND_LOG_LEVEL", "fatal"),
    ):
        os.environ.setdefault(name, value)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray._private.worker._worker_logs_enabled = False  # else it prints whatever log_to_driver says


def _start() -> RayStart:
    folder = private_folder()
    own_token = not os.environ.get(TOKEN) and not os.environ.get(f"{TOKEN}_PATH")
    if own_token:
        os.environ[TOKEN] = secrets.token_hex(32)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault(*KEEP_IDLE)
    _read_token_again()
    began = time.monotonic()
    try:
        for last in (False, True):
            try:
                _init(folder)
                return RayStart(local=True, folder=folder, own_token=own_token)
            except Exception as e:
                if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if last or ray_wait.is_given_up() or time.monotonic() - began > AGAIN_SECONDS:
                    raise ClusterError(_no_start(_reason(e))) from None
        raise AssertionError("one of the tries returns or raises")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _init(folder: str) -> None:
    try:
        with silent(2), _alone(), ray_processes.watched():
            ray.init(
                address="local",
                num_cpus=usable_cpus() + SPARE_CPUS,
                include_dashboard=False,
                _temp_dir=f"{folder}/r",
                **QUIET,
            )
    except Exception:
        with contextlib.suppress(Exception), silent(2):
            ray.shutdown()
        raise


def _no_start(reason: str) -> str:
    return (
        f"got a Ray that does not start on this machine ({reason}); expected one that does; see whether memory, "
        "processes or open files are short (ulimit -a) or the machine is very busy, and run it again, with --resume "
        "where a run was begun."
    )


def private_folder(environ: MutableMapping[str, str] = os.environ) -> str:
    """A new folder that only this user can enter, for sockets, logs and what does not fit into memory.

    Raises:
        ClusterError: the temporary folder cannot be written, or its path is too long.
    """
    where = environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    name = "RAY_TMPDIR" if environ.get("RAY_TMPDIR") else "TMPDIR"
    if len(where.encode()) > LONGEST_FOLDER:
        raise ClusterError(
            f"got {name}={where}; expected a path of at most {LONGEST_FOLDER} characters, since Ray keeps sockets "
            "there; name a short one for Ray (RAY_TMPDIR=/tmp)."
        )
    try:
        return tempfile.mkdtemp(prefix="cxr-", dir=where)  # mode 0700
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ClusterError(
            f"got {where}, where Ray's temporary files cannot be written ({e.strerror}); expected a folder that can; "
            "name another (RAY_TMPDIR=PATH)."
        ) from None


def _read_token_again() -> None:
    """Have Ray read mode and token again, which it keeps from when it was imported."""
    with contextlib.suppress(ImportError, AttributeError):  # versions without tokens
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Ray's own switches of one machine: listen on 127.0.0.1, and no copy of the current folder under ``uv run``."""
    constants = ray._private.ray_constants
    switches = ("ENABLE_RAY_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    before = {name: getattr(constants, name) for name in switches if hasattr(constants, name)}
    for name in before:
        setattr(constants, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


def _join(address: str) -> None:
    if credentials.were_given():
        raise ClusterError(
            f"got RAY_ADDRESS={address} and a URI with credentials, which the cluster's processes do not have; "
            "expected credentials in the environment of every machine when Ray starts there (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and the like); give the URI without them."
        )
    if "://" in address:
        raise ClusterError(
            f"got RAY_ADDRESS={address}; expected the HOST:PORT of a cluster (6379 unless it was chosen), since "
            "http:// is for ray job submit and ray:// for its client; give that, or submit the sweep (ray job submit "
            "--address http://HOST:8265)."
        )
    if address != "auto":
        _require_answer(address)
    try:
        with silent(2), _impatient():  # Ray says on stderr that it was asked to be quiet
            ray.init(address=address, **QUIET)
    except Exception as e:
        with contextlib.suppress(Exception), silent(2):
            ray.shutdown()
        raise ClusterError(_why_not_joined(address, e)) from None


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Ray's own wait for a node of the cluster on this machine ends before ours: then it says why."""
    services: Any = importlib.import_module("ray._private.services")
    name = "get_node_to_connect_for_driver"
    before = getattr(services, name, None)  # versions without it
    if before is not None:
        setattr(services, name, functools.partial(before, timeout_seconds=NODE_SECONDS))
    try:
        yield
    finally:
        if before is not None:
            setattr(services, name, before)


def _require_answer(address: str) -> None:
    """Raise ClusterError where nothing takes connections at the address, or what does speaks no gRPC."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"got RAY_ADDRESS={address}; expected HOST:PORT; give that, such as 10.0.0.1:6379.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(PREFACE)
                if connection.recv(4)[3:] != b"\x04":  # the settings of the other side
                    raise ConnectionError("what answers is no Ray; is it the port of the dashboard?")
    except (OSError, OverflowError) as e:
        reason = "no answer" if isinstance(e, TimeoutError) else first_line(e)
        raise ClusterError(_no_cluster(address, reason)) from None


def _no_cluster(address: str, reason: str) -> str:
    return (
        f"got RAY_ADDRESS={address}, where no cluster answers ({reason}); expected the address of a cluster; start "
        "it, or unset RAY_ADDRESS to run on this machine."
    )


def _why_not_joined(address: str, error: BaseException) -> str:
    while error.__cause__ is not None:  # Ray's own words for every reason are that it failed to connect
        error = error.__cause__
    text = str(error)
    if "ersion mismatch" in text:
        versions = " ".join(text.split()).removeprefix("Version mismatch: ").rstrip(".")
        return (
            f"got RAY_ADDRESS={address}, a cluster of other versions ({versions}); expected the same Ray and Python on "
            "both sides; install the cluster's here, or run this sweep there (ray job submit)."
        )
    if isinstance(error, ray.exceptions.AuthenticationError) or "token" in text.lower():
        return (
            f"got RAY_ADDRESS={address}, a cluster that asks for a token, and no or another one; expected the "
            "cluster's; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, a file with it."
        )
    if "No node info found" in text:
        return (
            f"got RAY_ADDRESS={address}, a cluster of which no node runs on this machine; expected one, since a sweep "
            "joins a cluster from inside; submit the sweep (ray job submit --address http://HOST:8265), or make this "
            f"machine a node (ray start --address={address})."
        )
    if "exceeds" in text and "size" in text.lower():
        return (
            f"got a current folder that is too large for Ray to copy to the cluster of RAY_ADDRESS={address} "
            f"({_reason(error)}); expected one without data; leave it where it is "
            "(RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 under uv run), or name what is left out in .gitignore."
        )
    return _no_cluster(address, _reason(error))


def _reason(error: BaseException) -> str:
    return first_line(error).strip().rstrip(".") or type(error).__name__
