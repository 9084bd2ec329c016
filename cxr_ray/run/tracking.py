"""A run as its trackers get it: trials while they train, and at the end what is missing, and one summary.

No tracker ends a sweep. One that fails is left alone until the end, and ``cxr-ray track`` sends what it did not take.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs as pafs
from ray.tune import Callback

from cxr_ray import results
from cxr_ray.errors import CxrRayError, RunError, TrackerError, first_line
from cxr_ray.results import Run
from cxr_ray.run import progress, terminal
from cxr_ray.run.trackers import TRACKERS, Record, Tracker, send
from cxr_ray.schemas import to_json

if TYPE_CHECKING:
    from cxr_ray.analysis.primary import PrimarySettings
    from cxr_ray.run.context import RunContext

METRICS = ("train_loss", "val_loss", "val_auroc", "best_epoch", "best_auroc", "seconds")  # of an epoch
COMPARED = {  # metrics of a tracker and the columns of ``summary`` that they are
    **{"advantage": "mean", "advantage_lower": "lower", "advantage_upper": "upper"},
    **{"advantage_n": "n", "advantage_n_patients": "n_patients"},
    **{"win_rate": "win_rate", "win_rate_lower": "win_lower", "win_rate_upper": "win_upper"},
}
PERFORMANCE = {  # and of ``classification``
    **{f"{name}{end}": f"{name}{end}" for name in ("accuracy", "auroc") for end in ("", "_lower", "_upper")},
    **{"accuracy_n": "n", "accuracy_n_patients": "n_patients"},
}
Histories = Mapping[str, Sequence[Mapping[str, Any]]]


class Tracking(Callback):
    """Sends what Tune tells of the trials to one tracker, until that fails.

    Ray's own callbacks for MLflow and Weights & Biases are not used. A trial that is resumed would be a second run, and
    that of Weights & Biases starts two processes a trial, is silent when it fails, and writes into Tune's folder.

    Args:
        context: of the run.
        key, target: of the tracker, as ``track`` has them.
        histories: metrics of the epochs that are behind, by trial.
    """

    def __init__(self, context: RunContext, key: str, target: str, histories: Histories) -> None:
        self.context, self.key, self.target, self.histories = context, key, target, histories
        self.tracker: Tracker | None = None
        self.open: dict[str, tuple[Record, Any]] = {}
        self.failed = False

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Ray's hook: an epoch."""
        if "val_auroc" in result:
            self._attempt(self._step, trial.config["plan"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ray's hook: the last epoch is behind, or the scheduler stopped the trial."""
        self._attempt(self._end, trial.config["plan"]["trial_id"], "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ray's hook: the trial failed for good."""
        self._attempt(self._end, trial.config["plan"]["trial_id"], "FAILED")

    def connect(self) -> None:
        """Find out at once whether the tracker can be reached."""
        with progress.stage(f"Starting {TRACKERS[self.key].label}"):
            self._attempt(self._connect)

    def close(self) -> None:
        """End the runs of trials that were interrupted; --resume goes on with them."""
        with contextlib.suppress(Exception):
            for trial_id in list(self.open):
                self._end(trial_id, "KILLED")

    def _attempt(self, work: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            work(*arguments)
        except Exception as e:  # trackers fail in their own ways
            self.failed = True
            terminal.complain(
                f"{TRACKERS[self.key].label} fails: {first_line(e).rstrip('.')}. The sweep goes on, and sends what is "
                "missing at its end."
            )

    def _connect(self) -> None:
        self.tracker = TRACKERS[self.key](self.target, self.context.sweep.name, self.context.store.run["run_id"])

    def _step(self, plan: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        tracker, trial_id = self.tracker, plan["trial_id"]
        assert tracker is not None  # it did not fail
        if trial_id not in self.open:
            record = _of_trial(trial_id, plan["variant"], to_json({k: plan[k] for k in ("model", "train")}))
            self.open[trial_id] = record, tracker.begin(record)
            for metrics in self.histories.get(trial_id, ()):
                tracker.step(self.open[trial_id][1], metrics["epoch"], _numbers(metrics))
        record, run = self.open[trial_id]
        record.tags["status"] = "completed" if result["epoch"] >= plan["train"]["epochs"] else "stopped"
        tracker.step(run, result["epoch"], _numbers(result))

    def _end(self, trial_id: str, status: str) -> None:
        if self.tracker is None or trial_id not in self.open:
            return
        record, run = self.open.pop(trial_id)
        self.tracker.end(run, record, status)
        if status == "FINISHED":
            self.context.store.write_json({}, *_mark(self.key, self.target, trial_id))


@contextlib.contextmanager
def following(context: RunContext, histories: Histories) -> Iterator[list[Callback]]:
    """Tune's callbacks that send the trials to the trackers of a sweep. ``histories``: as of ``Tracking``."""
    callbacks = [Tracking(context, key, target, histories) for key, target in context.sweep.track.targets.items()]
    for callback in callbacks:
        callback.connect()
    try:
        yield list(callbacks)
    finally:
        for callback in callbacks:
            callback.close()


def conclude(context: RunContext) -> None:
    """Send what the sweep's trackers do not have of a run that has its page. One that fails is told in a line."""
    store = context.store
    for key, target in context.sweep.track.targets.items():

        def is_whole(name: str, key: str = key, target: str = target) -> bool:
            return store.exists(*_mark(key, target, name))

        try:
            send_run(results.open_run(store.out), key, target, is_whole)
        except CxrRayError as e:
            terminal.complain(str(e))


def send_run(run: Run, key: str, target: str, is_whole: Callable[[str], bool] = lambda name: False) -> int:
    """Send a run that has its page to a tracker; returns how many records were sent.

    Args:
        run: opened.
        key, target: of the tracker.
        is_whole: whether the tracker has a record, by its name.

    Raises:
        TrackerError: the tracker did not take one.
        MissingPackageError: it is not installed.
        RunError: the run has no page.
    """
    label, doing = TRACKERS[key].label, "the name of the sweep"
    with tempfile.TemporaryDirectory(prefix="cxr_ray-track-") as folder:
        left = [record for record in records(run, Path(folder)) if not is_whole(record.name)]
        with progress.stage(f"Sending to {label}", len(left), "records") as stage:
            try:
                run_id = str(run.json("provenance.json").get("run_id", ""))
                tracker = TRACKERS[key](target, str(run.sweep["name"]), run_id)
                for record in left:
                    doing = record.name
                    send(tracker, record)
                    stage.advance()
            except CxrRayError:
                raise
            except Exception as e:  # trackers fail in their own ways
                raise TrackerError(
                    f"{label} did not take {doing}: {first_line(e).rstrip('.')}. Once it does, cxr-ray track "
                    f"{run.path} sends what is missing."
                ) from e
    return len(left)


def records(run: Run, folder: Path) -> Iterator[Record]:
    """A record a trial, and last the summary of the run, whose files are copied into ``folder``.

    Raises:
        RunError: the run has no page.
    """
    from cxr_ray.analysis import primary
    from cxr_ray.analysis.model_names import flat

    if not run.fs.get_file_info(f"{run.root}/report.html").is_file:
        raise RunError(f"got {run.path} without report.html; expected a finished run; finish it with --resume.")
    for trial in run.pandas("trials").to_dict("records"):
        record = _of_trial(trial["trial_id"], trial["variant"], trial["config"])
        record.tags["status"] = str(trial["status"])
        epochs = f"{run.root}/checkpoints/{trial['trial_id']}/epochs.json"
        if run.fs.get_file_info(epochs).is_file:
            with run.fs.open_input_stream(epochs) as f:
                record.steps = [(int(epoch["epoch"]), _numbers(epoch)) for epoch in json.loads(f.read())]
        yield record
    settings = primary.of_run(run)
    metrics, said = _results(run, settings)
    measured = {f"primary.{key}": value for key, value in vars(settings).items()}
    yield Record(
        "summary",
        {**flat(json.dumps(run.sweep, default=str)), **measured},
        metrics,
        tags={**said, "cxr_ray": "summary"},
        files=_copied(run, folder),
    )


def _of_trial(trial_id: str, variant: str, config: Any) -> Record:
    from cxr_ray.analysis.model_names import flat

    return Record(trial_id, {**flat(config), "variant": variant}, tags={"cxr_ray": "trial"})


def _results(run: Run, settings: PrimarySettings) -> tuple[dict[str, float], dict[str, str]]:
    """The numbers of the answers, each with its interval and n, and the answers in words."""
    from cxr_ray.analysis import answers

    rows = answers.primary_rows(run.pandas("summary"), settings)
    metrics: dict[str, Any] = {}
    for row in rows[rows["control"] != "none"].to_dict("records"):
        name = f"{row['trial_id']}/{row['explainer']}/{row['control']}"
        metrics |= {f"{key}/{name}": row[column] for key, column in COMPARED.items()}
    at_half = run.pandas("classification").query("split == 'test' and threshold_rule == 'half'")
    for row in at_half.to_dict("records"):
        metrics |= {f"{key}/{row['trial_id']}": row[column] for key, column in PERFORMANCE.items()}
    said = {f"answer {i}": answer.sentence for i, answer in enumerate(answers.of_run(run), start=1)}
    for i, r in enumerate(_verdicts(run), start=1):
        name = f"{r.trial_id}/{r.explainer}/{r.target_rule}/{r.control}/{r.bucket}"
        metrics |= {f"verdict/{name}": r.win_rate, f"verdict_lower/{name}": r.lower, f"verdict_upper/{name}": r.upper}
        metrics[f"verdict_n_patients/{name}"] = r.n_patients
        said[f"verdict {i}"] = r.sentence
    return {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}, said


def _verdicts(run: Run) -> Iterator[Any]:
    """Rows of sequential verdicts, which older runs do not have."""
    with contextlib.suppress(RunError):
        yield from run.pandas("verdicts").itertuples()


def _copied(run: Run, folder: Path) -> list[Path]:
    """Page and figures as local files, since trackers read no others."""
    (folder / "figures").mkdir()
    local = pafs.LocalFileSystem()
    found = run.fs.get_file_info(pafs.FileSelector(f"{run.root}/figures", allow_not_found=True))
    names = ["report.html", *sorted(f"figures/{info.base_name}" for info in found if info.is_file)]
    for name in names:
        pafs.copy_files(f"{run.root}/{name}", str(folder / name), run.fs, local)
    return [folder / name for name in names]


def _mark(key: str, target: str, name: str) -> tuple[str, ...]:
    """The file of a run that says that a tracker has a record whole; gone once the run is finished."""
    return ".work", "tracked", f"{key}-{zlib.crc32(target.encode()):08x}-{name}.json"


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(metrics[key]) for key in METRICS if metrics.get(key) is not None}
