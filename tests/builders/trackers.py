"""Stand-ins for the packages mlflow and wandb: they take what those document, and keep it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Mlflow(SimpleNamespace):
    """The package and its client; one server.

    Attributes:
        runs: by name, each with params, tags, points (metric, value, step), files and status.
        uri: of the client.
    """

    def __init__(self) -> None:
        entities = {name: lambda *values: values for name in ("Param", "Metric", "RunTag")}
        super().__init__(runs={}, uri="", entities=SimpleNamespace(**entities))

    def MlflowClient(self, tracking_uri: str) -> "Mlflow":
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name)

    def search_runs(self, experiments: list[str], asked: str, max_results: int) -> list[Any]:
        key, _, value = asked.partition(" = ")
        return [r for r in self.runs.values() if r.tags[key.removeprefix("tags.").strip("`")] == value.strip("'")]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        assert run_name not in self.runs, "a second run of the same name"
        data = SimpleNamespace(params={}, metrics={})
        run = SimpleNamespace(info=SimpleNamespace(run_id=run_name), data=data, tags=dict(tags))
        self.runs[run_name] = SimpleNamespace(**vars(run), points=[], files=[], status="RUNNING")
        return self.runs[run_name]

    def get_metric_history(self, run_id: str, metric: str) -> list[Any]:
        return [SimpleNamespace(step=step) for name, _, step in self.runs[run_id].points if name == metric]

    def log_batch(
        self, run_id: str, params: Sequence[Any] = (), metrics: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        run = self.runs[run_id]
        run.data.params |= dict(params)
        run.tags |= dict(tags)
        run.points += [(key, value, step) for key, value, _, step in metrics]
        run.data.metrics |= {key: value for key, value, _, _ in metrics}

    def log_artifact(self, run_id: str, path: str) -> None:
        assert Path(path).is_file()
        self.runs[run_id].files.append(Path(path).name)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    def steps(self, run_id: str, metric: str) -> list[tuple[float, int]]:
        """Values of a metric and their steps, in the order in which they came."""
        return [(value, step) for name, value, step in self.runs[run_id].points if name == metric]


class Wandb(SimpleNamespace):
    """The package; its runs by name, each with id, config, points (metrics, step), summary, files and exit code."""

    def __init__(self) -> None:
        super().__init__(runs={}, Settings=lambda **about: about, login=lambda **how: False)

    def init(self, *, name: str, id: str, config: dict[str, Any], **about: Any) -> Any:
        run = SimpleNamespace(id=id, about=about, points=[], step=0, summary={}, files=[], exit_code=None)
        run.config = _Config(config)

        def log(metrics: dict[str, float], step: int) -> None:
            run.points.append((metrics, step))
            run.step = step

        def finish(exit_code: int) -> None:
            run.exit_code = exit_code

        run.log, run.finish, run.log_artifact = log, finish, lambda artifact: run.files.extend(artifact.files)
        self.runs[name] = run
        return run

    def Artifact(self, name: str, type: str) -> Any:
        files: list[str] = []
        return SimpleNamespace(files=files, add_file=lambda path: files.append(Path(path).name))


class _Config(dict):
    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
        super().update(values)
