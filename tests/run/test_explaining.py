"""Validation first, then the primary settings, then test: without Ray, of a network that sees brightness alone."""

import dataclasses
import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cxr_ray import results
from cxr_ray.analysis import primary
from cxr_ray.data.phantom_source import PhantomSource
from cxr_ray.errors import DataError
from cxr_ray.measure import precision, worker
from cxr_ray.models import backends, checkpoints, networks
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.run import context, explaining, pipeline, resume
from cxr_ray.run.pipeline import PassSettings
from cxr_ray.run.terminal import ShardDone
from cxr_ray.run.workers import WorkerPool
from cxr_ray.schemas import TABLES
from cxr_ray.storage import SHARDS
from cxr_ray.sweepfile import resolve

SIZE = 64


class Bright(nn.Module):
    """Log-odds of PNEUMONIA: 40 times the mean brightness, in model space, over that of a black image."""

    def forward(self, images_BCSS):
        black = torch.tensor([-m / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)])
        bright = (images_BCSS - black[:, None, None]).mean((1, 2, 3))
        return torch.stack([torch.zeros_like(bright), 40 * bright], 1)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    """Shards are computed here, one after another; the names of those that were are returned."""
    computed: list[str] = []

    def compute(shard_pass, shards):
        run = shard_pass.context
        decode = pipeline.decode_of(shard_pass.context, shard_pass.is_map_pass)
        write = pipeline._Write(run.store, shard_pass.folder)
        explain = pipeline._Explain(run.sweep, run.store, shard_pass.model_refs, shard_pass.allocation, 0)
        explain.begin(PassSettings(run.sweep, shard_pass.is_map_pass, shard_pass.tested))
        for shard in shards:
            write(explain(decode({"shard": json.dumps(shard.to_plain())})))
            computed.append(shard.name)
            yield ShardDone(len(shard.rows), "eager")

    monkeypatch.setattr(pipeline, "compute_shards", compute)
    monkeypatch.setattr(WorkerPool, "start", lambda pool, n: None)
    bright = Classifier(Bright(), ModelSpec("resnet18", SIZE)).eval()
    monkeypatch.setattr(worker.Worker, "_load", lambda self, trial_id: bright)
    return computed


def begun(folder, n_test=4, controls=None, **perturb):
    """A run of the network on phantoms, before anything is scored."""
    folder.mkdir(exist_ok=True)
    file = folder / "m.safetensors"
    file.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", SIZE))))
    made = {"grids": ["7"], "fills": ["mean", "black"], "levels": [0.25, 0.5, 0.75], **perturb}
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": SIZE, "val_share": 0.3, "phantom": {"train": 16, "test": n_test}},
            "checkpoints": {"bright": {"path": str(file)}},
            "explain": {"explainers": ["saliency"], "keep_maps": False},
            "perturb": made,
            "controls": controls or {"cell_random": 1},
            "regions": None,
            "sanity": {"images": 2, "layers": ["fc"]},
        }
    )
    prepared = context.prepare(sweep, str(folder / "run"))
    resume.begin(prepared)
    prepared.store.write_table("images", prepared.manifest.images.to_dict("records"))
    return prepared


def explain(prepared):
    alone: Any = SimpleNamespace(worker_gpus=0, threads=0, batch_size=32, workers=1, doubled=None)
    return explaining.explain(prepared, prepared.given, cast(Any, alone), [])


def unreadable(monkeypatch, prepared, split):
    """The run with images of a split that cannot be decoded any more."""
    lost = set(prepared.manifest.rows(split)["path"])
    read = PhantomSource.read
    monkeypatch.setattr(PhantomSource, "read", lambda source, path: b"" if path in lost else read(source, path))
    return prepared


def without_sanity(prepared):
    return context.RunContext(**{**vars(prepared), "sweep": prepared.sweep.model_copy(update={"sanity": None})})


def test_the_first_valid_fill_is_primary_and_is_chosen_before_test_is_scored(tmp_path, without_ray):
    prepared = without_sanity(begun(tmp_path))
    assert not prepared.store.exists(primary.FILE)
    assert explain(prepared)
    splits = [name.split(".")[1] for name in without_ray]
    assert splits == sorted(splits, reverse=True)  # val, then test
    run = results.open_run(prepared.store.out)
    settings = primary.of_run(run)
    assert (settings.fill, settings.metric, settings.baseline_valid) == ("black", "abpc", True)
    rows = run.pandas("baselines").set_index("fill")
    val = run.pandas("predictions").query("split == 'val'")
    assert rows.loc["black", "n"] == len(val) > 0
    assert rows.loc["black", "mean_drop"] == pytest.approx(val.logit_pneumonia.mean(), rel=1e-5)  # black scores 0
    assert rows.loc["mean", "n_valid"] == 0  # as bright as the image
    assert rows.loc["mean", "mean_drop"] == pytest.approx(0, abs=1e-3)
    filled = run.pandas("filled")
    assert set(filled.image_id) == set(val.image_id)
    assert filled.query("fill == 'black'").logit_pneumonia.abs().max() < 1e-3


def test_none_valid_leaves_deletion_and_is_told(tmp_path, capsys):
    prepared = without_sanity(begun(tmp_path, fills=["mean"]))
    assert explain(prepared)
    settings = primary.of_run(results.open_run(prepared.store.out))
    assert (settings.fill, settings.metric, settings.baseline_valid) == ("mean", "deletion_auc", False)
    assert "no fill that was asked for is a valid baseline" in capsys.readouterr().out


@pytest.mark.parametrize("controls", [{"cell_random": 1}, {"other_image": 1}])
def test_a_run_without_a_readable_test_image_ends_with_a_sentence_and_the_reasons_in_a_table(
    tmp_path, monkeypatch, controls
):
    prepared = unreadable(monkeypatch, without_sanity(begun(tmp_path, controls=controls)), "test")
    with pytest.raises(
        DataError, match=r"^got 4 of 4 test images that bright could not score \(test/.*see table errors"
    ):
        explain(prepared)
    assert results.open_run(prepared.store.out).arrow("errors").num_rows == 4


def test_validation_images_that_cannot_be_read_are_told(tmp_path, monkeypatch, capsys):
    prepared = unreadable(monkeypatch, without_sanity(begun(tmp_path)), "val")
    assert explain(prepared)
    n = len(prepared.manifest.rows("val"))
    assert f"Got {n} of {n} validation images that bright could not score" in capsys.readouterr().out


def test_a_run_goes_on_after_the_validation_pass_without_choosing_again(tmp_path, without_ray, monkeypatch):
    prepared = without_sanity(begun(tmp_path))
    compute = pipeline.compute_shards

    def interrupted(shard_pass, shards):
        if any(shard.split == "test" for shard in shards):
            raise KeyboardInterrupt
        yield from compute(shard_pass, shards)

    monkeypatch.setattr(pipeline, "compute_shards", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explain(prepared)
    chosen = prepared.store.read(primary.FILE)
    val = list(without_ray)
    assert val
    monkeypatch.setattr(pipeline, "compute_shards", compute)
    monkeypatch.setattr(primary, "with_baselines", None)
    assert explain(prepared)
    assert prepared.store.read(primary.FILE) == chosen
    assert len(set(without_ray)) == len(without_ray)  # nothing twice


def test_the_choice_does_not_look_at_test(tmp_path):
    found = []
    for n_test in (4, 8):
        prepared = without_sanity(begun(tmp_path / str(n_test), n_test=n_test))
        assert explain(prepared)
        baselines = results.open_run(prepared.store.out).pandas("baselines")
        found.append((prepared.store.read(primary.FILE), baselines))
    assert found[0][0] == found[1][0]
    pd.testing.assert_frame_equal(found[0][1], found[1][1])
    assert len(found[0][1]) == 2
    assert list(found[0][1].columns) == list(TABLES["baselines"].columns)


def test_classes_that_may_be_the_other_way_round_are_asked_about_before_test_is_scored(tmp_path, monkeypatch, capsys):
    class Dark(Bright):
        def forward(self, images_BCSS):
            return super().forward(images_BCSS).flip(1)

    asked = []
    for network in (Dark(), Bright()):
        bright = Classifier(network, ModelSpec("resnet18", SIZE)).eval()
        monkeypatch.setattr(worker.Worker, "_load", lambda self, trial_id, model=bright: model)
        assert explain(without_sanity(begun(tmp_path / type(network).__name__, fills=["mean"])))
        said = capsys.readouterr().out.splitlines()
        asked.append([n for n, line in enumerate(said) if re.match("bright: (got )?an AUROC of ", line)])
        scored = next(n for n, line in enumerate(said) if line.startswith("Models to explain"))
        assert all(n < scored for n in asked[-1])
    run = results.open_run(str(tmp_path / "Dark" / "run"))
    val = run.pandas("predictions").query("split == 'val'")
    auroc = roc_auc_score(val.label, val.logit_pneumonia)
    assert [len(lines) for lines in asked] == [int(auroc < 0.4), int(1 - auroc < 0.4)]
    assert sum(map(len, asked)) == 1


def test_precision_is_decided_once_before_anything_is_scored(tmp_path, without_ray, monkeypatch, capsys):
    on_cpus = dataclasses.replace(backends.BACKENDS["half"], device=None)
    monkeypatch.setitem(backends.BACKENDS, "half", on_cpus)
    prepared = without_sanity(begun(tmp_path, precision="half"))
    assert explain(prepared)
    reference = without_ray[0]
    assert reference == precision.shard_name("bright")
    found = json.loads(prepared.store.read(resume.PROVENANCE))["precision"]["bright"]
    assert found["scoring"] == "half"
    assert set(found["agreements"]) == {"saliency"}
    said = capsys.readouterr().out
    assert said.startswith("bright, on 6 reference images: scoring in half, within ")
    decided, first = precision.read(prepared.store, "bright"), list(without_ray)
    prepared.store.fs.delete_dir(prepared.store.path(SHARDS))
    prepared.store.fs.delete_file(prepared.store.path(primary.FILE))
    assert explain(prepared)  # as --resume does
    assert without_ray[len(first) :] == first[1:]
    again = precision.read(prepared.store, "bright")
    assert decided is not None
    assert again is not None
    assert again.to_plain() == decided.to_plain()
