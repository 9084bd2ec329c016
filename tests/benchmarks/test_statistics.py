"""The benchmark of what comes after the last forward pass, on a run made by hand."""

import json
import subprocess
import sys

import pytest

from benchmarks.statistics import write_shards
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


@pytest.mark.slow
def test_the_command_prints_the_seconds_of_each_stage(tmp_path):
    command = [sys.executable, "-m", "benchmarks.statistics", make_run(tmp_path / "run"), "--rounds=1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert list(printed["rates"]) == ["first", "merging", "statistics", "page"]
    assert all(seconds > 0 for seconds in printed["rates"].values())
    assert printed["run"].startswith("6 (model, image) pairs of 1 models")
