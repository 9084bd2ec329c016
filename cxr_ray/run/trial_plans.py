"""The networks that a sweep trains. A trial is one network, of a variant and grid point, its search spaces sampled."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_ray.config import SPACES, Data, Fit, Model, Sweep, Train, concrete
from cxr_ray.models.networks import ModelSpec
from cxr_ray.schemas import to_json

STARTUP = 10  # random trials with which Optuna's TPE begins a search

if TYPE_CHECKING:  # which trials do without
    import pandas as pd

Sections = dict[str, dict[str, Any]]  # model and train


@dataclass(frozen=True)
class TrialPlan:
    """One network to be trained, its search spaces sampled.

    Attributes:
        trial_id: the variant and 8 hex digits of ``model`` and ``train``; equal samples are one trial.
        variant: its name in the sweep.
        group: 8 hex digits of its variant and grid point, within which ASHA stops trials.
        model, train: the sampled sections.
        several: the classes that its outputs stand for, where they are more than two.
        target: the one of them that is measured against the rest.
        fit: how its images are made square; None: not known.
    """

    trial_id: str
    variant: str
    group: str
    model: Model
    train: Train
    several: tuple[str, ...] = ()
    target: str | None = None
    fit: Fit | None = None

    @property
    def rivals(self) -> tuple[str, int]:
        """The best model is chosen among the trials that agree in this: one variant, grid point and seed."""
        return self.group, self.train.seed

    def spec(self, size: int) -> ModelSpec:
        """What its weights mean, trained on images of a size."""
        m = self.model
        spec = ModelSpec(m.arch, size, variant=self.variant, preprocess=m.preprocess, cam_layer=m.cam_layer)
        spec = replace(spec, fit=self.fit)
        return spec if self.target is None else spec.against_the_rest(self.several, self.target)

    def to_config(self) -> dict[str, Any]:
        """Plain data, as Tune's files keep it."""
        plain = {"model": self.model.model_dump(), "train": self.train.model_dump()}
        named = {"trial_id": self.trial_id, "variant": self.variant, "group": self.group}
        return {**named, **plain, "several": list(self.several), "target": self.target, "fit": self.fit}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrialPlan:
        """The trial that ``to_config`` made plain."""
        model, train = concrete(config["model"], config["train"])
        several, target = tuple(config.get("several", ())), config.get("target")
        named = {key: config[key] for key in ("trial_id", "variant", "group")}
        return cls(**named, model=model, train=train, several=several, target=target, fit=config.get("fit"))


@dataclass(frozen=True)
class Point:
    """A variant and grid point, whose trials are searched and stopped on their own.

    Attributes:
        variant: its name in the sweep.
        sections: model and train, with search spaces where there are any.
        digest: of all that and the sweep's seed.
        data: section of the sweep.
    """

    variant: str
    sections: Sections
    digest: bytes
    data: Data

    @property
    def group(self) -> str:
        """8 hex digits, as of ``TrialPlan``."""
        return self.digest.hex()[:8]

    @property
    def spaces(self) -> Sections:
        """The search spaces alone."""
        found = {name: {k: v for k, v in keys.items() if _is_space(v)} for name, keys in self.sections.items()}
        return {name: keys for name, keys in found.items() if keys}

    def plan(self, sampled: Mapping[str, Mapping[str, Any]]) -> TrialPlan:
        """The trial of sampled sections. ``sampled``: those of the search spaces are enough."""
        sections = {name: {**keys, **sampled.get(name, {})} for name, keys in self.sections.items()}
        trial_id = f"{self.variant}-{hashlib.sha256(to_json(sections).encode()).hexdigest()[:8]}"
        several, target = tuple(self.data.classes.several), self.data.classes.target
        return TrialPlan(trial_id, self.variant, self.group, *concrete(**sections), several, target, self.data.fit)

    def holds(self, sections: Mapping[str, Any]) -> bool:
        """Whether model and train could have been sampled here: each value is that of the point, or in its space."""
        return all(
            _may_be(value, sections[name].get(key))
            for name, keys in self.sections.items()
            for key, value in keys.items()
        )


def points(sweep: Sweep) -> Iterator[Point]:
    """Every variant and grid point of the sweep."""
    for variant, model, train in sweep.trial_points():
        if model.get("cam_layer") is None:  # names and draws of trials are older than the key
            model = {key: value for key, value in model.items() if key != "cam_layer"}
        point = to_json({"variant": variant, "model": model, "train": train})
        digest = hashlib.sha256(f"{sweep.seed}:{point}".encode()).digest()
        yield Point(variant, {"model": model, "train": train}, digest, sweep.data)


def plan_trials(sweep: Sweep) -> list[TrialPlan]:
    """Every trial of the sweep, sampled with Tune's distributions, seeded by sweep seed, variant and grid point.

    Where Optuna searches, those with search spaces stand for as many that are not known before others are trained.
    """
    trials: dict[str, TrialPlan] = {}
    for point in points(sweep):
        random_state = np.random.RandomState(int.from_bytes(point.digest[:4], "little"))
        for _ in range(sweep.search.num_samples if point.spaces else 1):
            plan = point.plan(
                {
                    name: {k: _sample(v, random_state) for k, v in section.items()}
                    for name, section in point.sections.items()
                }
            )
            trials[plan.trial_id] = plan
    return list(trials.values())


def reachable(sweep: Sweep, trials: Sequence[TrialPlan]) -> list[TrialPlan]:
    """The trials, and where Optuna searches one with each network, size of images and weights that it may choose."""
    found = list(trials)
    for point in points(sweep) if sweep.search.searcher == "optuna" and trials else ():
        chosen = {k: v["choice"] for k, v in point.spaces.get("model", {}).items()}
        train = {k: _sample(v, np.random.RandomState(0)) for k, v in point.spaces.get("train", {}).items()}
        for values in itertools.product(*chosen.values()):
            found.append(point.plan({"model": dict(zip(chosen, values, strict=True)), "train": train}))
    return found


def search_notes(sweep: Sweep) -> list[str]:
    """What a user of Optuna should know of so few trials."""
    if sweep.search.searcher != "optuna" or sweep.search.num_samples > STARTUP:
        return []
    n = sweep.search.num_samples
    return [f"Optuna's first {STARTUP} trials of a variant and grid point are random, so all {n} are (num_samples)."]


def of_table(sweep: Sweep, trials: Sequence[TrialPlan], table: pd.DataFrame) -> tuple[TrialPlan, ...]:
    """The trials that a run trained: ``trials``, or those of its table ``trials`` where Optuna chose them."""
    if sweep.search.searcher != "optuna":
        return tuple(trials)
    trained = table[table["status"] != "given"]
    plans = [found_again(sweep, row["variant"], json.loads(row["config"])) for row in trained.to_dict("records")]
    return tuple(plan for plan in plans if plan is not None)


def found_again(sweep: Sweep, variant: str, sections: Mapping[str, Any]) -> TrialPlan | None:
    """The trial of a variant with these values, read from a file; None where the sweep cannot have it.

    ``sections``: model and train, concrete.
    """
    for point in points(sweep):
        if point.variant == variant and point.holds(sections):
            return point.plan({name: {k: sections[name][k] for k in keys} for name, keys in point.spaces.items()})
    return None


def _is_space(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in SPACES


def _may_be(value: Any, found: Any) -> bool:
    """Whether a value that was found is the sweep's, or one of its search space."""
    if not _is_space(value):
        return bool(found == value)
    kind, options = next(iter(value.items()))
    if kind in ("choice", "grid"):
        return found in options
    return isinstance(found, float) and options[0] <= found <= options[1]


def distribution(space: Mapping[str, Any]) -> Any:
    """Tune's distribution of a search space."""
    from ray import tune  # seconds, which a mistake in the data need not wait for

    kind, arguments = next(iter(space.items()))
    return tune.choice(arguments) if kind == "choice" else getattr(tune, kind)(*arguments)


def _sample(value: Any, random_state: np.random.RandomState) -> Any:
    if not _is_space(value):
        return copy.deepcopy(value)
    drawn = distribution(value).sample(random_state=random_state)
    return drawn.item() if isinstance(drawn, np.generic) else drawn
