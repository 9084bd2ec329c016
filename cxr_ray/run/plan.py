"""What a run will do to explain its models, before it does it: the shards of their images.

A shard is a piece of work of the map pass and of the scoring pass: images of one split for one model, at most so many
and about so many forward passes: seconds on a GPU, a minute on a CPU core. A large run takes longer shards, since each
costs the driver as much, however long it is. Their length depends on the sweep, its images and the kind of device
alone, so that tables do not depend on workers and batches.

A plan holds the images of each split once, and of shards only how long they are: a shard is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cxr_ray.data.manifest import Manifest
from cxr_ray.data.splits import REFERENCE, REFERENCE_IMAGES

if TYPE_CHECKING:  # these import torch, which tasks that merge do without
    from cxr_ray.measure.shards import Comparison, ModelRef

SHARD_IMAGES, SHARD_PASSES = 16, {"gpu": 2**15, "cpu": 2**10}  # at most
GPU_IMAGES = 64  # of val and test at most, where those passes allow it: a GPU waits at the end of each shard
MANY_SHARDS = 1024  # of SHARD_IMAGES: a run of more has longer ones, up to
LONGEST_IMAGES, LONGEST_PASSES = 256, {"gpu": 2**17, "cpu": 2**10}
SPLITS = ("val", "test")
CHOSEN = ("sanity", "stability", REFERENCE)  # some of the images of test; of val, where it has some


@dataclass(frozen=True)
class ShardPlan:
    """A piece of work.

    Attributes:
        name: names its file; it holds its length, so that a run resumed on another kind of device is whole.
        split: val, test, sanity (images of test whose maps are compared with those of random weights), stability
            (images of test whose maps are compared with those of altered copies), or donors (images of test, each
            before the images of val whose pixels it gets).
        size, preprocess: what its images become.
        rows: of each image its image_id, path and label; in donors also swap, of a donor image its row of
            ``assign_donors``, else None; in test also donor_image, the path of the image that it swaps
            patches with, or None, and maps, the names of its maps from outside, where there are any.
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
        return {f.name: getattr(self, f.name) for f in fields(self)}  # asdict would copy every row


@dataclass(frozen=True)
class PassCounts:
    """Forward passes of one model: of a test image, of one of sanity, of stability, of a recipient and its donors."""

    test: int
    sanity: int = 0
    donors: int = 0
    stability: int = 0

    def of_splits(self) -> dict[str, int]:
        """Of one image, or of one recipient with its donors, by split."""
        more = {"sanity": self.sanity, "stability": self.stability, "donors": self.donors}
        return {"val": 1, "test": self.test, **{split: max(1, passes) for split, passes in more.items()}}


class Images:
    """Images of one split in columns; a group of them stays in one shard.

    Attributes:
        columns: image_id, path and label, and what else the split's rows hold.
        ends: of each group, where it ends among the images; None: each image is a group.
        longest: images of the longest group.
    """

    def __init__(self, columns: pd.DataFrame, ends: Sequence[int] | None = None):
        self.columns = columns
        self.ends = None if ends is None else np.asarray(ends, np.int64)
        self.longest = 1 if self.ends is None else int(np.diff(self.ends, prepend=0).max(initial=1))

    def __len__(self) -> int:
        """Groups."""
        return len(self.columns) if self.ends is None else len(self.ends)

    def rows(self, start: int, stop: int) -> list[Any]:
        """The images of the groups from ``start`` to ``stop``, each as the dictionary that travels."""
        stop = min(stop, len(self))
        if self.ends is not None:
            start, stop = (int(self.ends[n - 1]) if n else 0 for n in (start, stop))
        part = self.columns.iloc[start:stop]
        columns = [[None if v is not None and v != v else v for v in part[c].tolist()] for c in part]
        return [dict(zip(part, values, strict=True)) for values in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Plan:
    """The shards of every model, as ranges of its images.

    Attributes:
        model_refs: the models by trial_id.
        images: by split, the same for all models.
        lengths: groups of images in a shard, by trial_id and split.
        lost: by trial_id, images of test that the map pass could not decode; shards leave them out.
        splits: those that are asked for; not those of reference images, which come before.
    """

    model_refs: Mapping[str, ModelRef]
    images: Mapping[str, Images]
    lengths: Mapping[tuple[str, str], int]
    lost: Mapping[str, Container[str]] = field(default_factory=dict)
    splits: tuple[str, ...] = (*SPLITS, "sanity", "stability", "donors")

    def of_split(self, split: str) -> Plan:
        """The shards of one split."""
        return replace(self, splits=(split,))

    def without(self, lost: Mapping[str, Container[str]]) -> Plan:
        """The same shards without these images of test, by trial_id."""
        return replace(self, lost=lost)

    def with_maps(self, members: Mapping[str, Mapping[str, str]]) -> Plan:
        """The same shards, whose rows of test and stability name their maps from outside (``OutsideMaps.members``)."""
        images = dict(self.images)
        for split in ("test", "stability"):
            columns = images[split].columns
            named: Any = [members.get(i) for i in columns["image_id"]]
            images[split] = Images(columns.assign(maps=named))
        return replace(self, images=images)

    @property
    def longest(self) -> int:
        """Groups of images in the longest shard of any model and split."""
        return max(self.lengths.values(), default=1)

    def __len__(self) -> int:
        """Shards."""
        return sum(self._number(trial_id, split) for trial_id in self.model_refs for split in self.splits)

    def names(self, trial_id: str) -> Iterator[str]:
        """The names of a model's shards, in their order."""
        return (self._name(trial_id, split, n) for split, n in self._places(trial_id))

    def missing(self, finished: Container[str] = ()) -> Missing:
        """The shards that are not finished, model by model."""
        return Missing(self, finished)

    def shard(self, trial_id: str, split: str, n: int) -> ShardPlan:
        """The n-th shard of a model and split."""
        length, ref = self.lengths[trial_id, split], self.model_refs[trial_id]
        rows = self.images[split].rows(n * length, (n + 1) * length)
        lost = self.lost.get(trial_id) if split == "test" else None
        kept = tuple(row for row in rows if lost is None or row["image_id"] not in lost)
        return ShardPlan(self._name(trial_id, split, n), trial_id, split, ref.size, ref.preprocess, kept)

    def _number(self, trial_id: str, split: str) -> int:
        if split == "sanity" and self.model_refs[trial_id].only_scores:
            return 0
        return -(-len(self.images[split]) // self.lengths[trial_id, split])

    def _name(self, trial_id: str, split: str, n: int) -> str:
        return f"{trial_id}.{split}.{self.lengths[trial_id, split]}.{n:05d}"

    def _places(self, trial_id: str) -> Iterator[tuple[str, int]]:
        return ((split, n) for split in self.splits for n in range(self._number(trial_id, split)))


class Missing:
    """The shards of a plan that are not finished: counted at once, made one by one as they are asked for.

    Attributes:
        n_images: (model, image) pairs in them.
        n_test: by trial_id, those of test.
    """

    def __init__(self, plan: Plan, finished: Container[str]):
        self.plan, self.places = plan, []
        self.n_images, self.n_test = 0, dict.fromkeys(plan.model_refs, 0)
        for trial_id in plan.model_refs:
            for split, n in plan._places(trial_id):
                if plan._name(trial_id, split, n) not in finished:
                    self.places.append((trial_id, split, n))
                    self._count(trial_id, split, n)

    def _count(self, trial_id: str, split: str, n: int) -> None:
        images, length = self.plan.images[split], self.plan.lengths[trial_id, split]
        groups = min(length, len(images) - n * length)
        if images.ends is not None:
            first = images.ends[n * length - 1] if n else 0
            groups = int(images.ends[n * length + groups - 1] - first)
        self.n_images += groups
        self.n_test[trial_id] += groups if split == "test" else 0

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[ShardPlan]:
        return (self.plan.shard(*place) for place in self.places)


def plan_shards(
    manifest: Manifest,
    model_refs: Mapping[str, ModelRef],
    passes: Mapping[str, PassCounts],
    device: str,
    chosen: Mapping[str, pd.DataFrame],
    donor_images: Mapping[str, str],
    donors: pd.DataFrame,
) -> Plan:
    """Ranges of images of one split, in order, for every model.

    Args:
        manifest: the images.
        model_refs: the models by trial_id.
        passes: by trial_id.
        device: cpu or gpu.
        chosen: by the splits of CHOSEN, their images; none where it has none.
        donor_images: image_id to the path of the image that it swaps patches with.
        donors: of ``assign_donors``.
    """
    columns = ["image_id", "path", "label"]
    frames = {split: manifest.rows(split)[columns] for split in SPLITS}
    test = frames["test"]
    donor_of: Any = [donor_images.get(i) for i in test["image_id"]]
    images = {
        "val": Images(frames["val"]),
        "test": Images(test.assign(donor_image=donor_of)),
        **{split: Images(chosen.get(split, test.iloc[:0])[columns]) for split in CHOSEN},
        "donors": _recipients(test, donors),
    }
    n_pairs = len(test) * len(model_refs)
    short, long = _Budget(SHARD_IMAGES, SHARD_PASSES[device]), _budget_of_run(n_pairs, device)
    lengths = {
        (trial_id, split): (long if split in SPLITS else short).length(images[split].longest, each)
        for trial_id in model_refs
        for split, each in passes[trial_id].of_splits().items()
    }
    lengths |= {(trial_id, REFERENCE): REFERENCE_IMAGES for trial_id in passes}  # one shard
    return Plan(model_refs, images, lengths)


def _recipients(test: pd.DataFrame, donors: pd.DataFrame) -> Images:
    """Each recipient and, behind it, its donor images."""
    by_id = test.set_index("image_id")
    rows: list[dict[str, Any]] = []
    ends = []
    for recipient, part in donors.groupby("image_id", sort=False):
        own: Any = by_id.loc[recipient]
        rows.append({"image_id": recipient, "path": own["path"], "label": int(own["label"]), "swap": None})
        rows += [
            {"image_id": swap["donor_id"], "path": swap["donor_path"], "label": swap["donor_label"], "swap": swap}
            for swap in part.to_dict("records")
        ]
        ends.append(len(rows))
    return Images(pd.DataFrame(rows, columns=["image_id", "path", "label", "swap"]), ends)


class _Budget(NamedTuple):
    """Images and forward passes of a shard, at most."""

    images: int
    passes: int

    def length(self, images: int, passes: int) -> int:
        """Groups in a shard, each of so many images and passes; at least one."""
        return max(1, min(self.images // images, self.passes // passes))


def _budget_of_run(n_pairs: int, device: str) -> _Budget:
    """Of shards of val and test in a run of so many (model, test image) pairs.

    >>> _budget_of_run(20_000, "gpu"), _budget_of_run(1_000_000, "gpu").images
    (_Budget(images=64, passes=32768), 256)
    """
    longer = max(1, n_pairs // (MANY_SHARDS * SHARD_IMAGES))
    images = max(SHARD_IMAGES * longer, GPU_IMAGES if device == "gpu" else 0)
    return _Budget(min(LONGEST_IMAGES, images), min(LONGEST_PASSES[device], SHARD_PASSES[device] * longer))
