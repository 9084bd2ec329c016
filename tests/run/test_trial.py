"""One trial after another in one process, without Ray; and what is kept of one that is interrupted."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cxr_ray.errors import DamagedRunError
from cxr_ray.models import training
from cxr_ray.run.trial import run_trial
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.run.tuning import GroupedASHA
from cxr_ray.storage import Store
from tests.builders.trials import Killed, images, kept, train, trial


def test_a_trial_gives_the_same_weights_whatever_its_process_trained_before(monkeypatch, tmp_path):
    data = images()
    torch.manual_seed(123)
    fresh = kept(train(monkeypatch, trial(), data, tmp_path / "fresh"))
    different = trial(seed=1, loss="focal", sampler="balanced", labels="shuffled")
    other = kept(train(monkeypatch, different, data, tmp_path / "other"))
    again = kept(train(monkeypatch, trial(), data, tmp_path / "again"))
    assert other[0] != fresh[0]
    assert again == fresh


@pytest.mark.slow
def test_a_trial_that_was_killed_after_any_epoch_goes_on_to_the_same_weights(monkeypatch, tmp_path):
    whole = kept(train(monkeypatch, trial(epochs=3), images(), tmp_path / "whole"))
    for killed_after in (1, 2):
        out = tmp_path / str(killed_after)
        with pytest.raises(Killed):
            train(monkeypatch, trial(epochs=3), images(), out, killed_after)
        assert kept(train(monkeypatch, trial(epochs=3), images(), out)) == whole


def test_a_trained_trial_is_not_trained_again(monkeypatch, tmp_path):
    files = train(monkeypatch, trial(), images(), tmp_path)
    monkeypatch.setattr(training, "fit", None)
    run_trial(trial(), images(), None, files, "cpu")
    assert [epoch["epoch"] for epoch in files.history()] == [1, 2]
    assert len(list((tmp_path / ".work/trials/plain-0").iterdir())) == 2, "state and best weights, no earlier ones"


class Poison:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damages(data: bytes, folder: Path) -> dict[str, bytes]:
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])

    def with_history(history: object) -> bytes:
        text = json.dumps(
            {**header, "__metadata__": {**header["__metadata__"], "history": json.dumps(history)}}
        ).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + n :]

    (epoch,) = json.loads(header["__metadata__"]["history"])
    without = json.dumps({**header, "__metadata__": {}}).encode()
    return {
        "history without an epoch": with_history([]),
        "an epoch of other keys": with_history([{"loss": 1.0}]),
        "an epoch whose number is a text": with_history([{**epoch, "epoch": "1"}]),
        "an epoch that is none": with_history([1]),
        "cut": data[: len(data) // 2],
        "cut in its header": data[:40],
        "empty": b"",
        "three bytes": b"abc",
        "longer": data + b"x",
        "header without the history": len(without).to_bytes(8, "little") + without + data[8 + n :],
        "header that is no JSON": data[:8] + b"[" * n + data[8 + n :],
        "a huge header": (2**62).to_bytes(8, "little") + data[8:],
        "pickle": pickle.dumps(Poison(folder / "poisoned")),
    }


def test_a_damaged_state_is_a_sentence_and_runs_nothing(monkeypatch, tmp_path):
    with pytest.raises(Killed):
        train(monkeypatch, trial(), images(), tmp_path, killed_after=1)
    path = tmp_path / ".work/trials/plain-0/state.safetensors"
    whole = path.read_bytes()
    for damage, data in damages(whole, tmp_path).items():
        path.write_bytes(data)
        for read in (TrialFiles.history, TrialFiles.state):
            if read is TrialFiles.state and ("epoch" in damage or damage == "longer"):
                continue  # which history() tells, and that is read before
            with pytest.raises(
                DamagedRunError, match=r"plain-0/state\.safetensors, which is damaged or gone; .* again\.$"
            ):
                read(TrialFiles(Store(str(tmp_path), {}), "plain-0"))
    assert not (tmp_path / "poisoned").exists()


def test_asha_decides_of_a_resumed_run_as_of_one_that_was_never_interrupted(tmp_path):
    """Twelve trials of one group; a rival that is worse than two thirds at a rung is stopped and stays so."""
    plans = [replace(trial(epochs=9, seed=n), trial_id=f"plain-{n}") for n in range(12)]
    quality = np.random.default_rng(0).permutation(12) / 12
    files = {p.trial_id: TrialFiles(Store(str(tmp_path), {}), p.trial_id) for p in plans}
    nothing: dict[str, list[dict]] = {p.trial_id: [] for p in plans}

    def decide(scheduler: GroupedASHA, histories: dict[str, list[dict]], epochs: range) -> list[tuple[str, int]]:
        """Report an epoch of each trial after another; the trials that are stopped, and when."""
        stopped = []
        for epoch in epochs:
            for n, plan in enumerate(plans):
                if files[plan.trial_id].is_stopped():
                    continue
                metrics = {"epoch": epoch, "val_auroc": quality[n] + epoch / 100}
                histories[plan.trial_id].append(metrics)
                named = SimpleNamespace(config={"plan": plan.to_config()}, trial_id=f"tune_{id(scheduler)}_{n}")
                if scheduler.on_trial_result(None, named, metrics) == GroupedASHA.STOP:
                    stopped.append((plan.trial_id, epoch))
        return stopped

    whole_histories = {k: list(v) for k, v in nothing.items()}
    whole = decide(GroupedASHA(plans, files.__getitem__, nothing), whole_histories, range(1, 9))
    assert {epoch for _, epoch in whole} == {1, 3}
    for trial_files in files.values():
        if trial_files.is_stopped():
            (tmp_path / ".work/trials" / trial_files.trial_id / "stopped.json").unlink()
    histories = {k: list(v) for k, v in nothing.items()}
    first = decide(GroupedASHA(plans, files.__getitem__, nothing), histories, range(1, 3))
    then = decide(GroupedASHA(plans, files.__getitem__, histories), histories, range(3, 9))
    assert first + then == whole
    assert histories == whole_histories
