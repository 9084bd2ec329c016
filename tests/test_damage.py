"""A run whose files are damaged: what reads it ends in equal tables or a sentence. ``benchmarks.damage`` tries more."""

from typing import Any

import pytest

from benchmarks import damage
from benchmarks.damage import DAMAGE, FINISHED, KINDS, NEW, TRAINING, UNFINISHED
from cxr_ray.run import statistics, terminal


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run and one whose shards are not merged yet, without statistics, which take most of the time."""
    nothing: Any = (statistics, "write_statistics", lambda *arguments: None), (terminal, "summary", lambda out: [])
    with damage.replaced(*nothing):
        yield damage.prepared(tmp_path_factory.mktemp("damage"))


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_of_a_finished_run_is_equal_tables_or_a_sentence(runs, how, tmp_path):
    """Of every other kind: the next damage has the others."""
    tried = []
    for kind in list(KINDS[FINISHED])[list(DAMAGE).index(how) % 2 :: 2]:
        case = damage.case_of(runs, FINISHED, kind, how, "0")
        if case is not None:
            tried.append(damage.tried(runs, case, tmp_path / "copy", ["open_run"]))
    assert len(tried) > 5
    assert not [found for found in tried if found.wrong]


@pytest.mark.parametrize("kind", [kind for kind in KINDS[UNFINISHED] if kind != "table baselines"])
def test_a_damaged_file_of_an_unfinished_run_is_computed_again_or_a_sentence(runs, kind, tmp_path):
    """But for the table ``baselines``, which only statistics read."""
    how = list(DAMAGE)[list(KINDS[UNFINISHED]).index(kind) % len(DAMAGE)]
    case = damage.case_of(runs, UNFINISHED, kind, how, "0")
    assert case is not None
    found = damage.tried(runs, case, tmp_path / "copy")
    assert not found.wrong, found


@pytest.mark.parametrize(
    ("kind", "how", "ended"),
    [
        ("state of a trial", "flip", "1, deleted: 0"),
        ("best weights of a trial", "delete", "1, deleted: 0"),
        ("note of a trial that hung", "cut", "0"),
    ],
)
def test_a_damaged_file_of_a_trial_is_trained_again_as_the_sentence_says(runs, kind, how, ended, tmp_path):
    case = damage.case_of(runs, TRAINING, kind, how, "7")
    assert case is not None
    found = damage.tried(runs, case, tmp_path / "copy")
    assert not found.wrong, found
    assert found.ended == (f"--resume: {ended}",)


def test_damaged_maps_from_outside_are_values_or_rows_of_errors(runs, tmp_path):
    case = damage.case_of(runs, NEW, "map from outside", "take out", "8")
    assert case is not None
    found = damage.tried(runs, case, tmp_path / "copy")
    assert not found.wrong, found
    assert found.ended == ("a new run: 0, 1 lost",)
