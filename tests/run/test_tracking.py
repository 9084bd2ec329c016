"""Trackers of a sweep: trials as they train, what is missing at the end, failures, and credentials."""

import json
import os
import shutil
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray import results
from cxr_ray.run import trackers, tracking
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve
from tests.builders.runs import make_run
from tests.builders.trackers import Mlflow

TRIAL = "plain-01234567"
PLAN = {"trial_id": TRIAL, "variant": "plain", "model": {"arch": "resnet18"}, "train": {"epochs": 3, "lr": 0.1}}


@pytest.fixture
def server(monkeypatch) -> Mlflow:
    """A stand-in for mlflow, installed."""
    package = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setattr(util, "find_spec", lambda name: sys.modules.get(name))
    return package


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with its tables."""
    return Path(make_run(tmp_path_factory.mktemp("tracking") / "run"))


@pytest.fixture
def context(tmp_path, server, made) -> Any:
    """A run of one trial that goes to MLflow; it has its tables and its page."""
    out = shutil.copytree(made, tmp_path / "run")
    Path(out, "report.html").write_text("page")
    kept = Path(out, "checkpoints", TRIAL, "epochs.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([epoch(n) for n in (1, 2, 3)]))
    run = results.open_run(out)
    run_id = run.json("provenance.json")["run_id"]
    sweep = SimpleNamespace(name=run.sweep["name"], track=SimpleNamespace(targets={"mlflow": "sqlite:///runs.db"}))
    return SimpleNamespace(sweep=sweep, store=Store(str(out), {"run_id": run_id}))


def epoch(n: int) -> dict[str, Any]:
    return {"epoch": n, "val_auroc": 0.5 + n / 10, "trained_on": "cpu", "training_iteration": 1}


def trained(context, epochs, histories=None, complete=True) -> None:
    """Tune's hooks, as it calls them while one trial trains."""
    trial: Any = SimpleNamespace(config={"plan": PLAN})
    with tracking.following(context, histories or {}) as callbacks:
        for callback in callbacks:
            for n in epochs:
                callback.on_trial_result(n, [], trial, epoch(n))
            if complete:
                callback.on_trial_complete(0, [], trial)


def test_a_trial_is_sent_while_it_trains_and_the_summary_at_the_end(context, server):
    trained(context, (1, 2), complete=False)
    assert server.steps(TRIAL, "val_auroc") == [(0.6, 1), (0.7, 2)]
    assert server.runs[TRIAL].status == "KILLED"
    assert server.runs[TRIAL].data.params == {"model.arch": "resnet18", "train.epochs": "3"} | {
        "train.lr": "0.1",
        "variant": "plain",
    }
    trained(context, (3,), {TRIAL: [epoch(1), epoch(2)]})  # --resume
    assert server.steps(TRIAL, "val_auroc") == [(0.6, 1), (0.7, 2), (pytest.approx(0.8), 3)]
    assert (server.runs[TRIAL].status, server.runs[TRIAL].tags["status"]) == ("FINISHED", "completed")
    tracking.conclude(context)
    assert list(server.runs)[::2] == [TRIAL, "summary"]


def test_a_trial_that_was_sent_whole_is_not_sent_again(context, server, monkeypatch):
    trained(context, (1, 2, 3))
    server.runs.pop(TRIAL)
    tracking.conclude(context)
    assert TRIAL not in server.runs
    assert "summary" in server.runs


def test_a_server_that_is_gone_costs_a_line_and_gets_all_at_the_end(context, server, monkeypatch, capsys):
    def gone(*_, **__):
        raise ConnectionError("no route to http://me:secret12@host/api")

    with monkeypatch.context() as patched:
        trained(context, (1,), complete=False)
        patched.setattr(server, "log_batch", gone, raising=False)
        trained(context, (2, 3), {TRIAL: [epoch(1)]})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cxr_ray: MLflow fails: no route to http://host/api. The sweep goes on")
    tracking.conclude(context)
    assert [step for _, step in server.steps(TRIAL, "val_auroc")] == [1, 2, 3]
    assert server.runs["summary"].files[0] == "report.html"


def test_a_server_that_stays_away_does_not_end_the_run(context, server, monkeypatch, capsys):
    monkeypatch.setattr(server, "create_run", lambda *_, **__: 1 / 0, raising=False)
    trained(context, (1, 2, 3))
    tracking.conclude(context)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("cxr_ray: MLflow fails: division by zero.")
    assert last == (
        f"cxr_ray: MLflow did not take {TRIAL}: division by zero. Once it does, cxr-ray track {context.store.out} "
        "sends what is missing."
    )


def test_trackers_change_no_hash():
    plain = resolve({})
    tracked = resolve({"track": {"mlflow": "sqlite:///runs.db", "wandb": "maps"}})
    assert plain.hash == tracked.hash
    assert (plain.track.targets, set(tracked.track.targets)) == ({}, {"mlflow", "wandb"})


def test_credentials_of_a_server_stay_out_of_the_sweep_and_the_address(server, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "CXR_RAY_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
    sweep = resolve({"track": {"mlflow": "https://me:very%40secret@tracking.example:5000/"}})
    assert "secret" not in sweep.to_yaml()
    trackers.Mlflow(sweep.track.targets["mlflow"], "made", "0")
    assert server.uri == "https://tracking.example:5000/"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "very@secret"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # MLflow's own, of SQLAlchemy
def test_mlflow_itself_keeps_what_is_sent_twice_once(context, monkeypatch, tmp_path, capfd):
    monkeypatch.undo()  # the package, not its stand-in
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    context.sweep.track.targets = {"mlflow": uri}
    trained(context, (1, 2), complete=False)
    for _ in range(2):
        tracking.send_run(results.open_run(context.store.out), "mlflow", uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(context.sweep.name)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    history = client.get_metric_history(runs[TRIAL].info.run_id, "val_auroc")
    assert [(point.step, round(point.value, 3)) for point in history] == [(1, 0.6), (2, 0.7), (3, 0.8)]
    assert [file.path for file in client.list_artifacts(runs["summary"].info.run_id)][-1] == "report.html"
    assert capfd.readouterr().err == ""
