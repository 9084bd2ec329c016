"""What trials train on: weights to start from, and images, in memory where they fit, else in a cache on each disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cxr_ray.data.loading import load_pixels
from cxr_ray.data.pixel_cache import PixelCache
from cxr_ray.errors import DataError
from cxr_ray.machine import usable_memory
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.models.training import Split
from cxr_ray.run import terminal
from cxr_ray.run.context import RunContext
from cxr_ray.run.trial import Splits, StoredSplit
from cxr_ray.run.trial_plans import TrialPlan

IN_MEMORY = 0.25  # of the machine's memory: Ray keeps a second copy, which trials share


@dataclass(frozen=True)
class TrainingData:
    """What trials train on.

    Attributes:
        splits: train and val, by size and preprocessing of the images.
        states: the state dict to start from, or None, by weights and arch.
        errors: rows of ``errors`` for images that cannot be decoded.
    """

    splits: Mapping[tuple[int, str], Splits]
    states: Mapping[tuple[str, str], Any]
    errors: list[dict[str, Any]]


def load_training_data(context: RunContext, trials: Sequence[TrialPlan]) -> TrainingData:
    """Weights and images of these trials, read before Ray starts.

    Raises:
        UserError: weights cannot be had, or a split has no readable image of one class.
    """
    sweep = context.sweep
    wanted = sorted({(t.model.weights, t.model.arch) for t in trials})
    states: dict[tuple[str, str], Any] = {(w, arch): checkpoints.pretrained_state(w, arch) for w, arch in wanted}
    for (weights, arch), state in states.items():
        if state is not None:
            checkpoints.start_from(
                networks.build(arch, ModelSpec(arch, sweep.data.size)), state, f"model.weights={weights}"
            )
    kinds = sorted({sweep.images_of(t.model) for t in trials})
    n_images = sum(len(context.manifest.rows(name)) for name in ("train", "val"))
    needed, memory = n_images * sum(3 * size**2 for size, _ in kinds), usable_memory()
    on_disk = needed > IN_MEMORY * memory
    if on_disk:
        terminal.say(
            f"Training images take {needed / 2**30:.1f} GiB, more than a quarter of the memory ({memory / 2**30:.1f} "
            "GiB): they are kept on the disk of each machine, in the folder for temporary files (TMPDIR)."
        )
    loaded = {kind: training_splits(context, *kind, on_disk=on_disk) for kind in kinds}
    splits = {key: split for key, (split, _) in loaded.items()}
    errors = next((unreadable for _, unreadable in loaded.values()), [])  # the same files for each size
    return TrainingData(splits, states, errors)


def training_splits(
    context: RunContext, size: int, preprocess: str, *, on_disk: bool = False
) -> tuple[Splits, list[dict[str, Any]]]:
    """Train and val as a model of that size and preprocessing sees them, and rows of errors.

    ``on_disk``: the pixels stay there.
    """
    splits: dict[str, Split | StoredSplit] = {}
    errors: list[dict[str, Any]] = []
    for name in ("train", "val"):
        rows = context.manifest.rows(name)
        cache = PixelCache(context.source, _names(rows), size, context.sweep.data.fit, preprocess)
        pixels = cache.open() if on_disk else load_pixels(context.source, rows, size, cache.fit, preprocess)
        several = list(context.sweep.data.classes.several) if name == "train" else []  # val: the target and the rest
        all_labels = rows["class_name"].map(several.index) if several else rows["label"]
        labels = all_labels.to_numpy("int64")[pixels.keep]
        errors += pixels.errors
        if len(set(labels)) < max(2, len(several)):
            which = f"all of {', '.join(several)}" if several else "both"
            raise DataError(
                f"{context.source.where}: got a {name} split with no readable image of one class "
                f"({len(pixels.errors)} images cannot be decoded); expected {which}; check the download."
            )
        splits[name] = StoredSplit(cache, labels) if on_disk else Split(pixels.images_NCHW, labels)
    return splits, errors


def _names(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["path", "image_id"]]
