"""A training that hangs is ended with a note, tried again, and told. Without Ray; no time is measured."""

import contextlib
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray import exceptions

from cxr_ray.config import Model
from cxr_ray.run import deaths, tuning, watchdog
from cxr_ray.run.trial_files import FOLDER, HUNG, TrialFiles
from cxr_ray.run.watchdog import Watchdog
from cxr_ray.storage import Store
from tests.builders.hanging import Hanging
from tests.builders.trials import images, kept, train, trial

HOLDS_THE_LOCK = """
import ctypes
from cxr_ray.run import watchdog
watchdog.TICK_SECONDS = 0.05
with watchdog.Watchdog(lambda most: 0.2, print).watching():
    ctypes.PyDLL(None).sleep(3600)  # in C, and no other thread runs
"""


class Ended(Exception):
    """As good as the end of the process."""


@pytest.fixture
def ended(monkeypatch):
    """Looks of a watchdog whose network does what a list says: the seconds after which it ended the process."""
    monkeypatch.setattr(watchdog, "_end_after", lambda seconds: None)

    def end(code: int) -> None:
        assert code == 1
        raise Ended

    monkeypatch.setattr(watchdog.os, "_exit", end)

    def look(*happens: str) -> list[float]:
        notes: list[float] = []
        dog, left = Watchdog(deaths.allowed_seconds, notes.append), list(happens)

        def wait(seconds: float) -> bool:
            dog._resting = bool(left) and left[0] == "rests"
            if left and left[0] == "epoch":
                with dog.rest():
                    pass
            if left and left.pop(0) == "step":
                dog.sign()
            return not left and happens[-1] != "hangs"

        monkeypatch.setattr(dog, "_over", SimpleNamespace(wait=wait))
        with contextlib.suppress(Ended):
            dog._watch()
        return notes

    return look


@pytest.mark.parametrize(
    ("happens", "seconds"),
    [
        (["hangs"], deaths.FIRST_SECONDS),
        (["step"] * 9 + ["hangs"], deaths.FIRST_SECONDS),
        (["step"] * 9 + ["epoch", "step", "hangs"], deaths.LEAST_SECONDS),
        (["step"] + ["nothing"] * 59 + ["step", "epoch", "hangs"], deaths.MARGIN * 60),
        (["step", "epoch"] + ["rests"] * 9999 + ["hangs"], deaths.LEAST_SECONDS),
    ],
    ids=["the first step", "the first epoch", "a later epoch", "an epoch with steps of a minute", "after a rest"],
)
def test_a_training_is_ended_after_a_time_that_rests_on_its_own_cost(ended, happens, seconds):
    (passed,) = ended(*happens)
    assert passed == pytest.approx(seconds, abs=2)


def test_a_training_that_goes_on_slowly_or_rests_is_left_alone(ended):
    slow = (["nothing"] * 200 + ["step"]) * 20
    assert not ended(*slow, "epoch", *slow)
    assert not ended("step", "epoch", *["rests"] * 9999)


def test_a_trial_that_hangs_is_ended_with_a_note_and_goes_on_to_the_same_weights(monkeypatch, tmp_path):
    """In its second epoch. Time passes for the watchdog once the network hangs."""
    plan = replace(trial(), model=Model(arch="factory:tests.builders.hanging:Hanging", weights="none", size=32))
    monkeypatch.setattr(Hanging, "passes", 0)
    monkeypatch.setattr(Hanging, "at", 0)
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_end_after", lambda seconds: None)
    whole = kept(train(monkeypatch, plan, images(), tmp_path / "whole"))
    monkeypatch.setattr(Hanging, "at", Hanging.passes + 3)
    Hanging.goes_on.clear()

    def hangs() -> bool:
        return Hanging.passes == Hanging.at and not Hanging.goes_on.is_set()

    monkeypatch.setattr(watchdog.os, "_exit", lambda code: Hanging.goes_on.set())
    monkeypatch.setattr(deaths, "allowed_seconds", lambda most, deaths: 0.05 if hangs() else 1e6)
    with pytest.raises(TimeoutError):
        train(monkeypatch, plan, images(), tmp_path / "hung")
    files = train(monkeypatch, plan, images(), tmp_path / "hung")
    assert files.hangs() == [pytest.approx(0.05, abs=0.02)]
    assert kept(files) == whole


def test_a_call_in_c_that_lets_no_other_thread_run_ends_the_process():
    done = subprocess.run([sys.executable, "-c", HOLDS_THE_LOCK], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


@pytest.mark.parametrize(
    ("error", "hangs", "reason"),
    [
        (exceptions.ActorDiedError(), [300.0, 600.0, 1200.0], "it made no progress for 1200 seconds and was ended"),
        (exceptions.ActorDiedError(), [], "it crashed (abort, segmentation fault) or was killed (out of memory)"),
    ],
)
def test_why_the_processes_of_a_trial_ended_is_a_sentence(error, hangs, reason):
    assert tuning._reason(error, hangs) == f"its process ended 3 times: {reason}"
    assert tuning._reason(ValueError("wrong"), hangs) == "wrong"


@pytest.mark.parametrize(
    ("content", "hangs"),
    [(b"", []), (b"{", []), (b'[[], "x", 3]', [3.0]), (b"[" * 100_000, []), (b"[NaN, 1%s]" % (b"0" * 400), [])],
)
def test_of_a_damaged_note_of_hangs_what_is_a_number_is_kept(tmp_path, content, hangs):
    files = TrialFiles(Store(str(tmp_path), {}), "t")
    files.store.write(content, *FOLDER, "t", HUNG)
    assert files.hangs() == hangs
    files.hang(4.0)
    assert files.hangs() == [*hangs, 4.0]
