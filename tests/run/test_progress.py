"""How far a command is: rates, time left, silence, quiet, and lines drawn in place."""

import pickle
import threading
from typing import Any

import pytest

from cxr_ray.run import progress, terminal
from cxr_ray.run.progress import Stage


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_rate_and_time_left_leave_out_what_came_before_the_first(clock):
    stage = Stage("Scoring", 11, "shards", "images")
    clock.now += 80  # start-up
    stage.advance(1, 16)
    assert stage.told() == "Scoring: 1 of 11 shards"
    clock.now += 10
    stage.advance(5, 80)
    assert stage.told() == "Scoring: 6 of 11 shards, 8.0 images/s, 10 seconds left"
    clock.now += 10
    stage.advance(5, 80)
    assert stage.told() == "Scoring: 11 of 11 shards in 2 minutes"


def test_before_anything_is_done_a_stage_says_what_it_does(clock):
    stage = Stage("Maps", 3, "images", hint="workers start")
    clock.now += 12
    assert stage.told() == "Maps: 0 of 3 images, 12 seconds so far (workers start)"
    assert Stage("Starting Ray", began=988.0).told() == "Starting Ray: 24 seconds so far"


def test_a_stage_that_ends_early_promises_no_time_left(clock, capsys):
    with progress.stage("Scoring", 200, "patients") as stage:
        stage.advance(8)
        clock.now += 4
        stage.advance(8)
    assert capsys.readouterr().out == "  Scoring: 16 of 200 patients in 4 seconds\n"


def test_silence_is_broken_by_what_is_done_meanwhile(monkeypatch):
    lines, heard = [], threading.Event()

    def say(line):
        terminal.heard()
        lines.append(line)
        heard.set()

    monkeypatch.setattr(terminal, "say", say)
    monkeypatch.setattr(progress, "SILENCE", 0.1)
    with progress.shown("Sweep tiny"):
        assert heard.wait(60)
        heard.clear()
        with progress.stage("Scoring", 4, "patients", hint="a form is chosen"):
            assert heard.wait(60)
    assert lines[0].startswith("  Sweep tiny: ")
    assert lines[-1].startswith("  Scoring: 0 of 4 patients, ")
    assert lines[-1].endswith(" so far (a form is chosen)")


def test_quiet_says_what_concludes_alone(capsys):
    with progress.shown("Sweep", quiet=True), progress.stage("Scoring", 2, "shards") as stage:
        terminal.say("heading")
        stage.advance()
        terminal.complain("one is wrong.")
        terminal.conclude("verdict")
    terminal.say("loud again")
    captured = capsys.readouterr()
    assert captured.out == "verdict\nloud again\n"
    assert captured.err == "cxr_ray: one is wrong.\n"


def test_on_a_terminal_lines_stand_above_what_is_drawn_in_place(monkeypatch, capsys):
    monkeypatch.setattr(progress, "in_place", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with progress.shown("Sweep"), progress.stage("Scoring", 40, "shards") as stage:
        stage.advance(10, lines=["below"])
        terminal.say("a note [of] many :words:, longer than the terminal is wide" + "." * 60)
        display: Any = progress._display
        display._live.refresh()
        drawn = capsys.readouterr().out
    assert "a note [of] many :words:, longer than the terminal is wide" + "." * 60 + "\n" in drawn
    assert "Scoring: 10 of 40 shards" in drawn
    assert "  below" in drawn
    terminal.say("after")
    assert capsys.readouterr().out.endswith("after\n")


def test_a_display_ends_with_its_command_also_where_that_fails(monkeypatch):
    before = progress._display
    for drawn in (False, True):
        monkeypatch.setattr(progress, "in_place", lambda drawn=drawn: drawn)
        with pytest.raises(KeyboardInterrupt), progress.shown("Sweep"), progress.stage("Scoring"):
            raise KeyboardInterrupt
        assert progress._display is before
        assert terminal._State.above is None


def test_a_stage_can_be_pickled_as_ray_tune_asks_of_callbacks():
    assert pickle.loads(pickle.dumps(Stage("Training", 3, "epochs"))).total == 3
