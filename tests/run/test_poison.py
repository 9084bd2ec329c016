"""Images, networks and processes that end or hang: what is lost is told, the rest is computed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from cxr_ray import results, sweep
from cxr_ray.errors import WorkersError
from cxr_ray.measure.shards import ModelRef
from cxr_ray.run import deaths, pipeline, ray_start
from cxr_ray.run.context import RunContext
from cxr_ray.run.pipeline import ShardPass
from cxr_ray.run.plan import Images, Plan
from cxr_ray.run.workers import WorkerPool
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve
from tests.builders.poison import Poisoned, Source, Stillborn, Toy

LITTLE = {
    "name": "poisoned",
    "explain": {"explainers": ["edges"], "targets": ["pneumonia"]},
    "perturb": {"grids": ["7"], "fills": ["blur"], "levels": [0.5]},
    "controls": {"cell_random": 1},
    "regions": None,
    "sanity": None,
}


def folder_with_poison(folder: Path) -> Path:
    """Grey noise of 32 pixels, but for one white and one black image in test."""
    for split, n in (("train", 4), ("test", 5)):
        for label in ("NORMAL", "PNEUMONIA"):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = np.random.default_rng([i, n, len(label)]).integers(60, 200, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{label}-{i}.png")
    for level, name in ((255, "white.png"), (0, "black.png")):
        Image.fromarray(np.full((32, 32), level, np.uint8)).save(folder / "test" / "NORMAL" / name)
    return folder


@pytest.mark.slow
def test_images_that_abort_or_hang_become_errors_and_the_rest_is_computed(tmp_path, monkeypatch, capfd):
    torch.manual_seed(0)
    save_file(Poisoned(2).state_dict(), tmp_path / "m.safetensors")
    given = {"path": str(tmp_path / "m.safetensors"), "arch": "factory:tests.builders.poison:Poisoned"}
    data = {"size": 32, "path": str(folder_with_poison(tmp_path / "data")), "val_share": 0.3, "patient": "file"}
    content = {**LITTLE, "data": data, "checkpoints": {"given": given}, "resources": {"workers": 1}}
    (tmp_path / "poisoned.yaml").write_text(yaml.safe_dump(content))
    out = str(tmp_path / "out")
    for name, value in (("ALONE", 1), ("FIRST_SECONDS", 60.0), ("LEAST_SECONDS", 4.0), ("MARGIN", 2.0)):
        monkeypatch.setattr(deaths, name, value)
    assert sweep.main([str(tmp_path / "poisoned.yaml"), "--out", out]) == 0
    run = results.open_run(out)
    errors = run.pandas("errors").set_index("path")
    assert set(errors.index) == {"test/NORMAL/white.png", "test/NORMAL/black.png"}
    assert set(errors["stage"]) == {"worker:given:test"}
    reasons = errors["reason"].to_dict()
    assert "crashed" in reasons["test/NORMAL/white.png"]
    assert "no progress" in reasons["test/NORMAL/black.png"]
    test = run.pandas("predictions").query("split == 'test'")
    assert len(test) == 10
    assert not set(test["image_id"]) & set(errors["image_id"])
    assert set(run.pandas("curves")["image_id"]) == set(test["image_id"])
    told = capfd.readouterr()
    assert told.err == ""
    assert "retries" not in told.out


@pytest.fixture
def ray_alone():
    """Ray on this machine for one test, as a sweep starts it."""
    started = ray_start.start_ray()
    yield
    started.end()


def toy_pass(folder: Path, pool: WorkerPool, ids: list[str], length: int) -> tuple[ShardPass, Plan]:
    """A pass over images of one model, in shards of so many."""
    sweep = resolve({"data": {"path": "poison", "size": 32}, "checkpoints": {"m": {"path": "none"}}, "regions": None})
    images = pd.DataFrame({"image_id": ids, "path": [f"{i}.pgm" for i in ids], "label": 0, "donor_image": None})
    refs = {"m": ModelRef("m", "none", None, 8)}
    plan = Plan(refs, {"test": Images(images)}, {("m", "test"): length}, splits=("test",))
    context = RunContext(sweep, cast(Any, Source()), cast(Any, None), (), refs, Store(str(folder), {}))
    allocation = cast(Any, SimpleNamespace(workers=2))
    return ShardPass(context, allocation, pool, refs, {"m": 1}), plan


@pytest.mark.slow
def test_a_pass_loses_what_kills_a_process_and_nothing_else(ray_alone, tmp_path, monkeypatch, capfd):
    """An image that aborts, one that hangs, one whose decoding aborts, and processes that die at start."""
    for name, value in (("FIRST_SECONDS", 3.0), ("LEAST_SECONDS", 3.0), ("ALONE", 1)):
        monkeypatch.setattr(deaths, name, value)
    allocation = cast(Any, SimpleNamespace(workers=2, worker_cpus=1, worker_gpus=0))
    poison = {2: "abort", 9: "hang", 15: "decode"}
    ids = [poison.get(n, f"{n:02d}") for n in range(24)]
    pool = WorkerPool(Toy, allocation)
    shard_pass, plan = toy_pass(tmp_path, pool, ids, 6)
    done = list(pipeline.compute_shards(shard_pass, plan.missing()))
    assert sum(shard.images for shard in done) == 21
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

    stillborn = WorkerPool(Stillborn, allocation)
    stillborn.start(2)
    with pytest.raises(WorkersError, match="3 times in a row before it took any work"):
        _ = stillborn.is_free
    told = capfd.readouterr()
    assert told.err == ""
    assert "retries" not in told.out
