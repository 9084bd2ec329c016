"""Images that trials train on: the same from memory and from disk, and on disk where memory would not do."""

import numpy as np
import pytest

from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.run import training_data
from cxr_ray.run.context import RunContext
from cxr_ray.run.training_data import load_training_data
from cxr_ray.run.trial import StoredSplit, opened
from cxr_ray.run.trial_plans import TrialPlan, plan_trials
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve
from tests.builders.images import picture, write


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunContext:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    sweep = resolve(
        {
            "data": {"source": "phantom", "size": 64, "val_share": 0.3, "phantom": {"train": 16, "test": 4}},
            "variants": {"plain": {}, "masked": {"model": {"preprocess": "mask_border"}}},
            "model": {"weights": "none"},
        }
    )
    source = source_of(sweep.data, sweep.seed)
    return RunContext(sweep, source, load_manifest(source), tuple(plan_trials(sweep)), {}, Store(str(tmp_path), {}))


def test_train_has_the_numbers_of_several_classes_and_val_the_class_that_is_measured_and_the_rest(tmp_path):
    names = (
        ("NORMAL", "IM-{:04d}-0001.png"),
        ("PNEUMONIA", "person{}_bacteria_1.png"),
        ("PNEUMONIA", "person{}_virus_2.png"),
    )
    files = {
        f"{split}/{folder}/{name.format(i)}": picture(f"{name}{i}", "PNG")
        for split, numbers in (("train", range(8)), ("test", range(8, 10)))
        for folder, name in names
        for i in numbers
    }
    classes = {"several": {"viral": ["virus"], "normal": ["NORMAL"], "bacterial": ["bacteria"]}, "target": "normal"}
    data = {"path": str(write(tmp_path / "data", files)), "size": 32, "label": "_(bacteria|virus)_", "classes": classes}
    sweep = resolve({"data": {**data, "val_share": 0.3}, "model": {"weights": "none"}})
    source = source_of(sweep.data, sweep.seed)
    manifest = load_manifest(source, val_share=0.3)
    (plan,) = plan_trials(sweep)
    assert plan == TrialPlan.from_config(plan.to_config())
    assert plan.spec(32).columns == ((0, 2), (1,))
    run = RunContext(sweep, source, manifest, (plan,), {}, Store(str(tmp_path), {}))
    (splits,) = load_training_data(run, run.trials).splits.values()
    of_train = manifest.rows("train")["kind"].map(["virus", "normal", "bacteria"].index)
    assert opened(splits)["train"].labels.tolist() == of_train.tolist()
    assert opened(splits)["val"].labels.tolist() == (manifest.rows("val")["kind"] == "normal").astype(int).tolist()


def test_images_on_disk_are_those_in_memory(run, monkeypatch, capsys):
    in_memory = load_training_data(run, run.trials)
    assert not capsys.readouterr().out
    monkeypatch.setattr(training_data, "usable_memory", lambda: 4 * 16 * 2 * 3 * 64**2 - 1)
    on_disk = load_training_data(run, run.trials)
    assert "are kept on the disk of each machine" in capsys.readouterr().out
    assert set(on_disk.splits) == set(in_memory.splits) == {(64, "none"), (64, "mask_border")}
    for kind, splits in on_disk.splits.items():
        assert all(isinstance(split, StoredSplit) for split in splits.values())
        for name, split in opened(splits).items():
            expected = opened(in_memory.splits[kind])[name]
            assert isinstance(split.pixels, np.memmap)
            np.testing.assert_array_equal(split.pixels, expected.pixels)
            np.testing.assert_array_equal(split.labels, expected.labels)
