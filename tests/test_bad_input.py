"""Bad input of every kind is an exit code and short lines: sweep files, tables, arrays, checkpoints, images, runs."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pyarrow import fs as pafs

from cxr_ray.data import images
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.npz_source import NpzSource
from cxr_ray.data.table import TableSource
from cxr_ray.errors import CxrRayError, ImageError, UserError
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import ModelSpec
from cxr_ray.reading import TooLargeError, read_file
from cxr_ray.results import open_run
from cxr_ray.schemas import TABLES
from cxr_ray.sweepfile import load_sweep, resolve
from cxr_ray.yamlfile import parse_yaml

HUGE = (10**12, 10**30, -(10**30), -1, 2.5, "many", True, None, [1], {"a": 1}, float("nan"), float("inf"), "")
NUMBERS = {  # keys of whole numbers: none of HUGE is one
    "data.phantom.train": HUGE,
    "data.phantom.test": HUGE,
    "data.size": HUGE,
    "train.epochs": HUGE,
    "train.batch_size": HUGE,
    "search.num_samples": HUGE,
    "seed": HUGE,
    "resources.workers": HUGE,
    "sanity.images": HUGE,
    "stability.images": HUGE,
}
NAMES = (
    "inf",
    "infinity",
    "nan",
    "true",
    "false",
    "null",
    "none",
    "epoch",
    "a" * 101,
    "A",
    "1",
    "a b",
    "a/b",
    "..",
    "ä",
    "",
)
TWICE = {
    "sanity.layers": ["fc", "fc"],
    "perturb.grids": [14, "14"],
    "perturb.levels": [0.5, 0.5],
    "perturb.fills": ["mean", "mean"],
    "perturb.orders": ["morf", "morf"],
    "explain.explainers": ["gradcam", "gradcam"],
    "explain.targets": ["pneumonia", "pneumonia"],
    "data.accept": ["other_labels", "other_labels"],
    "data.columns.labels": ["A", "A"],
    "data.splits.test": ["a", "a"],
    "data.classes.ignore": ["a", "a"],
    "regions.names": ["border", "border"],
    "regions.edits": ["equalize", "equalize"],
    "verdicts.controls": ["shifted", "shifted"],
}
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
MERGES = "\n".join(
    ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
)
TEXTS = {
    "a bomb of lists": BOMB,
    "a bomb of merges": MERGES,
    "a bomb as an unknown key": f"{BOMB}\ntrain: *a11",
    "an alias of itself": "train: &t {lr: *t}",
    "an alias of itself in a list": "variants: &v [*v]",
    "deep lists": "train: " + "[" * 400 + "]" * 400,
    "grids that multiply": "train: {seed: {grid: [0, 1, 2, 3, 4, 5, 6, 7]}, epochs: {grid: [1, 2, 3, 4, 5, 6, 7, 8]}, "
    "batch_size: {grid: [2, 3, 4, 5, 6, 7, 8, 9]}, weight_decay: {grid: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}}",
    "an object": "!!python/object/apply:os.system [echo]",
    "a number of a million digits": f"seed: {'9' * 100_000}",
    "a long text": f"train: {'x' * 100_000}",
    "control characters": 'name: "a\\x1b[2Jb"',
}


def nested(dotted: str, value: object) -> dict:
    *parents, last = dotted.split(".")
    inner: dict = {last: value}
    for parent in reversed(parents):
        inner = {parent: inner}
    return inner


CASES = [(f"{key}={value!r}", nested(key, value)) for key, values in NUMBERS.items() for value in values]
CASES = [case for case in CASES if case[0] != "seed=None"]  # which is its default
CASES += [
    (f"{section} {name[:12]!r}", {section: {name: {"path": "m.pt"} if section == "checkpoints" else {}}})
    for section in ("checkpoints", "variants")
    for name in NAMES
]
CASES += [(f"{key} twice", nested(key, value)) for key, value in TWICE.items()]


def check(error: CxrRayError, code: int = 2) -> str:
    """What every refusal is: a code, and lines that are short, printable and end."""
    assert error.exit_code == code
    lines = str(error).splitlines()
    assert 0 < len(lines) <= 51
    for line in lines:
        assert len(line) < 1500
        assert line.isprintable()
        assert line.endswith((".", "?")), line
    return str(error)


@pytest.mark.parametrize("raw", [raw for _, raw in CASES], ids=[name for name, _ in CASES])
def test_a_value_that_no_sweep_has_is_refused(raw):
    with pytest.raises(UserError) as e:
        resolve(raw)
    check(e.value)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_no_sweep_is_is_refused(kind):
    with pytest.raises(UserError) as e:
        resolve(parse_yaml(TEXTS[kind], "bad.yaml"))
    check(e.value)


def test_there_are_150_cases():
    assert len(CASES) + len(TEXTS) >= 150


def test_a_hundred_thousand_levels_are_checked():
    levels = [i / 100_001 for i in range(1, 100_001)]
    assert len(resolve({"perturb": {"levels": levels}}).perturb.levels) == 100_000
    with pytest.raises(UserError) as e:
        resolve({"perturb": {"levels": levels * 2}})
    assert "and 99995 more twice" in check(e.value)


def test_many_mistakes_are_told_in_part():
    with pytest.raises(UserError) as e:
        resolve({"perturb": {"levels": ["x"] * 1000}})
    assert check(e.value).endswith("and 950 more mistakes; correct these first.")


def test_a_sweep_file_of_gigabytes_is_not_read(tmp_path):
    sparse(tmp_path / "x.yaml", b"name: x\n", 10**10)
    with pytest.raises(UserError) as e:
        load_sweep(tmp_path / "x.yaml")
    check(e.value)


# Files


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file that says it has ``size`` bytes, and takes a few on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "head", [b"", PNG, b"\xff\xd8\xff", b"BM", b"\0" * 128 + b"DICM"], ids=["nothing", "png", "jpeg", "bmp", "dicom"]
)
def test_an_image_of_ten_gigabytes_is_not_read(head, tmp_path):
    sparse(tmp_path / "x.png", head, 10**10)
    with pytest.raises(ImageError, match=r"too large|neither JPEG"):
        FolderSource(str(tmp_path)).read("x.png")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    "head",
    [b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 100) + b"{"],
    ids=["nothing", "zip", "pickle", "safetensors"],
)
def test_a_checkpoint_of_ten_gigabytes_is_not_read(head, name, tmp_path):
    sparse(tmp_path / name, head, 10**10)
    with pytest.raises(UserError) as e:
        checkpoints.load(str(tmp_path / name), ModelSpec("resnet18", 32))
    check(e.value)


def test_what_is_read_is_looked_at_before(tmp_path):
    sparse(tmp_path / "x", b"head", 2**21)

    def refuse(head: bytes) -> None:
        assert len(head) == 4096
        raise ValueError(head[:4])

    with pytest.raises(ValueError, match="head"):
        read_file(pafs.LocalFileSystem(), str(tmp_path / "x"), 2**30, refuse)
    with pytest.raises(TooLargeError, match="2097152 bytes, more than 10"):
        read_file(pafs.LocalFileSystem(), str(tmp_path / "x"), 10)


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 2**27)
    with pytest.raises(UserError) as e:
        checkpoints.load(str(tmp_path / "x.pt"), ModelSpec("resnet18", 32))
    assert "unpacks to" in check(e.value) or "cannot be loaded safely" in str(e.value)


@pytest.mark.parametrize(
    ("name", "dtype"), [("conv1.weight", torch.complex64), ("fc.weight", torch.int64), ("fc.bias", torch.bool)]
)
def test_weights_that_are_no_real_numbers_are_refused(name, dtype, tmp_path):
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    state[name] = state[name].to(dtype)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError) as e:
        checkpoints.load(str(tmp_path / "x.pt"), ModelSpec("resnet18", 32))
    assert f"{name} ({str(dtype).removeprefix('torch.')})" in check(e.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", b"{}", b"PK\x05\x06" + b"\0" * 18])
def test_arrays_that_are_none_are_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError) as e:
        NpzSource(str(tmp_path / "x.npz")).list()
    check(e.value)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet", "x.csv.gz"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"PAR1PAR1", b"\x1f\x8b\x08", b'"', b"a\n" * 3, b"\0" * 100])
def test_tables_that_are_none_are_refused(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        TableSource(str(tmp_path / name)).list()
    check(e.value)


def test_no_column_is_a_reserved_word_of_sql():
    import duckdb

    words = duckdb.connect().execute("select keyword_name from duckdb_keywords() where keyword_category = 'reserved'")
    reserved = {word for (word,) in words.fetchall()}
    assert "order" in reserved
    assert not {
        (name, c) for name, table in TABLES.items() for c in (*table.columns, *table.partitions) if c in reserved
    }


# Damage, at random


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one of: a flipped bit, a cut, two parts swapped, a part deleted."""
    at, other = sorted(int(i) for i in rng.integers(0, max(1, len(data)), 2))
    kind = rng.integers(4)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    return data[other:] + data[at:other] + data[:at] if kind == 2 else data[:at] + data[other:]


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_pixels_or_a_reason(kind):
    whole, rng = encoded(kind), np.random.default_rng(0)
    for _ in range(60):
        data = damaged(whole, rng)
        try:
            made = images.decode(data, 16)
        except ImageError as e:
            reason = str(e)
        else:
            reason = f"{made.shape}."
        assert len(reason) < 400
        assert reason.endswith(".")


@pytest.mark.parametrize("name", ["sweep.yaml", "provenance.json"])
def test_a_damaged_text_of_a_run_is_a_mapping_or_a_sentence(name, made_run, tmp_path):
    rng = np.random.default_rng(0)
    whole = {file: (made_run / file).read_bytes() for file in ("sweep.yaml", "provenance.json")}
    for i in range(40):
        for file, data in whole.items():
            (tmp_path / file).write_bytes(damaged(data, rng) if file == name else data)
        try:
            run = open_run(tmp_path)
            made = run.sweep if name == "sweep.yaml" else run.json(name)
        except CxrRayError as e:
            check(e)
        else:
            assert isinstance(made, dict), i


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff", b"[" * 100_000, b"", json.dumps("x").encode()])
def test_json_of_a_run_that_is_no_mapping_is_a_sentence(content, tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: x\n")
    (tmp_path / "primary.json").write_bytes(content)
    with pytest.raises(UserError) as e:
        open_run(tmp_path).json("primary.json")
    check(e.value)
