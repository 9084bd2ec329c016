"""Images that trials train on: the same from memory and from disk, and on disk where memory would not do."""

import numpy as np
import pytest

from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.run import training_data
from cxr_ray.run.context import RunContext
from cxr_ray.run.plan import plan_trials
from cxr_ray.run.training_data import load_training_data
from cxr_ray.run.trial import StoredSplit, opened
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve


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
