"""Optuna as a searcher: each trial of a variant and grid point is suggested from the results of those before it.

A suggestion is a function of the sweep's seed, its number and the results that are known: a new study is made for
each, from the results, so that nothing but them is kept. They are read from the files of the trials, and a run that was
interrupted goes on as it would have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs as pafs
from ray.tune.search import Searcher

from cxr_ray.config import Sweep
from cxr_ray.run.trial_files import FOLDER, TrialFiles
from cxr_ray.run.trial_plans import Point, TrialPlan, distribution, points
from cxr_ray.storage import Store

METRIC = "val_auroc"


@dataclass
class Known:
    """A trial that was suggested.

    Attributes:
        plan: the trial.
        number: of the suggestion among those of its variant and grid point.
        values: the metric by epoch, so far.
        over: it is trained whole, or was stopped.
    """

    plan: TrialPlan
    number: int
    values: dict[int, float] = field(default_factory=dict)
    over: bool = False


def known_trials(sweep: Sweep, store: Store) -> list[Known]:
    """The trials that a run was told to train so far, in the order of the sweep and of their numbers.

    Raises:
        DamagedRunError: a file of one is damaged.
    """
    found = []
    for info in store.fs.get_file_info(pafs.FileSelector(store.path(*FOLDER), allow_not_found=True)):
        files = TrialFiles(store, info.base_name)
        plan, number = files.plan(sweep)
        if plan is not None:
            history = files.history()
            over = files.is_stopped() or (bool(history) and history[-1]["epoch"] >= plan.train.epochs)
            found.append(Known(plan, number, {epoch["epoch"]: epoch[METRIC] for epoch in history}, over))
    place = {point.group: n for n, point in enumerate(points(sweep))}
    return sorted(found, key=lambda known: (place[known.plan.group], known.number, known.plan.trial_id))


class OptunaSearches(Searcher):
    """Tune's searcher: one search by Optuna's TPE for each variant and grid point, whose turns come one after another.

    Args:
        sweep: of the run.
        store: of the run.
        key: under which Tune keeps a trial.
    """

    def __init__(self, sweep: Sweep, store: Store, key: str) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.sweep, self.store, self.key = sweep, store, key
        self.points = {point.group: point for point in points(sweep)}
        self.known = {known.plan.trial_id: known for known in known_trials(sweep, store)}
        self.left = [known.plan for known in self.known.values() if not known.over]
        self.asked: Counter[str] = Counter()  # by variant and grid point
        for known in self.known.values():
            self.asked[known.plan.group] = max(self.asked[known.plan.group], known.number + 1)
        self.running: dict[str, TrialPlan] = {}

    @property
    def plans(self) -> list[TrialPlan]:
        """The trials that are known."""
        return [known.plan for known in self.known.values()]

    @property
    def n_left(self) -> int:
        """Trials that are not over, at most; equal suggestions are one."""
        return len(self.left) + sum(_most(self.sweep, p) - self.asked[p.group] for p in self.points.values())

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any) -> bool:
        """Ray's hook: the search spaces are the sweep's."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Ray's hook: the next trial; one that was interrupted first."""
        plan = self.left.pop(0) if self.left else self._next()
        if plan is None:
            return Searcher.FINISHED
        self.running[trial_id] = plan
        return {self.key: plan.to_config()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray's hook."""
        if METRIC in result:
            self.known[self.running[trial_id].trial_id].values[result["epoch"]] = result[METRIC]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray's hook: what is told of a trial that failed is nothing."""
        self.known[self.running.pop(trial_id).trial_id].over = not error

    def save(self, checkpoint_path: str) -> None:
        """Ray's hook: nothing. What is kept is in the files of the trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Ray's hook, which is never called."""
        raise NotImplementedError

    def _next(self) -> TrialPlan | None:
        """The next trial that is not there yet, of the variant and grid point that had the fewest."""
        while True:
            open_points = [p for p in self.points.values() if self.asked[p.group] < _most(self.sweep, p)]
            if not open_points:
                return None
            point = min(open_points, key=lambda p: self.asked[p.group])
            number = self.asked[point.group]
            self.asked[point.group] += 1
            before = [known for known in self.known.values() if known.plan.group == point.group]
            plan = point.plan(suggestion(point, number, before))
            if plan.trial_id not in self.known:
                self.known[plan.trial_id] = Known(plan, number)
                TrialFiles(self.store, plan.trial_id).save_plan(plan, number)
                return plan


def suggestion(point: Point, number: int, known: Sequence[Known]) -> dict[str, dict[str, Any]]:
    """Values of the search spaces of a point, by section.

    Args:
        point: a variant and grid point.
        number: of the suggestion, from 0.
        known: trials of the point; those that are not over tell nothing.
    """
    if not point.spaces:
        return {}
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {name: {k: distribution(v) for k, v in keys.items()} for name, keys in point.spaces.items()}
    seed = (int.from_bytes(point.digest[:4], "little") + number) % 2**32
    search = OptunaSearch(OptunaSearch.convert_search_space(spaces), metric=METRIC, mode="max", seed=seed)
    for trial in sorted(known, key=lambda k: k.number):
        if trial.over and trial.values:
            sections: dict[str, Any] = {
                "model": trial.plan.model.model_dump(),
                "train": trial.plan.train.model_dump(),
            }
            search.add_evaluated_point(
                {f"{name}/{k}": sections[name][k] for name, keys in spaces.items() for k in keys},
                max(trial.values.values()),
                pruned=max(trial.values) < trial.plan.train.epochs,
                intermediate_values=list(trial.values.values()),
            )
    return dict(search.suggest(str(number)) or {})


def _most(sweep: Sweep, point: Point) -> int:
    return sweep.search.num_samples if point.spaces else 1
