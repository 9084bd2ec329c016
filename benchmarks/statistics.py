"""Seconds after the last forward pass of a run: merging its shards, statistics, the page; process time, not Ray's.

A finished run is copied, its tables are cut into shards of so many images and merged again, and statistics and page
are made from them. The first round, with imports and empty caches, stands on its own, as in a sweep. With ``--times``
the merged tables are repeated under new names of images and patients, for the seconds and the memory that statistics
and page take of a run of so many times the images.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.common import arguments, show
from cxr_ray import results
from cxr_ray.config import Sweep
from cxr_ray.schemas import TABLES
from cxr_ray.storage import PER_SHARD, Store, pack


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        "the folder of a finished run",
        images=(int, 10, "images of a shard"),
        rounds=(int, 3, "rounds after the first"),
        times=(int, 1, "how often the merged tables are repeated"),
    )
    if args.run is None:
        raise SystemExit("statistics: got no run; expected the folder of a finished run; give one.")
    run = results.open_run(args.run)
    sweep = Sweep.model_validate(run.sweep)
    pairs = len(run.pandas("saliency", ["image_id", "trial_id"]).drop_duplicates())
    seconds: dict[str, list[float]] = {"first": [], "merging": [], "statistics": [], "page": []}
    memory = {"statistics": 0.0, "page": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        shutil.copytree(args.run, out, ignore=shutil.ignore_patterns("checkpoints", "figures", "galleries", "tune"))
        store = Store(str(out), {})
        shards = write_shards(run, store, args.images)
        images = (out / "tables" / "images" / "part-0.parquet").read_bytes()
        for n in range(1 + args.rounds):
            took = [_seconds(lambda: store.merge(shards, []))[0]]
            repeat(out, args.times)
            for name, stage in zip(memory, _stages(sweep, store), strict=True):
                spent, mib = _seconds(stage)
                took.append(spent)
                memory[name] = max(memory[name], mib)
            shutil.rmtree(out / "tables" / "images")
            store.write(images, "tables", "images", "part-0.parquet")
            if not n:
                seconds["first"].append(sum(took))
            else:
                for name, value in zip(("merging", "statistics", "page"), took, strict=True):
                    seconds[name].append(value)
    models = len(shards)
    show(
        "statistics",
        seconds,
        {},
        {},
        unit="s",
        as_json=args.json,
        peak=", ".join(f"{name} {mib:.0f} MiB above what it began with" for name, mib in memory.items()),
        run=f"{pairs * args.times} (model, image) pairs of {models} models, {sum(map(len, shards.values()))} shards",
    )


def _stages(sweep: Sweep, store: Store) -> tuple[Callable[[], None], Callable[[], None]]:
    def statistics() -> None:
        from cxr_ray.run.statistics import write_statistics

        write_statistics(sweep, store)

    def page() -> None:
        from cxr_ray.report.document import write_report

        write_report(store.out)

    return statistics, page


def _seconds(stage: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds, and the peak of memory in MiB above what the process held before. Linux only: 0 elsewhere."""
    resets = Path("/proc/self/clear_refs")
    if resets.exists():
        resets.write_text("5")  # the peak begins anew
    held, start = _mib("VmRSS"), time.process_time()
    stage()
    return time.process_time() - start, _mib("VmHWM") - held


def _mib(name: str) -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def repeat(out: Path, times: int) -> None:
    """Add every image of a run's tables again under other names, until each stands ``times`` times."""
    for file in sorted(out.glob("tables/**/part-*.parquet")):
        table = pq.ParquetFile(file).read()
        for k in range(1, times if "image_id" in table.column_names else 1):
            copy = _replaced(table, "image_id", pc.utf8_replace_slice(table["image_id"], 0, 4, f"{k:04x}"))
            if "patient_id" in table.column_names:
                patients = pc.binary_join_element_wise(table["patient_id"], str(k), "-")
                copy = _replaced(copy, "patient_id", patients)
            pq.write_table(copy, file.with_name(f"part-{k:04}-{file.name}"))


def _replaced(table: pa.Table, column: str, values: pa.ChunkedArray) -> pa.Table:
    place = table.column_names.index(column)
    return table.set_column(place, table.schema.field(place), values)


def write_shards(run: results.Run, store: Store, n: int) -> dict[str, list[str]]:
    """Cut the tables of a run into shards of n images each; the names of the shards by trial_id."""
    tables = {name: run.arrow(name) for name in PER_SHARD if len(run.arrow(name))}
    shards: dict[str, list[str]] = {}
    for trial_id in pc.unique(tables["predictions"]["trial_id"]).to_pylist():
        mine = {name: table.filter(pc.equal(table["trial_id"], trial_id)) for name, table in tables.items()}
        ids = sorted(pc.unique(mine["predictions"]["image_id"]).to_pylist())
        for k, start in enumerate(range(0, len(ids), n)):
            chosen = pa.array(ids[start : start + n])
            parts = {name: table.filter(pc.is_in(table["image_id"], chosen)) for name, table in mine.items()}
            store.write_shard(
                f"{trial_id}.{k}", pack({key: t for name, p in parts.items() for key, t in _split(name, p)})
            )
            shards.setdefault(trial_id, []).append(f"{trial_id}.{k}")
    return shards


def _split(name: str, table: pa.Table) -> list[tuple[tuple[str, str], pa.Table]]:
    columns = TABLES[name].schema.names
    if "explainer" not in TABLES[name].partitions:
        return [((name, ""), table.select(columns))] if len(table) else []
    explainers = pc.unique(table["explainer"]).to_pylist()
    return [((name, e), table.filter(pc.equal(table["explainer"], e)).select(columns)) for e in explainers]


if __name__ == "__main__":
    main()
