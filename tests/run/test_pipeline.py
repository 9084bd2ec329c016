"""What tasks of Ray Data hand on, without Ray."""

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from cxr_ray.data.folder import FolderSource
from cxr_ray.data.loading import load_pixels
from cxr_ray.measure import worker
from cxr_ray.measure.shards import ModelRef
from cxr_ray.run import pipeline
from cxr_ray.run.pipeline import PassSettings
from cxr_ray.run.plan import ShardPlan
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve
from tests.builders import networks

SIZE = 32


@pytest.fixture
def source(tiny_folder, tmp_path):
    """Four images of the folder, the second of them cut off."""
    for name, origin in zip("abcd", sorted(tiny_folder.rglob("*.png")), strict=False):
        (tmp_path / f"{name}.png").write_bytes(origin.read_bytes()[: 60 if name == "b" else None])
    return FolderSource(str(tmp_path))


def decoded(source, donors: dict[str, str | None], split: str = "test", **changes):
    sweep = resolve({"data": {"size": SIZE, "path": "x"}, **changes})
    rows = [{"image_id": i, "path": f"{i}.png", "label": 0, "donor_image": p} for i, p in donors.items()]
    shard = {"size": SIZE, "preprocess": "none", "split": split, "rows": rows}
    return pipeline._Decode(source, None, sweep)({"shard": json.dumps(shard)})


def test_each_image_gets_its_own_donor_image(source):
    row = decoded(source, {"a": "c.png", "c": "d.png", "d": None})
    shard = json.loads(row["shard"])
    assert [r["image_id"] for r in shard["rows"]] == ["a", "c", "d"]
    assert shard["donor_images"] == ["a", "c"]
    expected_donors = pd.DataFrame({"image_id": ["a", "c"], "path": ["c.png", "d.png"]})
    expected = load_pixels(source, expected_donors, SIZE).images_NCHW
    assert np.array_equal(np.frombuffer(row["donor_images"], np.uint8).reshape(expected.shape), expected)
    assert not shard["errors"]


def test_an_image_without_a_readable_donor_image_is_kept_with_an_error(source):
    shard = json.loads(decoded(source, {"a": "b.png", "b": "a.png", "c": "a.png"})["shard"])
    assert [r["image_id"] for r in shard["rows"]] == ["a", "c"]
    assert shard["donor_images"] == ["c"]
    assert [(e["stage"], e["image_id"], e["path"]) for e in shard["errors"]] == [
        ("decode", "b", "b.png"),
        ("patch_swap", "a", "b.png"),
    ]


def test_donor_images_are_read_for_regions_alone(source):
    row = decoded(source, {"a": "c.png"}, regions=None)
    assert json.loads(row["shard"])["donor_images"] == []
    assert row["donor_images"] == b""


def test_a_worker_gives_the_same_tables_after_other_passes_and_loads_its_model_once(source, tmp_path, monkeypatch):
    loaded = []

    def load(_, trial_id):
        loaded.append(trial_id)
        return networks.small()

    monkeypatch.setattr(worker.Worker, "_load", load)
    sweep = resolve(
        {
            "data": {"size": SIZE, "path": "x"},
            "explain": {"explainers": ["saliency"]},
            "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
            "controls": {"shifted": 2},
            "regions": None,
        }
    )
    other = sweep.model_copy(update={"perturb": sweep.perturb.model_copy(update={"levels": [0.25]}), "controls": {}})
    rows = tuple({"image_id": i, "path": f"{i}.png", "label": 0, "donor_image": None} for i in "ac")
    shard = ShardPlan("m.test.2.00000", "m", "test", SIZE, "none", rows)
    row = pipeline._Decode(source, None, sweep)({"shard": json.dumps(shard.to_plain())})
    alone: Any = SimpleNamespace(worker_gpus=0, threads=0, batch_size=8)

    def explain(first: Any) -> pipeline._Explain:
        return pipeline._Explain(first, Store(str(tmp_path), {}), {"m": ModelRef("m", "", None, SIZE)}, alone, 0)

    expected, used = explain(sweep)(row)["tables"], explain(other)
    loaded.clear()
    different = used(row)["tables"]
    used.begin(PassSettings(other, is_map_pass=True))
    assert isinstance(used(row)["tables"], bytes)  # of the map pass
    used.begin(PassSettings(sweep))
    assert used(row)["tables"] == expected != different
    assert loaded == ["m"]


@pytest.mark.parametrize(
    ("workers", "gpus", "longest", "expected"),
    [
        (2, 0, 16, 256),
        (2, 0, 256, 32),
        (1, 1, 64, 128),  # one portion of a small run: a GPU waits between two
        (1, 1, 256, 32),
        (8, 0.5, 64, 256),
    ],
)
def test_a_portion_keeps_each_worker_busy_and_a_gpu_for_longer(workers, gpus, longest, expected):
    allocation = cast(Any, SimpleNamespace(workers=workers, worker_gpus=gpus))
    assert pipeline.in_a_portion(longest, allocation) == expected
