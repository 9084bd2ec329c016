"""What tasks of Ray Data hand on, without Ray."""

import json

import numpy as np
import pandas as pd
import pytest

from cxr_ray.config import resolve
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.loading import load_pixels
from cxr_ray.run import pipeline

SIZE = 32
GIB = 2**30


@pytest.fixture
def source(tiny_folder, tmp_path):
    """Four images of the folder, the second of them cut off."""
    for name, origin in zip("abcd", sorted(tiny_folder.rglob("*.png")), strict=False):
        (tmp_path / f"{name}.png").write_bytes(origin.read_bytes()[: 60 if name == "b" else None])
    return FolderSource(str(tmp_path))


def decoded(source, partners: dict[str, str | None], split: str = "test", **changes):
    sweep = resolve({"data": {"size": SIZE, "path": "x"}, **changes})
    rows = [{"image_id": i, "path": f"{i}.png", "label": 0, "partner": p} for i, p in partners.items()]
    unit = {"size": SIZE, "preprocess": "none", "split": split, "rows": rows}
    return pipeline._Decode(source, None, sweep)({"unit": json.dumps(unit)})


def test_each_image_gets_its_own_partner(source):
    row = decoded(source, {"a": "c.png", "c": "d.png", "d": None})
    unit = json.loads(row["unit"])
    assert [r["image_id"] for r in unit["rows"]] == ["a", "c", "d"]
    assert unit["partners"] == ["a", "c"]
    lent = pd.DataFrame({"image_id": ["a", "c"], "path": ["c.png", "d.png"]})
    expected = load_pixels(source, lent, SIZE).images_NCHW
    assert np.array_equal(np.frombuffer(row["partners"], np.uint8).reshape(expected.shape), expected)
    assert not unit["errors"]


def test_an_image_without_a_readable_partner_is_kept_and_told_of(source):
    unit = json.loads(decoded(source, {"a": "b.png", "b": "a.png", "c": "a.png"})["unit"])
    assert [r["image_id"] for r in unit["rows"]] == ["a", "c"]
    assert unit["partners"] == ["c"]
    assert [(e["stage"], e["image_id"], e["path"]) for e in unit["errors"]] == [
        ("decode", "b", "b.png"), ("patch_swap", "a", "b.png"),
    ]  # fmt: skip


def test_partners_are_read_for_regions_alone(source):
    row = decoded(source, {"a": "c.png"}, regions=None)
    assert json.loads(row["unit"])["partners"] == []
    assert row["partners"] == b""


@pytest.fixture
def machines(monkeypatch):
    """Makes Ray speak of these machines: CPUs, GPUs and GiB for workers of each."""

    def have(*each: tuple[float, float, float]):
        nodes = [{"CPU": cpus, "GPU": gpus, "memory": gib * GIB} for cpus, gpus, gib in each]
        monkeypatch.setattr(pipeline.ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes])
        total = {key: sum(n[key] for n in nodes) for key in nodes[0]}
        monkeypatch.setattr(pipeline.ray, "cluster_resources", lambda: total)

    return have


def laptop(machines, gib: float, n_trials: int = 9, size: int = 224, **asked) -> pipeline.Resources:
    machines((8 + pipeline.LOCAL_SPARE_CPUS, 0, gib))
    return pipeline.Resources(resolve({"resources": asked}), n_trials, size, local=True)


def test_workers_and_trials_are_as_many_as_memory_holds(machines):
    few = laptop(machines, 6)
    assert (few.workers, few.threads, few.concurrent_trials) == (2, 4, 2)
    assert "memory, at 2.8 GiB each (resources.workers" in few.line
    small = laptop(machines, 6, size=64)
    assert (small.workers, small.threads, small.concurrent_trials) == (4, 2, 4)
    for many in (laptop(machines, 64), laptop(machines, 6, workers=8)):
        assert (many.workers, many.threads) == (8, 1)
        assert "memory" not in many.line
    assert laptop(machines, 0.5).workers == 1


def test_memory_counts_by_machine(machines):
    machines((17, 0, 5), (16, 0, 5), (16, 0, 2))
    found = pipeline.Resources(resolve({}), 9, 224, local=False)
    assert (found.workers, found.concurrent_trials, found.threads) == (2, 2, 0)


def test_trials_share_the_cpus_of_a_machine_that_has_no_more_of_them(machines):
    assert [laptop(machines, 64, n).trial["cpu"] for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert laptop(machines, 64, 1, cpu_per_trial=3).trial["cpu"] == 8
    assert laptop(machines, 64, 20, cpu_per_trial=3).trial == {"cpu": 4, "gpu": 0}
    machines((9, 2, 64))
    assert pipeline.Resources(resolve({}), 1, 224, local=True).trial == {"cpu": 1, "gpu": 1}
    machines((9, 0, 64))
    assert pipeline.Resources(resolve({}), 1, 224, local=False).trial == {"cpu": 1, "gpu": 0}
