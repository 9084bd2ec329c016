"""Maps from outside in a sweep: beside the explainers in every table, without Ray."""

import shutil
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
from cxr_ray.errors import UserError
from cxr_ray.measure import cost, worker
from cxr_ray.models import backends, checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import context, explaining, pipeline, resume
from cxr_ray.run.local_verdict import LocalVerdict
from cxr_ray.run.pipeline import PassSettings
from cxr_ray.run.terminal import ShardDone
from cxr_ray.run.workers import WorkerPool
from cxr_ray.storage import pack
from cxr_ray.sweepfile import resolve
from tests.builders.images import phantoms
from tests.builders.networks import small

SIZE = 64


@pytest.fixture(autouse=True)
def shards_are_computed_here(monkeypatch):
    """One after another."""

    def compute(shard_pass, shards):
        run, refs = shard_pass.context, shard_pass.model_refs
        settings = PassSettings(run.sweep, shard_pass.is_map_pass, shard_pass.tested)
        for shard, made in pipeline.compute_here(run, refs, shard_pass.allocation, settings, shards):
            run.store.write_shard(shard.name, made if isinstance(made, bytes) else pack(made), shard_pass.folder)
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
    alone: Any = SimpleNamespace(worker_gpus=0, threads=0, batch_size=32, workers=1, doubled=None)
    assert explaining.explain(begun, begun.given, cast(Any, alone), list(begun.manifest.errors))
    return results.open_run(begun.store.out)


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """Maps of gradcam of the test images as .npy files, named by image_id, file stem or path."""
    folder = tmp_path_factory.mktemp("maps")
    source = phantoms(train=16, test=4, prevalence=0.5, size=SIZE, seed=0)
    test = load_manifest(source, training=False).rows("test")
    model = backends.for_explainers(small(size=SIZE))  # as a sweep explains it: ties turn on the last bit
    made = cxr_ray.explain(model, load_pixels(source, test, SIZE).images_NCHW, "gradcam")
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
    explain = {"explainers": ["gradcam"], "maps": {"theirs": f"{maps}/**/*.npy"}}
    both = run(prepared(tmp_path, controls, explain, stability={"images": 2, "draws": 1, "squares": 8}))
    for table in ("curves", "faithfulness", "saliency"):
        theirs = rows_of(both, table, "theirs")
        assert len(theirs)
        pd.testing.assert_frame_equal(theirs, rows_of(both, table, "gradcam"))
    assert set(both.pandas("curves").query("explainer == 'theirs'")["control"]) == {"none", *controls}
    assert set(both.pandas("sanity")["explainer"]) == {"gradcam"}  # they do not follow the weights
    stability = both.pandas("stability").query("perturbation == 'square'").set_index(["control", "draw", "image_id"])
    of_gradcam, theirs = (stability[stability["explainer"] == name] for name in ("gradcam", "theirs"))
    assert set(theirs.index.get_level_values("control")) == {"none", *controls}
    assert theirs["infidelity"].notna().all()
    pd.testing.assert_series_equal(theirs["infidelity"].sort_index(), of_gradcam["infidelity"].sort_index())
    assert set(both.pandas("stability").query("perturbation == 'noise'")["explainer"]) == {"gradcam"}
    assert len(both.pandas("errors")) == 0


def test_a_run_that_is_resumed_with_other_maps_is_refused(tmp_path, maps):
    folder = tmp_path / "maps"
    shutil.copytree(maps, folder)
    asked = {"explainers": ["edges"], "maps": {"theirs": str(folder)}}
    assert not resume.is_finished(prepared(tmp_path, {"shifted": 1}, asked))
    shutil.move(folder, tmp_path / "moved")  # the same maps elsewhere
    moved = {**asked, "maps": {"theirs": str(tmp_path / "moved")}}
    assert not resume.is_finished(prepared(tmp_path, {"shifted": 1}, moved))
    one = next((tmp_path / "moved").rglob("*.npy"))
    np.save(one, np.load(one) + 1)
    with pytest.raises(UserError) as e:
        resume.is_finished(prepared(tmp_path, {"shifted": 1}, moved))
    assert str(e.value) == (
        f"explain.maps.theirs: got other maps than {tmp_path}/run was begun with; expected the same; give them, or "
        "give another folder (--out PATH)."
    )


def test_a_missing_map_is_null_in_the_tables_and_a_row_of_errors(tmp_path, maps):
    folder = tmp_path / "maps"
    shutil.copytree(maps, folder)
    next(folder.rglob("*.npy")).unlink()
    begun = prepared(
        tmp_path, {"shifted": 1, "other_image": 1}, {"explainers": ["edges"], "maps": {"theirs": str(folder)}}
    )
    of = run(begun)
    (error,) = of.pandas("errors").to_dict("records")
    assert (error["stage"], error["reason"]) == ("maps:theirs", "No map is named as the image.")
    rows = rows_of(of, "faithfulness", "theirs")
    lost = rows["image_id"] == error["image_id"]
    assert rows.loc[lost, "value"].isna().all()
    assert rows.loc[~lost & (rows["control"] == "none"), "value"].notna().all()
    assert rows_of(of, "faithfulness", "edges")["value"].notna().any()


def test_maps_from_outside_cost_their_curves_and_no_pass_to_explain():
    def passes(**explain: Any) -> int:
        plain = {"explain": explain, "controls": {"cell_random": 1}, "regions": None}
        settings = {"grids": ["7"], "fills": ["mean"], "levels": [0.5]}
        return cost.passes_per_image(resolve({**plain, "perturb": settings}), SIZE)[0]

    alone = passes(explainers=["edges"])
    assert passes(explainers=["edges"], maps={"theirs": "a.npz"}) == alone + 2  # two directions, one level
    assert passes(explainers=[], maps={"theirs": "a.npz"}) == alone


def test_sequential_verdicts_may_name_maps(tmp_path, maps):
    asked = {"explainers": ["edges"], "maps": {"theirs": str(maps)}}
    verdicts = {"explainers": ["theirs"], "controls": ["shifted", "other_image"], "fixed_design": False}
    begun = prepared(tmp_path, {"shifted": 1}, asked, verdicts=verdicts, sanity=None)
    local = LocalVerdict.of_run(begun)
    settings, _ = local.settings()
    for _ in local.make_maps():
        pass
    *_, last = local.rounds(settings, ["all"], 4)
    assert [(row["explainer"], row["control"]) for row in last.rows(settings)] == [
        ("theirs", "shifted"),
        ("theirs", "other_image"),
    ]
    with pytest.raises(UserError, match=r"verdicts.explainers.0: got 'thiers'. Did you mean 'theirs'"):
        resolve({"explain": asked, "verdicts": {"explainers": ["thiers"]}})
