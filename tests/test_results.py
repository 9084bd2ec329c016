"""The tables are read without this package: by pandas, DuckDB and Polars as a stranger would call them."""

import os

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from cxr_ray.errors import DamagedRunError, RunError
from cxr_ray.results import Run, newest_run, open_run
from cxr_ray.schemas import TABLES
from cxr_ray.storage import PER_SHARD, Store
from tests.builders.tables import made_table

TRIALS, EXPLAINERS = ("plain-0123abcd", "study"), ("gradcam", "saliency")


def columns(name: str) -> list[str]:
    return [*TABLES[name].columns, *TABLES[name].partitions]


def expected(name: str) -> pd.DataFrame:
    """What was written: see the fixture made_run."""
    table = TABLES[name]
    if name == "errors":
        return table.build({c: [] for c in table.columns}).to_pandas()
    if name not in PER_SHARD:
        return made_table(table, range(3)).to_pandas()
    parts = []
    for trial in TRIALS:
        for explainer in EXPLAINERS if "explainer" in table.partitions else ("",):
            part = made_table(table, range(4)).to_pandas()
            for partition in table.partitions:
                part[partition] = {"trial_id": trial, "explainer": explainer}[partition]
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def rows(frame: pd.DataFrame, name: str) -> list[tuple]:
    """A frame as sorted tuples of plain values."""

    def plain(value):
        if isinstance(value, str | bool | int):
            return value
        if hasattr(value, "__len__"):
            return tuple(float(v) for v in value)
        return None if pd.isna(value) else value.item() if hasattr(value, "item") else value

    listed = frame[columns(name)].astype(object).to_numpy().tolist()
    return sorted((tuple(plain(v) for v in row) for row in listed), key=repr)


@pytest.mark.parametrize("name", TABLES)
def test_pandas_reads_a_table_from_its_folder(made_run, name):
    frame = pd.read_parquet(made_run / "tables" / name)
    assert list(frame.columns) == columns(name)
    assert rows(frame, name) == rows(expected(name), name)


@pytest.mark.parametrize("name", TABLES)
def test_duckdb_reads_a_table_from_its_folder(made_run, name):
    query = f"select * from read_parquet('{made_run}/tables/{name}/**/*.parquet', hive_partitioning = true)"
    frame = duckdb.sql(query).df()
    assert sorted(frame.columns) == sorted(columns(name))
    assert rows(frame, name) == rows(expected(name), name)


@pytest.mark.parametrize("name", TABLES)
def test_polars_reads_a_table_from_its_folder(made_run, name):
    frame = pl.scan_parquet(made_run / "tables" / name, hive_partitioning=True).collect()
    assert sorted(frame.columns) == sorted(columns(name))
    assert rows(frame.to_pandas(), name) == rows(expected(name), name)


@pytest.mark.parametrize("name", TABLES)
def test_our_own_reader_gives_the_same_with_names_as_strings(made_run, name):
    run = open_run(made_run)
    frame = run.pandas(name)
    assert list(frame.columns) == columns(name)
    assert rows(frame, name) == rows(expected(name), name)
    arrow = run.arrow(name)
    assert all(arrow.schema.field(p).type == pa.string() for p in TABLES[name].partitions)
    assert arrow.select(list(TABLES[name].columns)).schema.equals(TABLES[name].schema, check_metadata=False)


def test_columns_and_rows_can_be_chosen(made_run):
    run = open_run(str(made_run))
    chosen = (pads.field("trial_id") == "study") & (pads.field("draw") < 2)
    frame = run.pandas("curves", ["image_id", "explainer"], chosen)
    assert list(frame.columns) == ["image_id", "explainer"]
    assert sorted(frame.itertuples(index=False, name=None)) == [
        (f"image_id{i}", explainer) for i in (0, 1) for explainer in EXPLAINERS
    ]


def test_sql_knows_the_tables_by_name(made_run):
    frame = open_run(made_run).sql(
        "select explainer, count(*) as n, sum(map_height) as total from saliency join predictions "
        "using (trial_id, image_id) where trial_id = 'study' group by explainer order by explainer"
    )
    assert frame.to_dict("list") == {"explainer": list(EXPLAINERS), "n": [4, 4], "total": [6, 6]}
    counts = open_run(made_run).sql(" union all ".join(f"select '{t}' as t, count(*) as n from {t}" for t in TABLES))
    assert dict(zip(counts["t"], counts["n"], strict=True)) == {t: len(expected(t)) for t in TABLES}


def test_an_empty_partitioned_table_has_its_partition_columns(tmp_path):
    store = Store(str(tmp_path), {})
    store.write(b"", "sweep.yaml")
    store.merge({}, [])
    frame = open_run(tmp_path).pandas("curves")
    assert list(frame.columns) == columns("curves")
    assert frame.empty
    assert len(pd.read_parquet(tmp_path / "tables" / "curves")) == 0
    assert open_run(tmp_path).sql("select count(*) as n from curves")["n"].tolist() == [0]


def test_files_that_are_being_written_are_not_read(made_run):
    hidden = made_run / "tables" / "predictions" / "trial_id=study" / ".part-0.parquet.tmp"
    hidden.write_bytes(b"half a file")
    try:
        assert len(open_run(made_run).pandas("predictions")) == 8
    finally:
        hidden.unlink()


def test_the_sweep_and_json_are_plain_data(made_run):
    assert open_run(made_run).sweep == {"name": "made"}
    assert open_run(made_run).json("provenance.json") == {"name": "made", "finished": None}


def test_what_is_not_there_is_one_sentence(tmp_path, made_run):
    sentence = f"got {tmp_path}, which is not a run (no sweep.yaml); expected a run; give the folder that --out named."
    with pytest.raises(RunError) as caught:
        open_run(tmp_path)
    assert str(caught.value) == sentence
    (tmp_path / "sweep.yaml").mkdir()
    with pytest.raises(RunError):
        open_run(tmp_path)
    with pytest.raises(RunError, match=r"^got nosuch://bucket/run, which cannot be opened .*; give a folder, or a"):
        open_run("nosuch://bucket/run")
    run = open_run(made_run)
    with pytest.raises(RunError) as caught:
        run.pandas("curve")
    assert str(caught.value) == (f"got the table 'curve'. Did you mean 'curves'? Expected one of: {', '.join(TABLES)}.")
    with pytest.raises(RunError) as caught:
        run.json("test_metrics.json")
    assert (
        str(caught.value)
        == f"got {made_run} without test_metrics.json; expected a finished run; finish it with --resume."
    )
    (tmp_path / "sweep.yaml").rmdir()
    (tmp_path / "sweep.yaml").write_text("")
    with pytest.raises(RunError) as caught:
        open_run(tmp_path).arrow("curves")
    assert str(caught.value) == (
        f"got {tmp_path} without the table 'curves'; expected a finished run; finish it with --resume, or run the "
        "sweep again if the table was lost."
    )


def test_a_home_folder_is_expanded(made_run, monkeypatch):
    monkeypatch.setenv("HOME", str(made_run.parent))
    assert open_run(f"~/{made_run.name}").root == str(made_run)


def test_a_damaged_sweep_file_is_told(made_run, tmp_path):
    import shutil

    shutil.copytree(made_run, tmp_path / "run")
    (tmp_path / "run" / "sweep.yaml").write_text("a: [1\n")
    with pytest.raises(RunError, match=r"sweep.yaml, which is damaged; expected YAML; run the sweep again"):
        _ = open_run(tmp_path / "run").sweep


def test_the_newest_finished_run_is_found(tmp_path):
    with pytest.raises(RunError, match="got no finished run in "):
        newest_run(str(tmp_path))
    for age, (name, finished) in enumerate([("new", True), ("old", True), ("newer", False)]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.yaml").write_text("name: x")
        if finished:
            (tmp_path / name / "test_metrics.json").write_text("{}")
            os.utime(tmp_path / name / "test_metrics.json", (1e9 - age, 1e9 - age))
    assert newest_run(str(tmp_path / "nowhere"), str(tmp_path)) == str(tmp_path / "new")


def test_what_a_damaged_file_holds_moves_no_cursor(made_run, monkeypatch):
    def fails(run, name):
        raise OSError("don't know what type: \x1b[2J\x0f")

    monkeypatch.setattr(Run, "dataset", fails)
    with pytest.raises(DamagedRunError) as told:
        open_run(made_run).arrow("trials")
    assert str(told.value).isprintable()
    assert "what type: ?[2J?" in str(told.value)
