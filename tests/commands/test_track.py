"""cxr-ray track: what is sent, to stand-ins whose functions are those that mlflow and wandb document."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray import results
from cxr_ray.commands import track
from tests.builders.runs import make_run


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


class Mlflow(SimpleNamespace):
    """Takes what mlflow's functions take."""

    def __init__(self):
        super().__init__(calls=[])
        for name in ("set_tracking_uri", "set_experiment", "log_params", "set_tags", "log_metrics", "log_artifact"):
            setattr(self, name, lambda *a, _name=name, **k: self.calls.append((_name, a, k)))

    @contextlib.contextmanager
    def start_run(self, run_name):
        self.calls.append(("start_run", (run_name,), {}))
        yield


def test_mlflow_gets_each_epoch_and_one_summary_with_its_files(run, monkeypatch, capsys):
    fake: Any = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert track.main([run, "--mlflow", "file:runs"]) == 0
    trials = results.open_run(run).pandas("trials").trial_id
    assert [a[0] for name, a, _ in fake.calls if name == "start_run"] == [*trials, "summary"]
    steps = [(a[0], k["step"]) for name, a, k in fake.calls if name == "log_metrics" and "step" in k]
    assert steps == [({"val_auroc": 0.6}, 1), ({"val_auroc": 0.7}, 2)]
    assert [Path(a[0]).name for name, a, _ in fake.calls if name == "log_artifact"] == ["report.html", "one.svg"]
    assert capsys.readouterr().out.endswith(f"Sent: {len(trials)} trials and one summary of {run}.\n")


def test_the_summary_holds_the_primary_advantages_of_the_table(run):
    *_, last = track.records(results.open_run(run))
    summary = results.open_run(run).pandas("summary")
    assert last.metrics
    for key, value in last.metrics.items():
        if key.startswith("advantage/"):
            assert (summary["mean"] == value).any()
    assert last.tags["answer 1"].startswith("Grad-CAM on ")


def test_wandb_gets_the_same_and_is_finished(run, monkeypatch):
    logged: list[Any] = []

    def init(**about):
        logged.append(about["name"])
        return SimpleNamespace(
            log=lambda metrics, step: logged.append((metrics, step)),
            summary={},
            log_artifact=lambda artifact: logged.append(artifact.files),
            finish=lambda: logged.append("finished"),
        )

    class Artifact:
        def __init__(self, name, type):
            self.files: list[str] = []

        def add_file(self, path):
            self.files.append(Path(path).name)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Artifact=Artifact))
    assert track.main([run, "--wandb", "maps"]) == 0
    assert logged[1:3] == [({"val_auroc": 0.6}, 1), ({"val_auroc": 0.7}, 2)]
    assert logged[-3:] == ["summary", ["report.html", "one.svg"], "finished"]


def test_what_cannot_be_sent_is_a_sentence(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert track.main([run, "--mlflow", "file:runs"]) == 2
    assert "pip install 'cxr-ray[mlflow]'" in capsys.readouterr().err
    assert track.main([str(tmp_path), "--mlflow", "file:runs"]) == 2
    fake: Any = Mlflow()
    fake.set_experiment = lambda name: 1 / 0
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert track.main([run, "--mlflow", "file:runs"]) == 1
    assert "the tracker did not take plain-01234567: division by zero" in capsys.readouterr().err
