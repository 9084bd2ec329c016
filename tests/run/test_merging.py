"""Shards merged here and in tasks become the same tables."""

from pathlib import Path
from typing import Any, cast

import pytest
import ray

from cxr_ray import storage
from cxr_ray.run import merging
from cxr_ray.run.plan import Plan
from cxr_ray.schemas import ERRORS, TABLES
from cxr_ray.storage import Store, pack
from tests.builders.tables import made_table

NAMES = {trial_id: [f"{trial_id}.test.2.{n:05d}" for n in range(7)] for trial_id in ("a", "b")}


class Names:
    """The names of a plan, which are all of it that merging asks for."""

    model_refs, longest = NAMES, 2

    def names(self, trial_id):
        return iter(NAMES[trial_id])

    def __len__(self):
        return sum(map(len, NAMES.values()))


def filled(out: Path) -> Store:
    store = Store(str(out), {"run_id": "r", "sweep_hash": "s"})
    for trial_id, names in NAMES.items():
        for n, name in enumerate(names):
            rows = range(2 * n, 2 * n + 2)
            tables: dict[Any, Any] = {("curves", "gradcam"): made_table(TABLES["curves"], rows)}
            tables["predictions", ""] = made_table(TABLES["predictions"], rows)
            tables["errors", ""] = ERRORS.from_rows(
                [{"path": f"{n}.png", "image_id": "i", "stage": f"explain:{trial_id}:gradcam", "reason": "lost"}]
            )
            store.write_shard(name, pack(tables))
    return store


def read(store: Store, name: str) -> Any:
    folder = Path(store.out, "tables", name)
    return {
        str(part.relative_to(folder)): storage.pa.concat_tables(
            [storage.pq.ParquetFile(file).read() for file in sorted(part.iterdir())]
        )
        for part in sorted({file.parent for file in folder.rglob("*.parquet")})
    }


@pytest.mark.slow
def test_tasks_merge_as_this_process_does(tmp_path, monkeypatch):
    here, tasks = filled(tmp_path / "here"), filled(tmp_path / "tasks")
    plan = cast(Plan, Names())
    merging.merge(here, plan, [])
    for module in (storage, merging):
        monkeypatch.setattr(module, "MERGED_SHARDS", 2)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        merging.merge(tasks, plan, [])
    finally:
        ray.shutdown()
    assert len(list(Path(tasks.out, "tables/predictions/trial_id=a").iterdir())) == 4
    for name in (*storage.PER_SHARD, "errors"):
        assert read(here, name) == read(tasks, name)
    assert len(next(iter(read(here, "errors").values()))) == 14
