"""Sequential verdicts of a sweep through Ray: tables equal whatever the workers and rounds, resumed, and alone."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from cxr_ray import results, sweep
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.run import rounds
from tests.builders.networks import varied_resnet18

pytestmark = pytest.mark.slow  # Ray starts for every run

SETTINGS: dict[str, Any] = {
    "name": "decided",
    "data": {"source": "phantom", "size": 64, "phantom": {"train": 8, "test": 24}},
    "explain": {"explainers": ["gradcam", "random"], "targets": ["pneumonia", "predicted"]},
    "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.25, 0.5, 0.75]},
    "controls": {"shifted": 1, "other_image": 1},
    "verdicts": {"controls": ["shifted", "other_image", "mean_map"], "alpha": 0.49, "round": 4},
    "regions": None,
    "sanity": None,
}


def given(folder: Path, **changes: Any) -> str:
    """A sweep of two untrained networks; with so large an alpha that comparisons are decided early."""
    models = {}
    for seed, name in enumerate(("one", "two")):
        path = folder / f"{name}.safetensors"
        network = Classifier(varied_resnet18(seed=seed), ModelSpec("resnet18", 64))  # no near ties
        path.write_bytes(checkpoints.to_bytes(network))
        models[name] = {"path": str(path)}
    file = folder / "decided.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, "checkpoints": models, **changes}))
    return str(file)


def verdicts(out: str) -> pd.DataFrame:
    frame = results.open_run(out).pandas("verdicts")
    key = ["trial_id", "explainer", "target_rule", "control", "bucket"]
    return frame.sort_values(key).drop(columns="seconds").reset_index(drop=True)


def test_a_run_stopped_between_rounds_gives_every_verdict_of_one_with_other_workers_and_rounds(
    running_ray, tmp_path, monkeypatch
):
    """The first has rounds of 4, two workers and no fixed design; the other rounds of 16, one worker and all else."""
    folders = [tmp_path / "stopped", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    out, other = (str(folder / "out") for folder in folders)
    asked = {**SETTINGS["verdicts"], "fixed_design": False}
    file = given(folders[0], verdicts=asked, resources={"workers": 2})
    there, computed = _stopped_and_resumed(file, out, monkeypatch)
    assert len(there) >= 3
    assert computed
    assert not computed & there
    file = given(folders[1], verdicts={**SETTINGS["verdicts"], "round": 16}, resources={"workers": 1})
    assert sweep.main([file, "--out", other]) == 0
    pd.testing.assert_frame_equal(verdicts(other), verdicts(out), rtol=1e-4)
    _check_verdicts(verdicts(out))
    _check_that_nothing_else_is_scored(out)


def _stopped_and_resumed(file: str, out: str, monkeypatch) -> tuple[set[str], set[str]]:
    """Files of blocks that were there when a run was stopped, and those that were computed when it went on."""
    taken, scored = rounds._Rounds._take, []

    def take(self, model):
        scored.append(set(self.store.finished_shards(rounds.ROUNDS)))
        if len(scored) == 3:
            raise KeyboardInterrupt
        taken(self, model)

    monkeypatch.setattr(rounds._Rounds, "_take", take)
    assert sweep.main([file, "--out", out]) == 130
    monkeypatch.undo()
    there = {path.name for path in Path(out, ".work", "rounds").rglob("*.arrow")}
    kept, computed = rounds._Rounds._finish, set()

    def finish(self, block):
        computed.add(f"{block.name}.arrow")
        kept(self, block)

    monkeypatch.setattr(rounds._Rounds, "_finish", finish)
    assert sweep.main([file, "--out", out, "--resume"]) == 0
    return there, computed


def _check_verdicts(found: pd.DataFrame) -> None:
    assert len(found) == 2 * 2 * 2 * 3 * 5
    assert (found.family_size == 60).all()
    assert (found.n_patients <= found.n_available).all()
    everyone = found[found.bucket == "all"]
    assert (everyone.n_available == 24).all()
    assert everyone.sentence.str.contains("win rate").all()
    assert found.win_rate.dropna().between(found.lower.dropna(), found.upper.dropna()).all()


def _check_that_nothing_else_is_scored(out: str) -> None:
    """Where no fixed design is asked for."""
    run = results.open_run(out)
    assert run.arrow("curves").num_rows == run.arrow("faithfulness").num_rows == run.arrow("summary").num_rows == 0
    test = run.pandas("predictions").query("split == 'test' and predicted == 0")
    assert run.arrow("saliency").num_rows == 2 * 24 * 2 + len(test) * 2
    page = Path(out, "report.html").read_text()
    assert "nan" not in page.split()
