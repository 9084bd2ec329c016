"""Ray's start in the background: not before the user's mistakes are found, and without a word on stderr but ours."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cxr_ray import quiet
from cxr_ray.data.folder import FolderSource
from cxr_ray.errors import CheckpointError, ClusterError, DataError
from cxr_ray.run import context, ray_start
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
