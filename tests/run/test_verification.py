"""A finished run holds, and what is changed in it, in its images or in its models is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cxr_ray import results, verify
from cxr_ray.config import Sweep
from cxr_ray.data.splits import choose
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.run import verification
from cxr_ray.run.compared import compare
from cxr_ray.schemas import TABLES
from cxr_ray.sweepfile import resolve
from tests.builders.finished import finished_run
from tests.builders.networks import varied_small

ARCH = "factory:tests.builders.networks:Small"
SETTINGS: dict[str, Any] = {
    "name": "checked",
    "explain": {"explainers": ["saliency"]},
    "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5], "orders": ["morf"]},
    "controls": {"cell_random": 1, "other_image": 1},
    "regions": {"names": ["border"], "draws": 1, "donors": 1},
    "sanity": {"images": 2, "layers": ["fc"]},
}


def asked(data: Path, model: Path) -> Sweep:
    if not model.exists():
        network = Classifier(varied_small(), ModelSpec(ARCH, 32))
        model.write_bytes(checkpoints.to_bytes(network))
    return resolve(
        {
            **SETTINGS,
            "data": {"path": str(data), "size": 32, "val_share": 0.3},
            "checkpoints": {"given": {"path": str(model), "arch": ARCH}},
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder) -> Path:
    """A folder with a run, its images and its model."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_folder, folder / "data")
    finished_run(asked(folder / "data", folder / "model.safetensors"), str(folder / "run"))
    return folder


@pytest.fixture
def parts(whole, tmp_path) -> Path:
    """A copy of it, whose paths are told by ``moved``."""
    shutil.copytree(whole, tmp_path / "parts")
    return tmp_path / "parts"


def moved(parts: Path, *more: str) -> list[str]:
    models = f"given={parts / 'model.safetensors'}"
    return [str(parts / "run"), "--data", str(parts / "data"), "--model", models, *more]


def change(run: Path, table: str, column: str, image_id: str, value: float | list[float]) -> None:
    """Write another value into the first row of an image, as an editor of Parquet would."""
    for path in sorted((run / "tables" / table).rglob("*.parquet")):
        found = pq.ParquetFile(path).read()
        ids = found["image_id"].to_pylist()
        if image_id in ids:
            values = found[column].to_pylist()
            values[ids.index(image_id)] = value
            array = pa.array(values, found.schema.field(column).type)
            pq.write_table(found.set_column(found.column_names.index(column), found.schema.field(column), array), path)
            return
    raise AssertionError(f"no row of {image_id}")


def test_a_run_holds_where_its_parts_lie_elsewhere_and_what_is_changed_in_sampled_rows_is_found(parts, capsys):
    assert verify.main(moved(parts, "--images", "4")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The run holds."
    told = {line.split()[0] for line in lines if line.startswith("  ")}
    measured = {"predictions", "saliency", "curves", "faithfulness", "filled", "regions", "donor_swaps", "sanity"}
    assert measured | {"summary", "classification", "hypotheses", "agreement"} <= told
    run = parts / "run"
    images = results.open_run(run).pandas("images").query("split == 'test'")
    sampled = choose(images["image_id"], images["label"], 4, 0)
    one = sorted(sampled)[0]
    for table, column, value in (("curves", "prob_target", 0.123), ("saliency", "entropy", 0.5)):
        change(run, table, column, one, value)
    change(run, "predictions", "logit_pneumonia", sorted(set(images["image_id"]) - sampled)[0], 9.0)
    (path,) = (run / "tables" / "regions").rglob("*.parquet")
    found = pq.ParquetFile(path).read()
    place = found["image_id"].to_pylist().index(one)
    pq.write_table(pa.concat_tables([found.slice(0, place), found.slice(place + 1), found.slice(place + 1, 1)]), path)
    assert verify.main(moved(parts, "--images", "4")) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split()[0] for line in lines if "DOES NOT HOLD: 1 rows differ" in line}
    assert failed >= {"curves", "saliency"}
    (regions,) = [line for line in lines if line.startswith("  regions ")]
    assert regions.endswith("DOES NOT HOLD: 1 rows are missing, 1 rows too many")
    assert any("prob_target: 0.123 in the run" in line and f"image_id {one}" in line for line in lines)
    assert not any(line.startswith("  predictions") and "NOT" in line for line in lines), "its image is not sampled"
    assert any(line.startswith("  classification") and "NOT" in line for line in lines), "but statistics read it"
    assert lines[-1] == "The run DOES NOT HOLD."


def test_a_changed_checkpoint_or_image_is_found_by_its_hash(parts, capsys, monkeypatch):
    monkeypatch.setattr("cxr_ray.run.pipeline.compute_here", None)  # no row is computed
    image = next((parts / "data" / "test" / "NORMAL").glob("*.png"))
    pixels = np.array(Image.open(image))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    assert verify.main(moved(parts)) == 1
    said = capsys.readouterr().out
    assert "images: DOES NOT HOLD" in said
    assert f"test/NORMAL/{image.name}: changed" in said
    image.unlink()
    assert verify.main(moved(parts)) == 1
    assert f"test/NORMAL/{image.name}: gone" in capsys.readouterr().out
    assert verify.main([*moved(parts), "--quiet"]) == 1
    told = capsys.readouterr()
    assert f"test/NORMAL/{image.name}: gone" in told.err
    assert told.out.splitlines() == ["The run DOES NOT HOLD."]
    model = parts / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert verify.main(moved(parts)) == 1
    said = capsys.readouterr().out
    assert "model given: DOES NOT HOLD" in said
    sweep = parts / "run" / "sweep.yaml"
    sweep.write_text(sweep.read_text().replace("seed: 0", "seed: 1"))
    assert verify.main(moved(parts)) == 1
    assert "sweep.yaml: DOES NOT HOLD" in capsys.readouterr().out


def test_an_image_that_was_read_before_is_read_again(parts, capsys, monkeypatch):
    """Its size and time may be as they were."""
    monkeypatch.setattr("cxr_ray.run.pipeline.compute_here", None)
    image = next((parts / "data" / "test" / "NORMAL").glob("*.png"))
    before, content = image.stat(), bytearray(image.read_bytes())
    content[-5] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verify.main(moved(parts)) == 1
    assert f"test/NORMAL/{image.name}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere, which is not a run"),
        (["{run}", "--data", "phantom"], "--data: got source phantom; expected folder"),
        (["{run}", "--data", "{parts}/none"], "{parts}/none"),
        (["{run}", "--model", "given"], "--model: got 'given'; expected NAME=PATH"),
        (["{run}", "--model", "other=x"], "--model: got other; expected a name under checkpoints (given)"),
        (["{run}", "--maps", "theirs"], "--maps: got 'theirs'; expected NAME=PATH"),
        (["{run}", "--maps", "theirs=x"], "--maps: got theirs; expected a name under explain.maps (none, since"),
        (["{run}", "--model", "given={parts}/none.pt"], "(--model given=PATH)"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(whole, capsys, arguments, says):
    names = {"run": whole / "run", "parts": whole}
    assert verify.main([argument.format(**names) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cxr_ray: ")
    assert says.format(**names) in line


def test_what_is_unfinished_or_of_another_version_is_refused(parts, capsys):
    file = parts / "run" / "provenance.json"
    known = json.loads(file.read_text())
    for changes, says in (
        ({"finished": None}, "an unfinished run"),
        ({"schema_version": 2}, "schema version 2"),
        ({"sweep_hash": 1, "checkpoints": []}, "without sweep_hash, checkpoints; expected what a finished run notes"),
    ):
        file.write_text(json.dumps({**known, **changes}))
        assert verify.main([str(parts / "run")]) == 2
        assert says in capsys.readouterr().err


def test_a_table_that_is_cut_does_not_hold_and_is_a_sentence(parts, capsys):
    (file, *_) = (parts / "run" / "tables" / "faithfulness").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:100])
    assert verify.main(moved(parts)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cxr_ray: got ")
    assert "part-0.parquet" in line
    assert line.endswith("The run DOES NOT HOLD.")


ELSEWHERE = """
import sys
from pathlib import Path
from cxr_ray.run import plan
from tests.builders.finished import finished_run
from tests.run.test_verification import asked
plan.SHARD_IMAGES = 3
finished_run(asked(Path("data"), Path(sys.argv[1])), "run", 7, lambda shards: list(shards)[::-1], 4)
"""


@pytest.mark.slow
def test_tables_do_not_depend_on_workers_order_batches_or_the_machine(whole, tmp_path):
    """Four workers, shards of three images in reverse, seven masked images a pass: all rows of all tables are the same.

    In a process as on another machine of the same kind: other paths, hashes of Python and time zone.
    """
    shutil.copytree(whole / "data", tmp_path / "data")
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "7", "TZ": "Asia/Kolkata"}
    command = [sys.executable, "-c", ELSEWHERE, str(whole / "model.safetensors")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    one, two = results.open_run(whole / "run"), results.open_run(tmp_path / "run")
    for name in TABLES:
        found = compare(name, one.pandas(name), two.pandas(name), 1e-4)
        assert found.holds, (found.line(), found.examples)
    assert one.arrow("curves").num_rows > 0


def test_maps_from_outside_are_read_where_they_lie_now():
    sweep = resolve({"checkpoints": {"given": {"path": "m.pt"}}, "explain": {"maps": {"theirs": "a", "ours": "b"}}})
    moved = verification._moved(sweep, verification.Request("run", maps={"theirs": "c"}))
    assert moved.explain.maps == {"theirs": "c", "ours": "b"}
