"""What a run prints while it works."""

import pytest

from cxr_ray.run import progress, terminal
from cxr_ray.run.terminal import ShardDone


def test_the_time_left_leaves_out_what_came_before_the_first_shard(monkeypatch, capsys):
    moments = iter([100.0, 101, 106, 110, 122, 130])
    clock = 93.0

    def shards():
        nonlocal clock
        for moment in moments:
            clock = moment
            yield ShardDone(4, "eager")

    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock)
    terminal.watch(shards(), 6, "Scoring")
    assert capsys.readouterr().out.splitlines() == [
        "  forward passes: eager",
        "  Scoring: 1 of 6 shards",
        "  Scoring: 3 of 6 shards, 1.3 images/s, 9 seconds left",
        "  Scoring: 5 of 6 shards, 0.7 images/s, 6 seconds left",
        "  Scoring: 6 of 6 shards in 37 seconds",
    ]


def test_what_slows_a_worker_is_said_once(capsys):
    notes = [(), ("slow",), ("slow",), ("slow", "slower")]
    terminal.watch((ShardDone(4, "eager", told) for told in notes), 4, "Scoring")
    assert capsys.readouterr().out.splitlines() == ["  forward passes: eager", "  slow", "  slower"]


def test_an_interruption_closes_the_shards_so_that_ray_is_not_waited_for(monkeypatch):
    closed = []

    def shards():
        try:
            yield ShardDone(4, "eager")
            yield ShardDone(4, "eager")
        finally:
            closed.append(True)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Stage, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        terminal.watch(shards(), 2, "Scoring")
    assert closed


def test_each_line_of_a_mistake_names_the_program(capsys):
    terminal.complain("got one; expected two.\ndo this.")
    assert capsys.readouterr().err == "cxr_ray: got one; expected two.\ncxr_ray: do this.\n"
