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

# Ray starts for every run; one process shares the first
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("verdicts")]

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


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """A run of verdicts without the fixed design."""
    folder = tmp_path_factory.mktemp("alone")
    file = given(folder, verdicts={**SETTINGS["verdicts"], "fixed_design": False}, resources={"workers": 2})
    assert sweep.main([file, "--out", str(folder / "out")]) == 0
    return str(folder / "out")


def test_every_comparison_of_every_model_has_a_verdict(alone):
    found = verdicts(alone)
    assert len(found) == 2 * 2 * 2 * 3 * 5
    assert (found.family_size == 60).all()
    assert (found.n_patients <= found.n_available).all()
    everyone = found[found.bucket == "all"]
    assert (everyone.n_available == 24).all()
    assert everyone.sentence.str.contains("win rate").all()
    assert found.win_rate.dropna().between(found.lower.dropna(), found.upper.dropna()).all()


def test_without_the_fixed_design_nothing_else_is_scored(alone):
    run = results.open_run(alone)
    assert run.arrow("curves").num_rows == run.arrow("faithfulness").num_rows == run.arrow("summary").num_rows == 0
    assert (
        run.arrow("saliency").num_rows
        == 2 * 24 * 2 + len(run.pandas("predictions").query("split == 'test' and predicted == 0")) * 2
    )
    page = Path(alone, "report.html").read_text()
    assert "nan" not in page.split()


def test_tables_are_equal_whatever_the_workers_and_the_rounds(alone, tmp_path):
    """The other run has rounds of 4 and two workers, and scores no fixed design."""
    file = given(tmp_path, verdicts={**SETTINGS["verdicts"], "round": 16}, resources={"workers": 1})
    assert sweep.main([file, "--out", str(tmp_path / "out")]) == 0
    pd.testing.assert_frame_equal(verdicts(str(tmp_path / "out")), verdicts(alone), rtol=1e-4)


def test_a_run_that_was_stopped_between_rounds_goes_on_and_gives_the_same_table(alone, tmp_path, monkeypatch):
    file = given(tmp_path, verdicts={**SETTINGS["verdicts"], "fixed_design": False})
    taken, scored = rounds._Rounds._take, []

    def take(self, model):
        scored.append(set(self.store.finished_shards(rounds.ROUNDS)))
        if len(scored) == 3:
            raise KeyboardInterrupt
        taken(self, model)

    monkeypatch.setattr(rounds._Rounds, "_take", take)
    out = str(tmp_path / "out")
    assert sweep.main([file, "--out", out]) == 130
    monkeypatch.undo()
    there = {path.name for path in Path(out, ".work", "rounds").rglob("*.arrow")}
    assert len(there) >= 3
    kept, computed = rounds._Rounds._finish, []

    def finish(self, block):
        computed.append(f"{block.name}.arrow")
        kept(self, block)

    monkeypatch.setattr(rounds._Rounds, "_finish", finish)
    assert sweep.main([file, "--out", out, "--resume"]) == 0
    assert not set(computed) & there
    pd.testing.assert_frame_equal(verdicts(out), verdicts(alone), rtol=1e-4)
