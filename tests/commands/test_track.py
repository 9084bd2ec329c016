"""cxr-ray track: what is sent, to stand-ins for mlflow and wandb."""

import json
import sys
from importlib import util
from pathlib import Path

import pytest
import yaml

from cxr_ray import results
from cxr_ray.commands import track
from cxr_ray.run import tracking
from tests.builders.runs import make_run
from tests.builders.trackers import Mlflow, Wandb


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A run whose first trial has two epochs, with a page and a figure."""
    out = Path(make_run(tmp_path_factory.mktemp("track") / "run"))
    trial = results.open_run(out).pandas("trials").trial_id[0]
    epochs = out / "checkpoints" / trial / "epochs.json"
    epochs.parent.mkdir(parents=True, exist_ok=True)
    epochs.write_text(json.dumps([{"epoch": n, "val_auroc": 0.5 + n / 10, "trained_on": "cpu"} for n in (1, 2)]))
    (out / "report.html").write_text("page")
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "one.svg").write_text("figure")
    return str(out)


@pytest.fixture
def installed(monkeypatch):
    """Puts a stand-in, or None, in a package's place."""

    def install(name: str, package: object) -> None:
        monkeypatch.setitem(sys.modules, name, package)
        monkeypatch.setattr(util, "find_spec", lambda asked: sys.modules.get(asked))

    return install


def test_mlflow_gets_each_epoch_and_one_summary_with_its_files_once(run, installed, capsys):
    server = Mlflow()
    installed("mlflow", server)
    for _ in range(2):
        assert track.main([run, "--mlflow", "sqlite:///runs.db"]) == 0
        assert capsys.readouterr().out.endswith(f"Sent to MLflow: 2 trials and one summary of {run}.\n")
    trial, failed = results.open_run(run).pandas("trials").trial_id
    assert list(server.runs) == [trial, failed, "summary"]
    assert server.steps(trial, "val_auroc") == [(0.6, 1), (0.7, 2)]
    assert server.runs["summary"].files == ["report.html", "one.svg"] * 2
    points = [name for name, _, _ in server.runs["summary"].points]
    assert points
    assert len(set(points)) == len(points), "a number was sent twice"
    assert [r.status for r in server.runs.values()] == ["FINISHED", "FAILED", "FINISHED"]


def test_the_summary_holds_the_primary_advantages_of_the_table_with_interval_and_n(run, tmp_path):
    *_, last = tracking.records(results.open_run(run), tmp_path)
    summary = results.open_run(run).pandas("summary")
    names = {key.partition("/")[2] for key in last.metrics if key.startswith("advantage/")}
    assert names
    for name in names:
        for key, column in tracking.COMPARED.items():
            if f"{key}/{name}" in last.metrics:
                assert (summary[column] == last.metrics[f"{key}/{name}"]).any()
        assert last.metrics[f"advantage_n/{name}"] > 0
    assert last.tags["answer 1"].startswith("Grad-CAM on ")
    assert last.settings["primary.scale"] == "logodds"


def test_wandb_gets_the_same_and_is_finished(run, installed, monkeypatch):
    project = Wandb()
    installed("wandb", project)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track.main([run, "--wandb", "maps"]) == 0
    trial, failed, summary = project.runs.values()
    assert trial.points == [({"val_auroc": 0.6}, 1), ({"val_auroc": 0.7}, 2)]
    assert summary.files == ["report.html", "one.svg"]
    assert summary.about["project"] == "maps"
    assert (trial.exit_code, failed.exit_code, summary.exit_code) == (0, 1, 0)


def test_a_run_without_options_goes_to_the_trackers_of_its_sweep(run, installed, tmp_path, capsys):
    server, sweep = Mlflow(), Path(run, "sweep.yaml")
    installed("mlflow", server)
    before = sweep.read_text()
    assert track.main([run]) == 2
    assert "expected --mlflow URI or --wandb PROJECT" in capsys.readouterr().err
    sweep.write_text(yaml.safe_dump({**yaml.safe_load(before), "track": {"mlflow": "sqlite:///sweep.db"}}))
    try:
        assert track.main([run]) == 0
    finally:
        sweep.write_text(before)
    assert server.uri == "sqlite:///sweep.db"
    assert "summary" in server.runs


def test_what_cannot_be_sent_is_a_sentence(run, installed, monkeypatch, capsys, tmp_path):
    installed("mlflow", None)
    assert track.main([run, "--mlflow", "file:runs"]) == 2
    assert "pip install 'cxr-ray[mlflow]'" in capsys.readouterr().err
    server = Mlflow()
    installed("mlflow", server)
    assert track.main([str(tmp_path), "--mlflow", "file:runs"]) == 2
    monkeypatch.setattr(server, "create_run", lambda *a, **k: 1 / 0, raising=False)
    capsys.readouterr()
    assert track.main([run, "--mlflow", "file:runs"]) == 1
    assert "MLflow did not take plain-01234567: division by zero." in capsys.readouterr().err
    installed("wandb", Wandb())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track.main([run, "--mlflow", "file:runs", "--wandb", "maps"]) == 1
    failed, sent = capsys.readouterr().err.splitlines()[-2:]
    assert "MLflow did not take" in failed
    assert "Sent to Weights & Biases: 2 trials" in sent, "the other tracker was not tried"
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert track.main([run, "--wandb", "maps"]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err
