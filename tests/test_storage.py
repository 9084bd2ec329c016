import errno
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from cxr_ray import schemas
from cxr_ray import storage as tables
from cxr_ray.config import Sweep
from cxr_ray.errors import DamagedRunError
from cxr_ray.measure import controls, explainers, fills
from cxr_ray.schemas import ERRORS, NAME_PATTERN, SHARED, TABLES
from cxr_ray.storage import PER_SHARD, Store, pack, unpack
from tests.builders.tables import made_table

RUN = {"run_id": "0123abcd", "sweep_hash": "4567cdef"}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "run"), RUN)


def files(root: str | Path) -> list[str]:
    return sorted(str(f.relative_to(root)) for f in Path(root).rglob("*") if f.is_file())


def error(path: str, stage: str = "decode", reason: str = "broken") -> dict[str, str | None]:
    return {"path": path, "image_id": f"id-{path}", "stage": stage, "reason": reason}


# Units


def test_what_is_packed_is_unpacked():
    made = {
        ("predictions", ""): made_table(TABLES["predictions"], range(5)),
        ("saliency", "gradcam"): made_table(TABLES["saliency"], range(3)),
        ("curves", SHARED): made_table(TABLES["curves"], range(0)),
    }
    back = unpack(pack(made))
    assert list(back) == list(made)
    for key, table in made.items():
        assert back[key].equals(table, check_metadata=True)
    assert unpack(pack({})) == {}


def test_a_shard_is_compressed_as_a_whole():
    table = pa.table({f"c{n}": np.random.default_rng(n).random(300) for n in range(4)})
    alone, thrice = pack({("a", ""): table}), pack({(name, ""): table for name in "abc"})
    assert len(thrice) < 1.5 * len(alone)


def test_packing_is_a_function_of_the_tables():
    made = {("errors", ""): made_table(ERRORS, range(4))}
    assert pack(made) == pack(made)


# Files


def test_a_relative_folder_stays_the_same_in_a_process_of_another_one(tmp_path, monkeypatch):
    """As a trial's, whose folder is one of Tune's."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Store("run", RUN))
    monkeypatch.chdir("elsewhere")
    pickle.loads(sent).write(b"1", "a", "b")
    assert files(tmp_path) == ["run/a/b"]


def test_a_file_is_written_whole_and_written_over(store):
    store.write(b"first", "a", "b", "c.bin")
    store.write(b"second", "a", "b", "c.bin")
    assert store.read("a", "b", "c.bin") == b"second"
    assert files(store.out) == ["a/b/c.bin"]
    assert store.exists("a", "b")
    assert not store.exists("a", "c")


class FullDisk(pafs.LocalFileSystem):
    """A file system that has no room for the second half of what is written."""

    def open_output_stream(self, path):
        stream = super().open_output_stream(path)

        class Stream:
            def __enter__(self):
                return self

            def write(self, data):
                stream.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")

            def __exit__(self, *_):
                stream.close()

        return Stream()


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(store, monkeypatch):
    store.write(b"the first, whole", "tables", "t", "part-0.parquet")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "fs", FullDisk())
        for path in (("tables", "t", "part-0.parquet"), ("tables", "t", "part-1.parquet"), ("sweep.yaml",)):
            with pytest.raises(OSError, match="No space left on device"):
                store.write(b"another, longer than the first", *path)
        with pytest.raises(OSError, match="No space left on device"):
            store.write_shard("plain.test.00000", b"12345678")
    assert files(store.out) == ["tables/t/part-0.parquet"]
    assert store.read("tables", "t", "part-0.parquet") == b"the first, whole"
    assert store.finished_shards() == set()


def test_two_writers_never_share_a_temporary_name(monkeypatch):
    """Also of one process id at one moment, on two machines that share a disk."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    names = {tables.temporary("part-0.parquet") for _ in range(1000)}
    assert len(names) == 1000
    assert all(tables.TEMPORARY.fullmatch(name) for name in names)
    bits = [int(name.split(".")[-2], 16) for name in names]
    assert max(bits).bit_length() > 120


def test_a_process_that_dies_while_it_writes_leaves_only_hidden_files(store, monkeypatch):
    class Died(BaseException):
        pass

    class Dying(pafs.LocalFileSystem):
        def move(self, source, target):
            raise Died

    with monkeypatch.context() as patched:
        patched.setattr(Store, "fs", Dying())
        with pytest.raises(Died):
            store.write_shard("plain.test.00000", pack({}))
    assert [Path(f).name[0] for f in files(store.out)] == ["."]
    assert store.finished_shards() == set()
    store.write_shard("plain.test.00000", pack({}))
    assert store.finished_shards() == {"plain.test.00000"}
    Path(store.out, tables.SHARDS, "plain.test", "0000", "._plain.test.00001.arrow").write_bytes(
        b"what macOS leaves behind"
    )
    assert store.finished_shards() == {"plain.test.00000"}
    with monkeypatch.context() as patched:
        patched.setattr(Store, "fs", Dying())
        with pytest.raises(Died):
            store.write_table("errors", [])
    store.write_table("errors", [])
    assert len(files(store.out)) == 5
    store.clean()
    assert files(store.out) == ["tables/errors/part-0.parquet"], "what was left is gone"


def test_no_folder_of_shards_gets_more_than_a_thousand_files(store, monkeypatch):
    monkeypatch.setattr(tables, "FOLDER_FILES", 3)
    names = {f"plain.{split}.2.{n:05d}" for split in ("val", "test") for n in range(8)}
    for name in names:
        store.write_shard(name, pack({}))
    assert store.finished_shards() == names
    folders = [len(list(folder.iterdir())) for folder in Path(store.out, tables.SHARDS).glob("*/*")]
    assert sorted(folders) == [2, 2, 3, 3, 3, 3]
    misplaced = Path(store.out, tables.SHARDS, "plain.test.2.00099.arrow")
    misplaced.write_bytes(pack({}))
    assert store.finished_shards() == names, "only where it is read from"


def test_units_of_a_run_that_has_none(store):
    assert store.finished_shards() == set()
    store.clean()


def test_json_is_sorted_and_readable(store):
    store.write_json({"b": 1, "a": Path("x")}, "x.json")
    assert store.read("x.json") == b'{\n  "a": "x",\n  "b": 1\n}\n'


def test_a_store_lies_on_any_file_system(tmp_path):
    store = Store((tmp_path / "run").as_uri(), RUN)
    store.write_table("errors", [error("a.jpg")])
    assert store.path("x") == f"{tmp_path}/run/x"
    assert files(tmp_path) == ["run/tables/errors/part-0.parquet"]


# Merging

SHARDS = {"study": ["study.val.00000", "study.test.00000", "study.test.00001"], "plain-1": ["plain-1.test.00000"]}


def fill(store: Store) -> None:
    """Units of two models, written in an odd order; each row says which unit it is of."""
    for first, unit in reversed(list(enumerate(u for units in SHARDS.values() for u in units))):
        rows = range(10 * first, 10 * first + 2)
        parts = {("predictions", ""): made_table(TABLES["predictions"], rows), ("errors", ""): of(error("same.jpg"))}
        if ".test." in unit:
            for explainer in ("gradcam", SHARED):
                parts["curves", explainer] = made_table(TABLES["curves"], rows)
            parts["saliency", "gradcam"] = made_table(TABLES["saliency"], rows)
        store.write_shard(unit, pack(parts))


def of(*rows) -> pa.Table:
    return ERRORS.from_rows(rows)


def test_units_become_one_file_a_partition(store):
    fill(store)
    store.merge(SHARDS, [])
    assert files(Path(store.out, "tables")) == [
        "curves/trial_id=plain-1/explainer=gradcam/part-0.parquet",
        "curves/trial_id=plain-1/explainer=shared/part-0.parquet",
        "curves/trial_id=study/explainer=gradcam/part-0.parquet",
        "curves/trial_id=study/explainer=shared/part-0.parquet",
        "donor_swaps/part-0.parquet",
        "errors/part-0.parquet",
        "faithfulness/part-0.parquet",
        "filled/part-0.parquet",
        "localisation/part-0.parquet",
        "lungs/part-0.parquet",
        "predictions/trial_id=plain-1/part-0.parquet",
        "predictions/trial_id=study/part-0.parquet",
        "regions/part-0.parquet",
        "saliency/trial_id=plain-1/explainer=gradcam/part-0.parquet",
        "saliency/trial_id=study/explainer=gradcam/part-0.parquet",
        "sanity/part-0.parquet",
        "stability/part-0.parquet",
    ]
    for file in Path(store.out, "tables").rglob("*.parquet"):
        name = file.relative_to(Path(store.out, "tables")).parts[0]
        schema = pq.read_schema(file)
        assert schema.names == list(TABLES[name].columns), "partitions stand in the path only"
        assert schema.equals(TABLES[name].schema, check_metadata=False)
        assert {k: schema.metadata[k] for k in schema.metadata if k.startswith(b"cxr_ray.")} == {
            b"cxr_ray.run_id": b"0123abcd",
            b"cxr_ray.sweep_hash": b"4567cdef",
            b"cxr_ray.schema_version": str(schemas.SCHEMA_VERSION).encode(),
        }


def test_rows_stand_in_the_order_of_the_units_given_not_in_that_of_writing(store):
    fill(store)
    store.merge(SHARDS, [])

    def ids() -> list[str]:
        return pq.read_table(Path(store.out, "tables/predictions/trial_id=study/part-0.parquet"))[
            "image_id"
        ].to_pylist()

    assert ids() == [f"image_id{i}" for i in (0, 1, 10, 11, 20, 21)]
    store.merge({"study": SHARDS["study"][::-1], "plain-1": SHARDS["plain-1"]}, [])
    assert ids() == [f"image_id{i}" for i in (20, 21, 10, 11, 0, 1)]


def test_merging_twice_gives_the_same_bytes(store):
    fill(store)
    store.merge(SHARDS, [error("gone.jpg")])
    root = Path(store.out, "tables")
    first = {f: (root / f).read_bytes() for f in files(root)}
    store.merge(SHARDS, [error("gone.jpg")])
    assert {f: (root / f).read_bytes() for f in files(root)} == first


def test_merging_leaves_out_what_is_no_longer_there(store):
    fill(store)
    store.merge(SHARDS, [])
    store.merge({"plain-1": SHARDS["plain-1"]}, [])
    assert not any("trial_id=study" in f for f in files(store.out))


def test_small_row_groups_hold_the_same_rows(store, monkeypatch):
    fill(store)
    monkeypatch.setattr(tables, "ROW_GROUP", 3)
    store.merge(SHARDS, [])
    read = pq.ParquetFile(Path(store.out, "tables/predictions/trial_id=study/part-0.parquet"))
    assert read.num_row_groups > 1
    assert read.read()["image_id"].to_pylist() == [f"image_id{i}" for i in (0, 1, 10, 11, 20, 21)]


def test_small_portions_hold_the_same_rows_in_files_that_sort_as_the_shards(store, monkeypatch):
    names = [f"study.test.2.{n:05d}" for n in range(23)]
    for n, name in enumerate(names):
        store.write_shard(name, pack({("curves", "gradcam"): made_table(TABLES["curves"], range(2 * n, 2 * n + 2))}))
    folder = Path(store.out, "tables/curves/trial_id=study/explainer=gradcam")
    store.merge({"study": names}, [])
    whole = pq.ParquetFile(folder / "part-0.parquet").read()
    monkeypatch.setattr(tables, "MERGED_SHARDS", 2)
    monkeypatch.setattr(tables, "GROUP_BYTES", 1)
    store.merge({"study": names}, [])
    files_there = sorted(folder.iterdir())
    assert [f.name for f in files_there] == [f"part-{n:02d}.parquet" for n in range(12)]
    assert pq.ParquetFile(files_there[0]).num_row_groups == 2
    assert pa.concat_tables([pq.ParquetFile(f).read() for f in files_there]).equals(whole)


def test_an_error_that_several_models_meet_stands_once(store):
    fill(store)
    mine = [error("z.jpg"), error("a.jpg", "read"), error("a.jpg"), error("a.jpg", "explain:study:gradcam")]
    store.merge(SHARDS, [*mine, dict(mine[0])])
    rows = pq.read_table(Path(store.out, "tables/errors/part-0.parquet")).to_pylist()
    assert [(r["path"], r["stage"]) for r in rows] == [
        ("a.jpg", "decode"),
        ("a.jpg", "explain:study:gradcam"),
        ("a.jpg", "read"),
        ("same.jpg", "decode"),
        ("z.jpg", "decode"),
    ]


def test_a_merge_that_fails_shows_no_half_table(store, monkeypatch):
    fill(store)
    Path(store.shard_path("study.test.00001")).write_bytes(b"torn")
    with pytest.raises(
        DamagedRunError,
        match=r"00001\.arrow, which is damaged; expected it as it was written; delete it, and --resume computes",
    ):
        store.merge(SHARDS, [])
    assert not [f for f in files(Path(store.out, "tables")) if not Path(f).name.startswith(".")]


def test_a_run_without_units_has_every_table_empty(store):
    store.merge({}, [])
    for name in (*PER_SHARD, "errors"):
        assert files(Path(store.out, "tables", name)) == ["part-0.parquet"]
        table = pq.read_table(Path(store.out, "tables", name, "part-0.parquet"))
        assert table.num_rows == 0
        assert table.schema.equals(TABLES[name].schema, check_metadata=False)


def test_cleaning_removes_the_units_and_nothing_else(store):
    fill(store)
    store.merge(SHARDS, [])
    before = [f for f in files(store.out) if not f.startswith(".work")]
    assert len(before) < len(files(store.out))
    store.clean()
    assert files(store.out) == before


def test_chunks_are_consecutive_and_whole():
    assert list(tables.chunks([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(tables.chunks([], 2)) == []


# Schemas


@pytest.mark.parametrize("name", TABLES)
def test_a_table_s_key_and_partitions_are_its_own(name):
    table = TABLES[name]
    assert table.name == name
    assert not set(table.partitions) & set(table.columns), "in both, pandas refuses to read"
    assert set(table.key) <= set(table.columns) | set(table.partitions)
    assert set(table.partitions) <= set(table.key)
    assert len(set(table.key)) == len(table.key)
    assert all(meaning for _, meaning in table.columns.values())
    for field in table.schema:
        assert field.metadata[b"meaning"].decode() == table.columns[field.name][1]
        assert not isinstance(field.type, pa.ExtensionType)


def test_types_are_those_of_the_design():
    for name, table in TABLES.items():
        for field in table.schema:
            if field.name in (
                "level",
                "level_done",
                "size",
                "e_value",
                "e_value_futile",
            ):  # as written, or beyond float32
                assert field.type == pa.float64(), (name, field.name)
            elif pa.types.is_floating(field.type):
                assert field.type == pa.float32(), (name, field.name)
    assert TABLES["saliency"].schema.field("map").type == pa.list_(pa.float32())


@pytest.mark.parametrize("name", TABLES)
def test_columns_that_are_missing_or_unknown_are_named(name):
    table = TABLES[name]
    first = next(iter(table.columns))
    row = dict.fromkeys(table.columns)
    less = {k: v for k, v in row.items() if k != first}
    missing = rf"^table {name}: missing columns \['{first}'\], unknown columns \[\]$"
    with pytest.raises(ValueError, match=missing):
        table.build({k: [] for k in less})
    with pytest.raises(ValueError, match=missing):
        table.from_rows([row, less])
    unknown = rf"^table {name}: missing columns \[\], unknown columns \['extra'\]$"
    with pytest.raises(ValueError, match=unknown):
        table.build({**{k: [] for k in row}, "extra": []})
    with pytest.raises(ValueError, match=unknown):
        table.from_rows([{**row, "extra": 1}])


def test_nan_becomes_null_and_numbers_take_the_column_s_type():
    columns: dict[str, Any] = {f.name: [f"{i}" for i in range(4)] for f in TABLES["predictions"].schema}
    numbers = [1.0, np.nan, None, float("nan")]
    columns |= {"prob_pneumonia": np.array(numbers, float), "logit_pneumonia": numbers}
    columns |= {"label": np.arange(4), "predicted": [0, 1, 0, 1]}
    built = TABLES["predictions"].build(columns)
    assert built.schema.equals(TABLES["predictions"].schema, check_metadata=False)
    assert built["prob_pneumonia"].to_pylist() == [1.0, None, None, None]
    assert built["logit_pneumonia"].to_pylist() == [1.0, None, None, None]
    assert built["label"].type == pa.int32()


def test_columns_may_come_in_any_order():
    columns: dict[str, list[str]] = {name: [] for name in reversed(list(TABLES["errors"].columns))}
    assert TABLES["errors"].build(columns).column_names == list(TABLES["errors"].columns)


def test_json_of_equal_values_is_equal_text():
    assert schemas.to_json({"b": 1, "a": [2.5, None]}) == schemas.to_json({"a": [2.5, None], "b": 1})


def test_names_are_names():
    names = [*explainers.EXPLAINERS, *controls.CONTROLS, *fills.FILLS, *TABLES, SHARED]
    assert [n for n in names if not re.fullmatch(NAME_PATTERN, n)] == []
    assert SHARED not in explainers.EXPLAINERS
    assert "none" not in controls.CONTROLS
    pattern = re.compile(NAME_PATTERN)
    assert not any(pattern.fullmatch(bad) for bad in ("", "1a", "A", "a b", "a.b", "é", "a/b", "-a"))
    assert Sweep.model_fields["name"].default == "sweep"


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("/runs/a", "/runs/a/checkpoints/m.safetensors"),
        ("s3://bucket/a/", "s3://bucket/a/checkpoints/m.safetensors"),
        (
            "s3://bucket/a?region=eu-west-1&scheme=http",
            "s3://bucket/a/checkpoints/m.safetensors?region=eu-west-1&scheme=http",
        ),
    ],
)
def test_a_file_of_a_run_is_named_before_the_options_of_its_uri(out, named):
    assert Store(out, {}).named("checkpoints/m.safetensors") == named
