"""Images of several shards through the map pass and the scoring pass, as a sweep takes them."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_ray.config import Sweep
from cxr_ray.measure import donors
from cxr_ray.measure.donors import DonorMaps, build_donor_index
from cxr_ray.measure.worker import ModelRef, Worker
from cxr_ray.models.networks import Classifier
from cxr_ray.schemas import TABLES
from cxr_ray.storage import Store
from tests.builders.shards import SIZE, frames, shard

IDS = shard(12).image_ids
PATIENTS = {image_id: f"p{n // 2}" for n, image_id in enumerate(IDS)}  # two images each


def worker(config: Sweep, model: Classifier, store: Store, batch_size: int = 16) -> Worker:
    w = Worker(
        config, {"m": ModelRef("m", "none", None, SIZE)}, batch_size=batch_size, donor_maps=DonorMaps(store, config)
    )
    w.model = lambda trial_id: model
    return w


def both_executions(
    config: Sweep, model: Classifier, folder: Path, n: int = 12, units: int = 3, batch_size: int = 16
) -> dict[str, pd.DataFrame]:
    """All tables of n images in so many shards."""
    store = Store(str(folder), {})
    w, whole = worker(config, model, store, batch_size), shard(n)
    blocks = {}
    for u, chosen in enumerate(np.array_split(np.arange(n), units)):
        part = whole.only(np.isin(np.arange(n), chosen))
        blocks[f"m.test.{u}"] = dataclasses.replace(part, name=f"m.test.{u}")
    for name, part in blocks.items():
        store.write_shard(name, w.map_pass(part), donors.MAPS)
    maps = [(e, t) for e in config.explain.explainers for t in (0, 1)]
    index = build_donor_index(store, blocks, pd.Series(PATIENTS), maps)
    w.donor_maps.write_index("m", index)
    for of in maps:
        for predicted in (0, 1):
            w.donor_maps.write_total("m", of, predicted, SIZE)
    tables: dict[str, list[pd.DataFrame]] = {}
    for part in blocks.values():
        for name, frame in frames(w(part)).items():
            tables.setdefault(name, []).append(frame)
    return {
        name: pd.concat(parts).sort_values([k for k in TABLES[name].key if k in parts[0]]).reset_index(drop=True)
        for name, parts in tables.items()
    }
