"""The command line ``cxr-ray track RUN``: a finished run to MLflow or Weights & Biases."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_ray.arguments import Parser, guarded
from cxr_ray.errors import CxrRayError, MissingPackageError, RunError, TrackerError, UserError

if TYPE_CHECKING:  # pandas and scipy, which --help does without
    from cxr_ray.results import Run

EXIT_CODES = "Exit codes: 0 done, 1 the tracker did not take it, 2 the request was wrong, 130 interrupted."
LONGEST = 500  # characters of a value: MLflow takes no more
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


def parser(prog: str = "cxr-ray track") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(
        prog=prog,
        description="Sends a finished run to a tracker: each trial with its epochs, and one summary run with accuracy, "
        "advantages, answers, figures and page.",
        epilog=EXIT_CODES,
    )
    p.add_argument("run", help="the run's folder")
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--mlflow", metavar="URI", help="of the tracking server or folder (extra mlflow)")
    where.add_argument("--wandb", metavar="PROJECT", help="of Weights & Biases; WANDB_MODE=offline works (extra wandb)")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "cxr-ray track") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from cxr_ray.run import progress

    return guarded(lambda: progress.concluded("Reading the run", run(args)))


def run(args: argparse.Namespace) -> Iterator[str]:
    """Send the records; yields the line that concludes.

    Raises:
        TrackerError: the tracker did not take one.
    """
    from cxr_ray import results
    from cxr_ray.run import progress

    opened = results.open_run(args.run)
    sent, name = list(records(opened)), str(opened.sweep["name"])
    send = to_mlflow if args.mlflow else to_wandb
    with progress.stage("Sending", len(sent), "records") as stage:
        for record in sent:
            try:
                send(record, args.mlflow or args.wandb, name)
            except CxrRayError:
                raise
            except Exception as e:  # trackers fail in their own ways
                reason = (str(e).splitlines() or [type(e).__name__])[0]
                raise TrackerError(f"the tracker did not take {record.name}: {reason}") from e
            stage.advance()
    yield f"Sent: {len(sent) - 1} trials and one summary of {args.run}."


def records(run: Run) -> Iterator[Record]:
    """A record a trial, and last the summary of the run.

    Raises:
        UserError: the run is not local.
        RunError: it is not finished.
    """
    from cxr_ray.analysis import answers, primary
    from cxr_ray.analysis.model_names import flat

    if "://" in run.path:
        raise UserError(f"got {run.path}; expected a local folder, whose files a tracker reads; copy the run first.")
    for trial in run.pandas("trials").to_dict("records"):
        history = Path(run.root, "checkpoints", trial["trial_id"], "epochs.json")
        epochs = json.loads(history.read_text("utf-8")) if history.exists() else []
        yield Record(
            trial["trial_id"],
            settings={**flat(trial["config"]), "variant": trial["variant"]},
            steps=[(int(epoch["epoch"]), _numbers(epoch)) for epoch in epochs],
            tags={"status": str(trial["status"]), "cxr_ray": "trial"},
        )
    rows = answers.primary_rows(run.pandas("summary"), primary.of_run(run))
    compared: list[Any] = list(rows[rows["control"] != "none"].itertuples())
    metrics = {f"advantage/{r.trial_id}/{r.explainer}/{r.control}": float(r.mean) for r in compared}
    at_half: list[Any] = list(
        run.pandas("classification").query("split == 'test' and threshold_rule == 'half'").itertuples()
    )
    metrics |= {f"accuracy/{r.trial_id}": float(r.accuracy) for r in at_half}
    page = Path(run.root, "report.html")
    figures = sorted(p for p in Path(run.root, "figures").glob("*") if p.is_file())
    if not page.exists():
        raise RunError(f"got {run.path} without report.html; expected a finished run; finish it with --resume.")
    said = {f"answer {i}": answer.sentence for i, answer in enumerate(answers.of_run(run), start=1)}
    settings = flat(json.dumps(run.sweep, default=str))
    yield Record("summary", settings, metrics, tags={**said, "cxr_ray": "summary"}, files=[page, *figures])


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(v) for key, v in values.items() if isinstance(v, (int, float)) and key != "epoch"}


def to_mlflow(record: Record, uri: str, experiment: str) -> None:
    """Log one record as a run of MLflow."""
    mlflow = _package("mlflow")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=record.name):
        mlflow.log_params({key: str(value)[:LONGEST] for key, value in record.settings.items()})
        mlflow.set_tags(record.tags)
        for step, metrics in record.steps:
            mlflow.log_metrics(metrics, step=step)
        mlflow.log_metrics(record.metrics)
        for file in record.files:
            mlflow.log_artifact(str(file))


def to_wandb(record: Record, project: str, group: str) -> None:
    """Log one record as a run of Weights & Biases."""
    wandb = _package("wandb")
    tracked = wandb.init(project=project, name=record.name, group=group, config={**record.settings, **record.tags})
    for step, metrics in record.steps:
        tracked.log(metrics, step=step)
    tracked.summary.update(record.metrics)
    if record.files:
        artifact = wandb.Artifact(f"{group}-{record.name}", type="report")
        for file in record.files:
            artifact.add_file(str(file))
        tracked.log_artifact(artifact)
    tracked.finish()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackageError(
            f"got no package {name}; expected it to be installed; install it: pip install 'cxr-ray[{name}]'."
        ) from None
