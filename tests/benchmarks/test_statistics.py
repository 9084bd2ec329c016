"""The benchmark of what comes after the last forward pass, on a run made by hand."""

import json
import subprocess
import sys

import pytest

from benchmarks.statistics import repeat, write_shards
from cxr_ray.results import open_run
from cxr_ray.schemas import TABLES
from cxr_ray.storage import PER_SHARD, Store
from tests.builders.runs import make_run


def test_the_shards_that_a_run_is_cut_into_merge_to_its_tables(tmp_path):
    run = open_run(make_run(tmp_path / "run"))
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "sweep.yaml").write_bytes((tmp_path / "run" / "sweep.yaml").read_bytes())
    store = Store(str(tmp_path / "again"), {})
    shards = write_shards(run, store, 4)
    assert list(map(len, shards.values())) == [2]  # six images
    store.merge(shards, [])
    again = open_run(store.out)
    for name in PER_SHARD:
        before, after = run.arrow(name), again.arrow(name)
        order = [(key, "ascending") for key in TABLES[name].key]
        assert after.sort_by(order) == before.sort_by(order), name


def test_repeated_tables_are_a_run_of_as_many_times_the_images(tmp_path):
    run = open_run(make_run(tmp_path / "run"))
    before = {name: run.arrow(name) for name in (*PER_SHARD, "images", "summary")}
    repeat(tmp_path / "run", 3)
    for name, table in before.items():
        again = open_run(run.path).pandas(name)
        assert len(again) == len(table) * (1 if name == "summary" else 3)
        assert not again.duplicated(list(TABLES[name].key)).any(), name


@pytest.mark.slow
def test_the_command_prints_the_seconds_of_each_stage(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.statistics",
        make_run(tmp_path / "run"),
        "--rounds=1",
        "--times=2",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert list(printed["rates"]) == ["first", "merging", "statistics", "page"]
    assert all(seconds > 0 for seconds in printed["rates"].values())
    assert printed["run"].startswith("12 (model, image) pairs of 1 models")
