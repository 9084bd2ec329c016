"""Images and processes that end or hang, in Ray: what is lost is told, the rest is computed. No time is measured."""

import contextlib
import importlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from ray._private import services

from cxr_ray.data.manifest import Manifest
from cxr_ray.errors import ClusterError, WorkersError
from cxr_ray.measure.shards import ModelRef
from cxr_ray.run import deaths, pipeline, ray_start, workers
from cxr_ray.run.context import RunContext
from cxr_ray.run.pipeline import ShardPass
from cxr_ray.run.plan import Images, Plan
from cxr_ray.run.workers import WorkerPool
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve
from tests.builders.poison import Source, Stillborn, Toy

NO_NAMES = Manifest(pd.DataFrame(), [], [], "")  # shared by no image


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A clock that stands still, and jumps by a day when the worker says that it hangs; the file where it says so."""
    said, now = tmp_path / "hangs", [0.0]

    def monotonic():
        if said.exists():
            said.unlink()
            now[0] += 86400
        return now[0]

    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(workers, "TICK_SECONDS", 0.1)
    return said


@pytest.fixture
def ray_alone():
    """Ray on this machine for one test, as a sweep starts it."""
    started = ray_start.start_ray()
    yield
    started.end()


def listening() -> set[str]:
    """Addresses at which the processes of Ray, which are this one's, take connections."""
    psutil = importlib.import_module("psutil")  # Ray brings it
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            open_there = process.net_connections("tcp")
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in open_there if c.status == psutil.CONN_LISTEN}
    return found


def toy_pass(folder: Path, pool: WorkerPool, ids: list[str], length: int) -> tuple[ShardPass, Plan]:
    """A pass over images of one model, in shards of so many."""
    sweep = resolve({"data": {"path": "poison", "size": 32}, "checkpoints": {"m": {"path": "none"}}, "regions": None})
    images = pd.DataFrame({"image_id": ids, "path": [f"{i}.pgm" for i in ids], "label": 0, "donor_image": None})
    refs = {"m": ModelRef("m", "none", None, 8)}
    plan = Plan(refs, {"test": Images(images)}, {("m", "test"): length}, splits=("test",))
    context = RunContext(sweep, cast(Any, Source()), NO_NAMES, (), refs, Store(str(folder), {}))
    allocation = cast(Any, SimpleNamespace(workers=1, worker_gpus=0))
    return ShardPass(context, allocation, pool, refs, {"m": 1}), plan


@pytest.mark.slow
def test_a_pass_loses_what_kills_a_process_and_nothing_else(ray_alone, tmp_path, clock, monkeypatch, capfd):
    """An image that aborts, one that hangs, one whose decoding aborts, and processes that die at start.

    Ray listens to this machine alone meanwhile. Fewer deaths than in a sweep are waited for: how many it takes is
    tested without Ray.
    """
    monkeypatch.setattr(deaths, "MOST", 2)
    monkeypatch.setattr(deaths, "ALONE", 1)
    allocation = cast(Any, SimpleNamespace(workers=1, worker_cpus=1, worker_gpus=0))
    poison = {2: "abort", 4: "hang", 9: "decode"}
    ids = [poison.get(n, f"{n:02d}") for n in range(12)]
    pool = WorkerPool(partial(Toy, str(clock)), allocation)
    shard_pass, plan = toy_pass(tmp_path / "run", pool, ids, 6)
    done = list(pipeline.compute_shards(shard_pass, plan.missing()))
    assert sum(shard.images for shard in done) == 9
    assert listening() == {"127.0.0.1"}
    store, rows = shard_pass.context.store, []
    for name in plan.names("m"):
        rows += store.read_shard(name)["errors", ""].to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(ids), "each once"
    lost = {row["image_id"]: row for row in rows if row["stage"] != "toy"}
    assert set(lost) == set(poison.values())
    assert {row["stage"] for row in lost.values()} == {"worker:m:test"}
    assert ["crashed" in lost[i]["reason"] for i in ("abort", "hang", "decode")] == [True, False, True]
    assert "no progress" in lost["hang"]["reason"]
    pool.close()

    monkeypatch.setattr(deaths, "AT_START", 1)
    stillborn = WorkerPool(Stillborn, allocation)
    stillborn.start(1)
    with pytest.raises(WorkersError, match="1 times in a row before it took any work"):
        _ = stillborn.is_free
    told = capfd.readouterr()
    assert told.err == ""
    assert "retries" not in told.out


@pytest.mark.slow
def test_a_ray_whose_process_dies_at_its_start_is_one_line(monkeypatch):
    """Ray waits half a minute for it, and then for another one."""
    monkeypatch.setattr(services, "GCS_SERVER_EXECUTABLE", "/bin/false")
    with pytest.raises(ClusterError, match=r"its process gcs_server ended at once, with exit code 1\); expected"):
        ray_start.start_ray()
