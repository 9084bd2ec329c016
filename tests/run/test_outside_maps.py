"""Maps from outside in a sweep: beside the explainers in every table, without Ray."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

import cxr_ray
from cxr_ray import results
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.measure import worker
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import context, explaining, pipeline, resume
from cxr_ray.run.pipeline import PassSettings
from cxr_ray.run.terminal import ShardDone
from cxr_ray.run.workers import WorkerPool
from cxr_ray.sweepfile import resolve
from tests.builders.images import phantoms
from tests.builders.networks import small

SIZE = 64


@pytest.fixture(autouse=True)
def shards_are_computed_here(monkeypatch):
    """One after another."""

    def compute(shard_pass, shards):
        run = shard_pass.context
        decode, write = (
            pipeline.decode_of(shard_pass.context, shard_pass.is_map_pass),
            pipeline._Write(run.store, shard_pass.folder),
        )
        explain = pipeline._Explain(run.sweep, run.store, shard_pass.model_refs, shard_pass.allocation, 0)
        explain.begin(PassSettings(run.sweep, shard_pass.is_map_pass, shard_pass.tested))
        for shard in shards:
            write(explain(decode({"shard": json.dumps(shard.to_plain())})))
            yield ShardDone(len(shard.rows), "eager")

    def total(shard_pass, groups):
        explain = pipeline._Explain(
            shard_pass.context.sweep, shard_pass.context.store, shard_pass.model_refs, shard_pass.allocation, 0
        )
        for group in groups:
            pipeline._sum(explain, shard_pass.context.sweep, group)

    monkeypatch.setattr(pipeline, "compute_shards", compute)
    monkeypatch.setattr(pipeline, "sum_maps", total)
    monkeypatch.setattr(WorkerPool, "start", lambda pool, n: None)
    monkeypatch.setattr(worker.Worker, "_load", lambda self, trial_id: small(size=SIZE))


def prepared(folder: Path, controls: dict[str, int], explain: dict[str, Any], **more: Any):
    """A run of an untrained network on phantoms, before anything is scored."""
    file = folder / "m.safetensors"
    if not file.exists():
        file.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", SIZE))))
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": SIZE, "val_share": 0.3, "phantom": {"train": 16, "test": 4}},
            "checkpoints": {"mine": {"path": str(file)}},
            "explain": explain,
            "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75]},
            "controls": controls,
            "regions": None,
            "sanity": {"images": 2, "layers": ["fc"]},
            **more,
        }
    )
    begun = context.prepare(sweep, str(folder / "run"))
    resume.begin(begun)
    begun.store.write_table("images", begun.manifest.images.to_dict("records"))
    return begun


def run(begun) -> results.Run:
    alone: Any = SimpleNamespace(worker_gpus=0, threads=0, batch_size=32, workers=1)
    assert explaining.explain(begun, begun.given, cast(Any, alone), list(begun.manifest.errors))
    return results.open_run(begun.store.out)


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """Maps of gradcam of the test images as .npy files, named by image_id, file stem or path."""
    folder = tmp_path_factory.mktemp("maps")
    source = phantoms(train=16, test=4, prevalence=0.5, size=SIZE, seed=0)
    test = load_manifest(source, training=False).rows("test")
    made = cxr_ray.explain(small(size=SIZE), load_pixels(source, test, SIZE).images_NCHW, "gradcam")
    for n, (image_id, path) in enumerate(zip(test["image_id"], test["path"], strict=True)):
        stem = Path(path).with_suffix("")
        name = [image_id, stem.name, str(stem)][n % 3]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", made[n])
    return folder


def rows_of(of: results.Run, table: str, explainer: str) -> pd.DataFrame:
    frame = of.pandas(table).query(f"explainer == '{explainer}' and target == 1").drop(columns="explainer")
    key = [
        c
        for c in ("image_id", "target", "control", "draw", "grid", "fill", "direction", "metric", "scale", "level")
        if c in frame
    ]
    return frame.sort_values(key).reset_index(drop=True)


@pytest.mark.parametrize("controls", [{"shifted": 2}, {"shifted": 2, "other_image": 1, "mean_map": 1}])
def test_maps_of_gradcam_read_back_have_the_rows_of_gradcam(tmp_path, maps, controls):
    both = run(prepared(tmp_path, controls, {"explainers": ["gradcam"], "maps": {"theirs": f"{maps}/**/*.npy"}}))
    for table in ("curves", "faithfulness", "saliency"):
        theirs = rows_of(both, table, "theirs")
        assert len(theirs)
        pd.testing.assert_frame_equal(theirs, rows_of(both, table, "gradcam"))
    assert set(both.pandas("curves").query("explainer == 'theirs'")["control"]) == {"none", *controls}
    assert set(both.pandas("sanity")["explainer"]) == {"gradcam"}  # they do not follow the weights
    assert len(both.pandas("errors")) == 0
