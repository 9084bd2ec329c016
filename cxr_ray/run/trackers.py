"""MLflow and Weights & Biases: a run of a tracker is begun, gets its epochs, and ends with its numbers and files.

What was sent is not sent again: MLflow is asked for it by a tag, and Weights & Biases goes on with the run of the same
id. Trackers are told settings and results, never the command line; credentials go into the environment alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from cxr_ray.credentials import revealed
from cxr_ray.errors import MissingPackageError, UserError

LONGEST = 500  # characters of a setting: older versions of MLflow take no more
MOST = 100  # settings or tags that MLflow takes at a time
TAG = "cxr_ray.run"  # of a run of MLflow: which run and record it is
QUIET = {  # where the user does not say otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of 7, in which training would wait for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
Steps = list[tuple[int, dict[str, float]]]


@dataclass
class Record:
    """One run of a tracker.

    Attributes:
        name: of it.
        settings: flat keys to values.
        metrics: at the end.
        steps: epochs with their metrics.
        tags: texts.
        files: kept with it.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: Steps = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


class Tracker(Protocol):
    """Where records go. Whatever the tracker's own package raises comes through."""

    label: str

    def begin(self, record: Record) -> Any:
        """A run of the tracker with a record's settings: the one that an earlier process began, if there is one."""

    def step(self, run: Any, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send an epoch, unless it was sent."""

    def end(self, run: Any, record: Record, status: str = "FINISHED") -> None:
        """Send tags, metrics and files, and end the run. ``status``: FINISHED, FAILED or KILLED."""


def send(tracker: Tracker, record: Record) -> None:
    """Send a whole record, or what is missing of it."""
    run = tracker.begin(record)
    for epoch, metrics in record.steps:
        tracker.step(run, epoch, metrics)
    tracker.end(run, record, "FAILED" if record.tags.get("status") == "failed" else "FINISHED")


@dataclass
class _MlflowRun:
    """A run of MLflow: its id, the last epoch that it has (0: none), and its metrics."""

    id: str
    last: int
    metrics: Mapping[str, float]


class Mlflow:
    """MLflow at a URI, with an experiment of the sweep's name.

    Args:
        uri: of a server or a database, without credentials.
        sweep: its name.
        run_id: of the cxr_ray run, by which its records are known.
    """

    label = "MLflow"

    def __init__(self, uri: str, sweep: str, run_id: str) -> None:
        self.run_id, self.mlflow = run_id, package("mlflow")
        for logger in ("mlflow", "alembic"):  # which tell of a new database line by line, and of errors that are raised
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self.client = self.mlflow.MlflowClient(tracking_uri=_address(uri))
        experiment = self.client.get_experiment_by_name(sweep)
        self.experiment = self.client.create_experiment(sweep) if experiment is None else experiment.experiment_id

    def begin(self, record: Record) -> _MlflowRun:
        """As ``Tracker``'s."""
        mark = f"{self.run_id}/{record.name}"
        known = self.client.search_runs([self.experiment], f"tags.`{TAG}` = '{mark}'", max_results=1)
        run = known[0] if known else self.client.create_run(self.experiment, run_name=record.name, tags={TAG: mark})
        run_id, last = run.info.run_id, 0
        for metric in sorted(run.data.metrics)[:1]:  # all of an epoch were sent at once
            last = max(point.step for point in self.client.get_metric_history(run_id, metric))
        entity = self.mlflow.entities.Param
        settings = [entity(k, str(v)[:LONGEST]) for k, v in record.settings.items() if k not in run.data.params]
        self._log(run_id, "params", settings)
        return _MlflowRun(run_id, last, run.data.metrics)

    def step(self, run: _MlflowRun, epoch: int, metrics: Mapping[str, float]) -> None:
        """As ``Tracker``'s."""
        if epoch > run.last:
            entity, now = self.mlflow.entities.Metric, _milliseconds()
            self._log(run.id, "metrics", [entity(k, v, now, epoch) for k, v in metrics.items()])
            run.last = epoch

    def end(self, run: _MlflowRun, record: Record, status: str = "FINISHED") -> None:
        """As ``Tracker``'s."""
        entities, now = self.mlflow.entities, _milliseconds()
        left = {key: value for key, value in record.metrics.items() if run.metrics.get(key) != value}
        self._log(run.id, "metrics", [entities.Metric(k, v, now, 0) for k, v in left.items()])
        self._log(run.id, "tags", [entities.RunTag(k, v) for k, v in record.tags.items()])
        for file in record.files:
            self.client.log_artifact(run.id, str(file))
        self.client.set_terminated(run.id, status)

    def _log(self, run_id: str, kind: str, values: Sequence[Any]) -> None:
        for start in range(0, len(values), MOST):
            self.client.log_batch(run_id, **{kind: values[start : start + MOST]})


class Wandb:
    """A project of Weights & Biases, with a group of the sweep's name. Its environment variables hold, as WANDB_MODE.

    Args:
        project: in which the runs are.
        sweep: its name.
        run_id: of the cxr_ray run, by which its records are known.
    """

    label = "Weights & Biases"

    def __init__(self, project: str, sweep: str, run_id: str) -> None:
        self.project, self.sweep, self.run_id, self.wandb = project, sweep, run_id, package("wandb")
        if os.environ.get("WANDB_MODE", "online") == "online" and not self.wandb.login(verify=False, prompt=False):
            raise UserError(
                f"got no key of {self.label}; expected WANDB_API_KEY, the one that 'wandb login' keeps, or "
                "WANDB_MODE=offline; set one."
            )
        self.settings = self.wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=60,
            finish_timeout_raises=True,
            init_timeout=30,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,  # the command line, which may hold credentials
            x_disable_stats=True,
            x_save_requirements=False,
        )

    def begin(self, record: Record) -> Any:
        """As ``Tracker``'s."""
        return self.wandb.init(
            project=self.project,
            group=self.sweep,
            name=record.name,
            id=f"{self.run_id}-{record.name}",
            config=record.settings,
            resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
            reinit="create_new",  # several trials train at a time
            settings=self.settings,
        )

    def step(self, run: Any, epoch: int, metrics: Mapping[str, float]) -> None:
        """As ``Tracker``'s."""
        if epoch >= run.step:  # of the next that it takes
            run.log(dict(metrics), step=epoch)

    def end(self, run: Any, record: Record, status: str = "FINISHED") -> None:
        """As ``Tracker``'s."""
        run.config.update(record.tags, allow_val_change=True)
        run.summary.update(record.metrics)
        if record.files:
            artifact = self.wandb.Artifact(f"{self.sweep}-{record.name}", type="report")
            for file in record.files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
        run.finish(exit_code=int(status != "FINISHED"))


TRACKERS: dict[str, type[Mlflow] | type[Wandb]] = {"mlflow": Mlflow, "wandb": Wandb}  # packages, and extras of ours


def require(names: Iterable[str]) -> None:
    """See that packages of this package's extras of the same name are installed; none is imported.

    Raises:
        MissingPackageError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(
                f"got no package {name}; expected it to be installed; install it: pip install 'cxr-ray[{name}]'."
            )


def package(name: str) -> Any:
    """A tracker's package, which tells nobody but its server. Raises MissingPackageError."""
    require([name])
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    return importlib.import_module(name)


def _address(uri: str) -> str:
    """The URI for MLflow's client; of a server its user and password go into the environment, since URIs are shown."""
    whole = revealed(uri)
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return whole
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _milliseconds() -> int:
    return int(time.time() * 1000)
