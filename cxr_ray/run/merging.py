"""Shards to tables: here where they are few, else in tasks, a portion each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray

from cxr_ray.run.plan import SHARD_IMAGES, Plan
from cxr_ray.storage import MERGED_SHARDS, Merged, Portion, Store, portions


def merge(store: Store, plan: Plan, errors: list[dict[str, Any]]) -> None:
    """Merge all shards of the plan into the tables of the run.

    ``errors`` are rows of the table ``errors`` that were met before.
    """
    most = -(-MERGED_SHARDS * SHARD_IMAGES // max(plan.longest, SHARD_IMAGES))
    parts = portions({trial_id: plan.names(trial_id) for trial_id in plan.model_refs}, most)
    store.clear_tables()
    if len(plan) <= most:  # seconds, of which starting tasks would take most
        merged: Iterator[Merged] = map(store.merge_portion, parts)
    else:
        merged = in_tasks(store, parts)
    store.finish_merge(merged, errors)


def in_tasks(store: Store, parts: Iterator[Portion]) -> Iterator[Merged]:
    """What each portion held, merged by as many tasks at a time as there are CPUs; a task that dies runs again."""
    task = ray.remote(num_cpus=1, max_retries=3)(_merge_portion)
    most = max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[Any] = []
    for part in parts:
        if len(running) == most:
            (done,), running = ray.wait(running)
            yield ray.get(done)
        running.append(task.remote(store, part))
    yield from map(ray.get, running)


def _merge_portion(store: Store, portion: Portion) -> Merged:
    return store.merge_portion(portion)
