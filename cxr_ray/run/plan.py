"""What a run will do, before it does it: the trials of a sweep, and the shards of images that are explained.

A trial is one network to be trained. A shard is a piece of work of the map pass and of the scoring pass: images of one
split for one model, at most so many and about so many forward passes: seconds on a GPU, a minute on a CPU core. Its
length depends on the sweep and on the kind of device alone, so that tables do not depend on workers and batches.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.config import SPACES, Model, Sweep, Train, concrete
from cxr_ray.data.manifest import Manifest
from cxr_ray.measure.shards import Comparison, ModelRef
from cxr_ray.schemas import to_json
from cxr_ray.storage import chunks

SHARD_IMAGES = 16
SHARD_PASSES = {"gpu": 32768, "cpu": 1024}
SPLITS = ("val", "test")


@dataclass(frozen=True)
class TrialPlan:
    """One network to be trained, its search spaces sampled.

    Attributes:
        trial_id: the variant and 8 hex digits of ``model`` and ``train``; equal samples are one trial.
        variant: its name in the sweep.
        group: 8 hex digits of its variant and grid point, within which ASHA stops trials.
        model, train: the sampled sections.
    """

    trial_id: str
    variant: str
    group: str
    model: Model
    train: Train

    @property
    def rivals(self) -> tuple[str, int]:
        """The best model is chosen among the trials that agree in this: one variant, grid point and seed."""
        return self.group, self.train.seed

    def to_config(self) -> dict[str, Any]:
        """Plain data, as Tune's files keep it."""
        plain = {"model": self.model.model_dump(), "train": self.train.model_dump()}
        return {"trial_id": self.trial_id, "variant": self.variant, "group": self.group, **plain}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrialPlan:
        """The trial that ``to_config`` made plain."""
        model, train = concrete(config["model"], config["train"])
        return cls(config["trial_id"], config["variant"], config["group"], model, train)


def plan_trials(sweep: Sweep) -> list[TrialPlan]:
    """Every trial of the sweep, sampled with Tune's distributions, seeded by sweep seed, variant and grid point."""
    trials: dict[str, TrialPlan] = {}
    for variant, model, train in sweep.trial_points():
        point = to_json({"variant": variant, "model": model, "train": train})
        group = hashlib.sha256(f"{sweep.seed}:{point}".encode())
        random_state = np.random.RandomState(int.from_bytes(group.digest()[:4], "little"))
        spaces = any(_is_space(v) for v in [*model.values(), *train.values()])
        for _ in range(sweep.search.num_samples if spaces else 1):
            sampled = {
                name: {k: _sample(v, random_state) for k, v in section.items()}
                for name, section in (("model", model), ("train", train))
            }
            digest = hashlib.sha256(to_json(sampled).encode()).hexdigest()[:8]
            trial_id = f"{variant}-{digest}"
            trials[trial_id] = TrialPlan(trial_id, variant, group.hexdigest()[:8], *concrete(**sampled))
    return list(trials.values())


def _is_space(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in SPACES


def _sample(value: Any, random_state: np.random.RandomState) -> Any:
    if not _is_space(value):
        return copy.deepcopy(value)
    from ray import tune  # seconds, which a mistake in the data need not wait for

    kind, arguments = next(iter(value.items()))
    domain: Any = tune.choice(arguments) if kind == "choice" else getattr(tune, kind)(*arguments)
    drawn = domain.sample(random_state=random_state)
    return drawn.item() if isinstance(drawn, np.generic) else drawn


@dataclass(frozen=True)
class ShardPlan:
    """A piece of work.

    Attributes:
        name: names its file; it holds its length, so that a run resumed on another kind of device is whole.
        split: val, test, sanity (images of test whose maps are compared with those of random weights), or donors
            (images of test, each before the images of val whose pixels it gets).
        size, preprocess: what its images become.
        rows: of each image its image_id, path and label; in donors also swap, of a donor image its row of
            ``assign_donors``, else None; in test also donor_image, the path of the image that it swaps
            patches with, or None.
        comparisons: of a block of sequential verdicts, (explainer, target rule, control) of each that is open.
    """

    name: str
    trial_id: str
    split: str
    size: int
    preprocess: str
    rows: tuple[Mapping[str, Any], ...]
    comparisons: tuple[Comparison, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Plain data, as it travels through Ray Data."""
        return asdict(self)


Shards = dict[str, dict[str, ShardPlan]]  # trial_id to shard name to shard


@dataclass(frozen=True)
class PassCounts:
    """Forward passes of one model: of a test image, of one whose maps sanity checks, of a recipient and its donors."""

    test: int
    sanity: int = 0
    donors: int = 0


def plan_shards(
    manifest: Manifest,
    model_refs: Mapping[str, ModelRef],
    passes: Mapping[str, PassCounts],
    device: str,
    sanity: pd.DataFrame,
    donor_images: Mapping[str, str],
    donors: pd.DataFrame,
) -> Shards:
    """Blocks of images of one split, in order, for every model.

    Args:
        manifest: the images.
        model_refs: the models by trial_id.
        passes: by trial_id.
        device: cpu or gpu.
        sanity: the images of test that sanity looks at.
        donor_images: image_id to the path of the image that it swaps patches with.
        donors: of ``assign_donors``.
    """
    images = {**{split: manifest.rows(split) for split in SPLITS}, "sanity": sanity}
    rows_of = {split: rows[["image_id", "path", "label"]].to_dict("records") for split, rows in images.items()}
    for row in rows_of["test"]:
        row["donor_image"] = donor_images.get(row["image_id"])
    groups = {split: [[row] for row in rows] for split, rows in rows_of.items()}
    groups["donors"] = _recipients(rows_of["test"], donors)
    return {
        trial_id: _shards_of(model_ref, groups, passes[trial_id], SHARD_PASSES[device])
        for trial_id, model_ref in model_refs.items()
    }


def _recipients(test: list[Any], donors: pd.DataFrame) -> list[list[Any]]:
    """Each recipient and, behind it, its donor images."""
    by_id = {row["image_id"]: row for row in test}
    return [
        [{k: by_id[recipient][k] for k in ("image_id", "path", "label")} | {"swap": None}]
        + [
            {"image_id": row["donor_id"], "path": row["donor_path"], "label": row["donor_label"], "swap": row}
            for row in part.to_dict("records")
        ]
        for recipient, part in donors.groupby("image_id", sort=False)
    ]


def _shards_of(
    model_ref: ModelRef, groups: Mapping[str, list[list[Any]]], passes: PassCounts, budget: int
) -> dict[str, ShardPlan]:
    """The shards of one model, each of about ``budget`` forward passes; the images of a group stay together."""
    each = {"val": 1, "test": passes.test, "sanity": max(1, passes.sanity), "donors": max(1, passes.donors)}
    shards = {}
    for split, all_groups in groups.items():
        images = len(all_groups[0]) if all_groups else 1
        length = max(1, min(SHARD_IMAGES // images, budget // each[split]))
        for i, part in enumerate(chunks(all_groups, length)):
            name, rows = f"{model_ref.trial_id}.{split}.{length}.{i:05d}", tuple(row for group in part for row in group)
            shards[name] = ShardPlan(name, model_ref.trial_id, split, model_ref.size, model_ref.preprocess, rows)
    return shards
