"""Ray's start in the background: not before the user's mistakes are found, and without a word on stderr but ours."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cxr_ray import quiet
from cxr_ray.data.folder import FolderSource
from cxr_ray.errors import CheckpointError, ClusterError, DataError
from cxr_ray.run import ahead, context, progress, ray_start, ray_wait, signals
from cxr_ray.run.ahead import RayAhead
from cxr_ray.sweepfile import resolve


@pytest.fixture
def begun(monkeypatch):
    """The threads that started Ray, which does not start; "ended" where it was ended."""
    threads: list = []

    def start():
        threads.append(threading.current_thread())
        return SimpleNamespace(local=True, end=lambda: threads.append("ended"))

    monkeypatch.setattr(ray_start, "start_ray", start)
    return threads


def test_ray_is_begun_once_in_a_thread_that_stays_until_it_is_ended(begun):
    ahead = RayAhead()
    ahead.start()
    assert ahead.started()
    ahead.imported()
    (thread,) = begun
    assert thread is not threading.current_thread()
    assert thread.is_alive()  # Ray's processes would end with it
    ahead.close()
    assert begun == [thread, "ended"]
    assert not thread.is_alive()
    ahead.close()
    assert len(begun) == 2


def test_signals_are_taken_again_when_ray_has_ended(begun, monkeypatch):
    monkeypatch.setattr(signals, "again", lambda: begun.append("signals"))
    ahead = RayAhead()
    ahead.start()
    ahead.close()
    assert begun[1:] == ["ended", "signals"]


def test_what_was_not_begun_is_not_ended(begun):
    RayAhead().close()
    assert begun == []


def test_a_cluster_that_does_not_answer_is_told_to_who_waits_for_it(begun, monkeypatch):
    def fail():
        raise ClusterError("no answer.")

    monkeypatch.setattr(ray_start, "start_ray", fail)
    ahead = RayAhead()
    ahead.start()
    with pytest.raises(ClusterError, match="no answer"):
        ahead.started()
    ahead.close()
    assert begun == []


def hangs(monkeypatch) -> threading.Event:
    """Ray's start hangs in C until this is set; it may take no time."""
    goes_on = threading.Event()

    def start():
        ray_wait.begin("the cluster", -1)
        assert goes_on.wait(60)
        raise ClusterError("too late.")

    monkeypatch.setattr(ray_start, "start_ray", start)
    monkeypatch.setattr(ahead, "GRACE_SECONDS", 0.02)
    monkeypatch.setattr(ahead, "LOOK_SECONDS", 0.01)
    return goes_on


def test_a_start_that_takes_too_long_is_a_line_and_nobody_waits_for_it(begun, monkeypatch, capsys):
    goes_on = hangs(monkeypatch)
    starting = RayAhead()
    with progress.shown("A command"), progress.stage("Starting Ray") as stage:
        with pytest.raises(ClusterError, match="it still waited for the cluster, after 180 seconds"):
            starting.started()
        assert "waits for the cluster; gives up after" in stage.told()
    thread = starting._thread
    starting.close()
    assert thread.is_alive()
    assert thread.daemon
    goes_on.set()
    thread.join()


def test_a_ray_that_starts_after_it_was_left_is_ended_by_its_own_thread(begun, monkeypatch):
    goes_on, inside, start = threading.Event(), threading.Event(), ray_start.start_ray

    def late():
        inside.set()
        assert goes_on.wait(60)
        return start()

    monkeypatch.setattr(ray_start, "start_ray", late)
    monkeypatch.setattr(ahead, "GRACE_SECONDS", 0.02)
    starting = RayAhead()
    starting.start()
    inside.wait(60)
    thread = starting._thread
    starting.close()
    assert begun == []
    goes_on.set()
    thread.join()
    assert begun == [thread, "ended"]


def test_a_start_that_nobody_needs_is_told_so(begun, monkeypatch):
    inside = threading.Event()

    def start():
        inside.set()
        while not ray_wait.is_given_up():
            time.sleep(0.01)
        raise ClusterError("given up.")

    monkeypatch.setattr(ray_start, "start_ray", start)
    starting = RayAhead()
    starting.start()
    inside.wait(60)
    starting.close()
    ray_wait.begin("", 0)
    ray_wait.end()
    assert begun == []


def prepared(folder: Path, ahead: RayAhead, **checkpoint: str):
    given = {"variants": {"plain": {}}, "model": {"weights": "none"}}
    given |= {"checkpoints": {"given": checkpoint}} if checkpoint else {}
    asked = {"data": {"path": str(folder), "size": 32, "val_share": 0.2}, "regions": None, **given}
    return context.prepare(resolve(asked), "out", ahead)


def test_ray_is_begun_before_images_are_read_and_after_what_needs_none(begun, tmp_path, tiny_folder, monkeypatch):
    ahead = RayAhead()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        prepared(tmp_path / "empty", ahead)
    with pytest.raises(CheckpointError):
        prepared(tiny_folder, ahead, path=str(tmp_path / "missing.pt"))
    assert begun == []
    read = FolderSource.read

    def reading(self, path):
        assert ahead.started()
        return read(self, path)

    monkeypatch.setattr(FolderSource, "read", reading)
    assert len(prepared(tiny_folder, ahead).manifest.images) == 24
    ahead.close()


def test_a_mistake_is_told_while_another_thread_keeps_stderr_silent(capfd):
    started, told = threading.Event(), threading.Event()

    def start():
        with quiet.silent(2):
            started.set()
            told.wait(60)
            os.write(2, b"Ray's own words\n")

    thread = threading.Thread(target=start)
    thread.start()
    started.wait(60)
    quiet.complain("what is wrong")
    told.set()
    thread.join()
    quiet.complain("and afterwards")
    assert capfd.readouterr().err == "what is wrong\nand afterwards\n"
