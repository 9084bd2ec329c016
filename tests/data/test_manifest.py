import hashlib
import io
import os
import pickle
import random
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_ray import schemas
from cxr_ray.data import images
from cxr_ray.data.entries import Entry
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.hub import hub_folder
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.masks import MaskFolder, load_parts, lung_note
from cxr_ray.data.patients import patient_of
from cxr_ray.data.phantom_source import PhantomSource
from cxr_ray.data.splits import choose, hold_out
from cxr_ray.errors import DataError

REAL = os.environ.get("CXR_RAY_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="CXR_RAY_DATA names no folder")


def picture(seed: int | str, format: str = "JPEG", size: int = 16) -> bytes:
    pixels = np.random.default_rng(list(str(seed).encode())).integers(0, 256, (size, size), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def kaggle(prefix: str = "", patients: int = 4) -> dict[str, bytes]:
    """Files in Kaggle's layout: in train and in test, `patients` of each class with one image each."""
    return {
        f"{prefix}{split}/{folder}/{name}": picture(f"{split}{name}")
        for split, offset in (("train", 0), ("test", 500))
        for i in range(offset, offset + patients)
        for folder, name in (
            ("NORMAL", f"IM-{i:04d}-0001.jpeg"),
            ("PNEUMONIA", f"person{i}_{'bacteria' if i % 2 else 'virus'}_{i + 7}.jpeg"),
        )
    }


class MemorySource:
    """A source whose files are bytes in memory, listed in the order of the dictionary."""

    where = "memory"

    def __init__(self, files: dict[str, bytes]):
        self.files = files

    def list(self):
        return [Entry(*path.split("/", 2), path) for path in self.files]

    def read(self, path: str) -> bytes:
        return self.files[path]


def gradient(value: int) -> bytes:
    """A valid image that differs from that of every other value under 2**32, and costs nothing to make."""
    return b"P5\n4 1\n255\n" + value.to_bytes(4, "big")


# -------------------------------------------------------------------------------------------------------- patients


@pytest.mark.parametrize(
    ("name", "patient", "kind"),
    [
        ("person123_bacteria_456.jpeg", "bacteria-123", "bacteria"),
        ("person123_virus_456.jpeg", "virus-123", "virus"),
        ("PERSON123_Virus_456.JPEG", "virus-123", "virus"),
        ("person124_virus_234_2.jpeg", "virus-124", "virus"),
        ("IM-0115-0001.jpeg", "IM-0115", "normal"),
        ("im-0523-0001-0002.JPG", "IM-0523", "normal"),
        ("NORMAL2-IM-1430-0001.jpeg", "NORMAL2-IM-1430", "normal"),
        ("sub/folder/IM-0115-0001 (1).jpeg", "IM-0115", "normal"),
        ("phantom-000012.pgm", "phantom-000012", "unknown"),
        ("person_bacteria.png", "person_bacteria", "unknown"),
        ("00000013_005.png", "00000013_005", "unknown"),
    ],
)
def test_patient_of(name, patient, kind):
    assert patient_of(name) == (patient, kind)


# --------------------------------------------------------------------------------------------------------- folders


def test_a_folder_in_kaggles_layout(tmp_path):
    files = kaggle()
    source = FolderSource(str(write(tmp_path, files)))
    manifest = load_manifest(source)
    assert list(manifest.images.columns) == list(schemas.IMAGES.columns)
    schemas.IMAGES.build({name: manifest.images[name] for name in manifest.images})
    assert manifest.errors == []
    assert sorted(manifest.images["path"]) == sorted(files)
    assert manifest.images["split"].value_counts().to_dict() == {"test": 8, "train": 6, "val": 2}
    assert (manifest.images["label"] == manifest.images["path"].str.contains("PNEUMONIA")).all()
    assert manifest.images["duplicate_of"].isna().all()
    assert set(manifest.images[["width", "height", "mode"]].itertuples(index=False, name=None)) == {(16, 16, "L")}
    assert source.read("train/NORMAL/IM-0001-0001.jpeg") == files["train/NORMAL/IM-0001-0001.jpeg"]


def test_image_ids_are_as_documented(tmp_path):
    files = kaggle()
    manifest = load_manifest(FolderSource(str(write(tmp_path, files))))
    for row in manifest.images.itertuples():
        content = files[row.path]
        assert row.image_id == hashlib.sha256(row.path.encode() + b"\0" + content).hexdigest()[:16]
        assert row.content_hash == hashlib.sha256(content).hexdigest()
    ids = "\n".join(sorted(manifest.images["image_id"]))
    assert manifest.fingerprint == hashlib.sha256(ids.encode()).hexdigest()


def test_ids_depend_on_neither_case_of_folders_nor_where_they_lie_nor_the_seed(tmp_path):
    plain = load_manifest(FolderSource(str(write(tmp_path / "a", kaggle()))))
    renamed = {k.replace("train", "Train").replace("NORMAL/", "Normal/"): v for k, v in kaggle("x/y/").items()}
    moved = load_manifest(FolderSource(str(write(tmp_path / "b", renamed))), seed=5)
    assert moved.fingerprint == plain.fingerprint
    assert moved.images["path"].str.startswith("x/y/").all()


@pytest.mark.parametrize("given", ["", "chest_xray", "chest_xray/chest_xray"])
def test_the_archive_as_it_comes_with_nested_copy_and_macos_leftovers(tmp_path, given):
    files = {
        **kaggle("chest_xray/"),
        **kaggle("chest_xray/chest_xray/"),
        **{
            "chest_xray/__MACOSX/chest_xray/train/NORMAL/._IM-0001-0001.jpeg": b"x",
            "chest_xray/__MACOSX/chest_xray/test/NORMAL/IM-0001-0001.jpeg": b"x",
            "chest_xray/train/NORMAL/.DS_Store": b"x",
            "chest_xray/train/NORMAL/._IM-0001-0001.jpeg": b"x",
            "chest_xray/test/PNEUMONIA/Thumbs.db": b"x",
            "chest_xray/test/PNEUMONIA/.ipynb_checkpoints/IM-0001-0001.jpeg": b"x",
            "chest_xray/.DS_Store": b"x",
            "chest_xray/val/NORMAL/NORMAL2-IM-1427-0001.jpeg": picture("v"),
            "chest_xray/val/PNEUMONIA/person1946_bacteria_4874.jpeg": picture("w"),
        },
    }
    write(tmp_path, files)
    manifest = load_manifest(FolderSource(str(tmp_path / given)))
    assert len(manifest.images) == 16
    assert manifest.errors == []
    if given != "chest_xray/chest_xray":
        assert any("own val split (2 images) is not used" in note for note in manifest.notes)
        assert not manifest.images["path"].str.contains("chest_xray/chest_xray|val").any()


def test_endings_in_any_case_and_of_any_image_format(tmp_path):
    files = kaggle()
    deep = np.random.default_rng(0).integers(0, 65536, (9, 8), dtype=np.uint16)
    stream = io.BytesIO()
    Image.fromarray(deep).save(stream, "PNG")
    files |= {
        "test/NORMAL/IM-0900-0001.JPEG": picture(1),
        "test/NORMAL/IM-0901-0001.Jpg": picture(2),
        "test/NORMAL/IM-0902-0001.PNG": picture(3, "PNG"),
        "test/NORMAL/deep.png": stream.getvalue(),
        "test/PNEUMONIA/patient7/scan.tif": picture(4, "TIFF"),
    }
    manifest = load_manifest(FolderSource(str(write(tmp_path, files))))
    assert manifest.errors == []
    assert sorted(manifest.images["path"]) == sorted(files)
    row = manifest.images.set_index("path").loc["test/NORMAL/deep.png"]
    assert (row["width"], row["height"], row["mode"], row["kind"]) == (8, 9, "I;16", "unknown")
    assert "File names that tell no patient: 2; each name counts as a patient." in manifest.notes


def test_files_that_are_no_images_are_rows_of_errors(tmp_path):
    broken = picture(1)[:150]
    files = kaggle() | {
        "train/NORMAL/notes.txt": b"a text",
        "train/NORMAL/IM-0800-0001.jpeg": b"a text in disguise",
        "test/PNEUMONIA/person900_virus_1.jpeg": b"",
        "test/NORMAL/IM-0801-0001.jpeg": broken,
    }
    source = FolderSource(str(write(tmp_path, files)))
    manifest = load_manifest(source)
    assert len(manifest.images) + len(manifest.errors) == len(files)
    reasons = {e["path"]: e["reason"] for e in manifest.errors}
    assert reasons.pop("train/NORMAL/notes.txt") == "not an image file"
    assert reasons.pop("test/PNEUMONIA/person900_virus_1.jpeg") == "The file is empty."
    assert reasons.pop("train/NORMAL/IM-0800-0001.jpeg").startswith("Not an image")
    assert {(e["stage"], e["image_id"]) for e in manifest.errors} == {("read", None)}
    schemas.ERRORS.from_rows(manifest.errors)
    assert (
        f"Files that are no readable images: {len(manifest.errors)}; they stand in the table errors." in manifest.notes
    )


def test_a_read_that_fails_is_a_row_of_errors(monkeypatch):
    source = MemorySource(kaggle())
    path = "test/NORMAL/IM-0500-0001.jpeg"

    def read(self, asked):
        if asked == path:
            raise PermissionError(13, "Permission denied")
        return self.files[asked]

    rows = load_manifest(source).images
    monkeypatch.setattr(MemorySource, "read", read)
    (error,) = load_manifest(source).errors
    assert error["path"] == path
    assert "Permission denied" in error["reason"]
    pixels = load_pixels(source, rows, 8)
    assert [e["path"] for e in pixels.errors] == [path]


@pytest.mark.parametrize("location", ["{}", "file://{}"])
def test_relative_paths_links_and_uris(tmp_path, monkeypatch, location):
    write(tmp_path / "there", kaggle())
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert len(load_manifest(FolderSource(location.format(tmp_path / "link"))).images) == 16
    relative = FolderSource("link")
    monkeypatch.chdir("/")
    assert len(relative.list()) == 16
    copy = pickle.loads(pickle.dumps(relative))
    assert copy == relative
    assert copy.read("test/NORMAL/IM-0500-0001.jpeg")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no class folders"),
        ({"a.jpeg": b"", "pictures/b.jpeg": b""}, "has no class folders"),
        ({"test/a.jpeg": b""}, "has no class folders"),
        ({k: v for k, v in kaggle().items() if "test" not in k}, "no NORMAL image for the test split"),
        ({k: v for k, v in kaggle().items() if "train" not in k}, "no NORMAL image for the train split"),
        ({k: v for k, v in kaggle().items() if "test/P" not in k}, "no PNEUMONIA image for the test split"),
        (
            {k: b"" if "test/P" in k else v for k, v in kaggle().items()},
            r"no PNEUMONIA image for the test split \(4 unusable files, .*: The file is empty.\)",
        ),
        ({**kaggle("a/"), **kaggle("b/")}, "several data sets: give --data one of .*/a, .*/b"),
        ({**kaggle(), "train/normal/IM-0001-0001.jpeg": b""}, "differ in case alone"),
        (kaggle(patients=1), "1 patient of NORMAL to train on, and 2 or more are needed"),
        ({"NORMAL/a.png": picture(1), "PNEUMONIA/b.png": picture(2)}, "too few NORMAL patients"),
        ({"NORMAL/a.png": picture(1), "NORMAL/b.png": picture(2)}, "no PNEUMONIA image"),
    ],
)
def test_mistakes_say_where_and_what_is_expected(tmp_path, files, says):
    with pytest.raises(DataError, match=says) as e:
        load_manifest(FolderSource(str(write(tmp_path, files))))
    assert str(tmp_path) in str(e.value)
    assert "\n" not in str(e.value)


def test_an_empty_class_folder(tmp_path):
    write(tmp_path, {k: v for k, v in kaggle().items() if "train/N" not in k})
    (tmp_path / "train/NORMAL").mkdir()
    with pytest.raises(DataError, match="no NORMAL image for the train split"):
        load_manifest(FolderSource(str(tmp_path)))
    assert len(load_manifest(FolderSource(str(tmp_path)), training=False).rows("test")) == 8


def test_missing_folder_file_and_unknown_uri(tmp_path):
    with pytest.raises(DataError, match=f"no folder {tmp_path}/gone.*Expected are test/ and train/"):
        FolderSource(str(tmp_path / "gone")).list()
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file, not a folder: unpack it"):
        FolderSource(str(tmp_path / "archive.zip")).list()
    with pytest.raises(DataError, match="nowhere://x cannot be opened"):
        FolderSource("nowhere://x").list()


def test_a_name_that_is_not_utf8(tmp_path):
    write(tmp_path, kaggle())
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/test/NORMAL/\xff.jpeg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match="not UTF-8"):
        FolderSource(str(tmp_path)).list()


def test_links_in_a_ring_are_followed_once_and_links_to_nothing_are_errors(tmp_path):
    folder = write(tmp_path, kaggle())
    plain = load_manifest(FolderSource(str(folder)))
    (folder / "test" / "NORMAL" / "ring").symlink_to(".")
    (folder / "test" / "NORMAL" / "up").symlink_to("..")
    (folder / "test" / "NORMAL" / "gone.jpeg").symlink_to("nowhere.jpeg")
    (folder / "test" / "NORMAL" / "itself.jpeg").symlink_to("itself.jpeg")
    linked = load_manifest(FolderSource(str(folder)))
    assert list(linked.images["path"]) == list(plain.images["path"])
    assert {(Path(e["path"]).name, e["reason"]) for e in linked.errors} - {
        (Path(e["path"]).name, e["reason"]) for e in plain.errors
    } == {("gone.jpeg", "a link to nothing"), ("itself.jpeg", "a link to nothing")}


def test_a_folder_below_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    folder = write(tmp_path, kaggle())
    (folder / "test" / "NORMAL" / "locked").mkdir()
    scandir = os.scandir

    def refused(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"cannot be listed \(.*Permission denied.*\): check your access to it"):
        FolderSource(str(folder)).list()


def test_limit_too_small_to_train_says_so(tmp_path):
    with pytest.raises(DataError, match=r"raise data.limit \(2\)"):
        load_manifest(FolderSource(str(write(tmp_path, kaggle()))), limit=2)


# ------------------------------------------------------------------------------------------------- unsplit folders


def unsplit(patients: int = 10) -> dict[str, bytes]:
    """Two images of each patient."""
    return {
        path: picture(path)
        for i in range(patients)
        for k in (1, 2)
        for path in (f"normal/IM-{i:04d}-000{k}.jpeg", f"Pneumonia/person{i}_virus_{k}.jpeg")
    }


def test_an_unsplit_folder_gives_a_fifth_of_the_patients_to_test(tmp_path):
    source = FolderSource(str(write(tmp_path, unsplit())))
    manifest = load_manifest(source)
    table = manifest.images
    assert table.groupby(["split", "label"])["patient_id"].nunique().to_dict() == {
        ("test", 0): 2, ("test", 1): 2, ("train", 0): 7, ("train", 1): 7, ("val", 0): 1, ("val", 1): 1,
    }  # fmt: skip
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    assert any("20% of the patients" in note for note in manifest.notes)
    other = load_manifest(source, seed=1)
    assert other.fingerprint == manifest.fingerprint
    assert set(other.rows("test")["image_id"]) != set(manifest.rows("test")["image_id"])


def test_an_unsplit_folder_is_all_test_when_nothing_is_trained(tmp_path):
    source = FolderSource(str(write(tmp_path, unsplit())))
    manifest = load_manifest(source, training=False)
    assert set(manifest.images["split"]) == {"test"}
    assert len(manifest.images) == 40
    assert manifest.fingerprint == load_manifest(source).fingerprint
    assert any("all images are test" in note for note in manifest.notes)


# ------------------------------------------------------------------------------------------------------ duplicates


def test_duplicates():
    files = kaggle(patients=8)
    files["test/NORMAL/IM-0500-0002.jpeg"] = files["test/NORMAL/IM-0501-0001.jpeg"]
    files["train/PNEUMONIA/person0_virus_99.jpeg"] = files["train/PNEUMONIA/person3_bacteria_10.jpeg"]
    files["train/NORMAL/IM-0900-0001.jpeg"] = files["test/NORMAL/IM-0502-0001.jpeg"]
    manifest = load_manifest(MemorySource(files))
    table = manifest.images.set_index("path")

    first, second = "test/NORMAL/IM-0500-0002.jpeg", "test/NORMAL/IM-0501-0001.jpeg"
    assert pd.isna(table.loc[first, "duplicate_of"])
    assert table.loc[second, "duplicate_of"] == table.loc[first, "image_id"]
    merged = table.loc[[first, second, "test/NORMAL/IM-0500-0001.jpeg"], "patient_id"]
    assert set(merged) == {"IM-0500"}

    later, kept = "train/PNEUMONIA/person3_bacteria_10.jpeg", "train/PNEUMONIA/person0_virus_99.jpeg"
    assert table.loc[later, "duplicate_of"] == table.loc[kept, "image_id"]
    assert set(table.loc[[later, kept, "train/PNEUMONIA/person0_virus_7.jpeg"], "patient_id"]) == {"bacteria-3"}
    assert table.loc[later, "split"] == table.loc[kept, "split"]

    leaked = "train/NORMAL/IM-0900-0001.jpeg"
    assert table.loc[leaked, "duplicate_of"] == table.loc["test/NORMAL/IM-0502-0001.jpeg", "image_id"]
    assert table.loc[leaked, "patient_id"] == "IM-0502"

    assert len(manifest.rows("test")) == 17
    used = pd.concat([manifest.training_rows(), manifest.rows("val")])
    assert len(used) == 16
    assert not set(used["content_hash"]) & set(manifest.rows("test")["content_hash"])
    assert used["content_hash"].is_unique
    assert any("3 groups, 1 inside train, 1 inside test, 1 in both" in note for note in manifest.notes)
    assert any("both test and train: 1 by kind and number; 0 by the number alone" in note for note in manifest.notes)


def test_test_keeps_what_train_has_too_whatever_the_paths_order(tmp_path):
    files = {path.replace("train/", "Train/"): content for path, content in kaggle().items()}
    leaked = "Train/NORMAL/IM-0900-0001.jpeg"
    files[leaked] = files["test/NORMAL/IM-0502-0001.jpeg"]
    table = load_manifest(FolderSource(str(write(tmp_path, files)))).images.set_index("path")
    assert table.loc[leaked, "duplicate_of"] == table.loc["test/NORMAL/IM-0502-0001.jpeg", "image_id"]
    assert table["duplicate_of"].notna().sum() == 1


def test_duplicates_do_not_count_towards_val_share():
    files = kaggle(patients=20)
    copies = {f"train/NORMAL/IM-0000-1{k:03d}.jpeg": files["train/NORMAL/IM-0000-0001.jpeg"] for k in range(20)}
    for seed in range(3):
        val = load_manifest(MemorySource(files | copies), seed=seed).rows("val")
        assert val["label"].value_counts().to_dict() == {0: 2, 1: 2}


def test_identical_files_with_both_labels_are_said():
    files = kaggle()
    files["train/NORMAL/IM-0800-0001.jpeg"] = files["train/PNEUMONIA/person3_bacteria_10.jpeg"]
    assert "Identical files with both labels: 1 groups." in load_manifest(MemorySource(files)).notes


def test_numbers_that_collide_between_kinds_are_counted():
    files = kaggle() | {
        f"train/PNEUMONIA/person{i}_{'virus' if i % 2 else 'bacteria'}_1.jpeg": picture(i) for i in (500, 501)
    }
    notes = load_manifest(MemorySource(files)).notes
    assert "Patients in both test and train: 0 by kind and number; 2 by the number alone." in notes


def test_duplicates_that_a_limit_leaves_alone_are_not_lost():
    files = {f"{s}/{c}/{i}.pgm": gradient(i) for s in ("train", "test") for c in schemas.CLASSES for i in range(40)}
    manifest = load_manifest(MemorySource(files), limit=20)
    table = manifest.images
    assert set(table["duplicate_of"].dropna()) <= set(table["image_id"])
    assert set(table["content_hash"]) == set(table.loc[table["duplicate_of"].isna(), "content_hash"])


# ---------------------------------------------------------------------------------------------------- the split


@st.composite
def collections(draw):
    """Files of a few patients with several images each; some share contents, also across labels and splits."""
    files = {}
    for split in ("train", "test"):
        for class_name in schemas.CLASSES:
            images = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 200)), min_size=4, max_size=15))
            for i, (patient, content) in enumerate(images):
                name = f"IM-{patient:04d}-{i}.pgm" if class_name == "NORMAL" else f"person{patient}_virus_{i}.pgm"
                files[f"{split}/{class_name}/{name}"] = gradient(content)
    return files


@settings(max_examples=40, deadline=None)
@given(
    files=collections(),
    seed=st.integers(0, 3),
    limit=st.none() | st.integers(6, 20),
    share=st.floats(0.05, 0.5),
    shuffle=st.integers(0, 99),
)
def test_the_split_keeps_patients_apart_and_does_not_depend_on_order(files, seed, limit, share, shuffle):
    try:
        manifest = load_manifest(MemorySource(files), seed=seed, limit=limit, val_share=share)
    except DataError:  # too few patients of a label
        reject()
    table = manifest.images
    train, val, test = (manifest.rows(s) for s in ("train", "val", "test"))
    everyone = {s: set(table.loc[table["split"] == s, "patient_id"]) for s in ("train", "val")}
    assert not everyone["train"] & everyone["val"]
    contents = [set(part["content_hash"]) for part in (train, val, test)]
    assert len(contents[0] | contents[1] | contents[2]) == sum(map(len, contents))
    assert (table.groupby("content_hash")["patient_id"].nunique() == 1).all()
    if limit is not None:
        folder = table["split"].replace("val", "train")
        for split, part in table.groupby(folder):
            of = [sum(p.startswith(f"{split}/{c}/") for p in files) for c in schemas.CLASSES]
            assert len(part) == min(limit, sum(of))
            for label in (0, 1):
                assert (part["label"] == label).sum() >= min(limit // 2, of[label])

    paths = list(files)
    random.Random(shuffle).shuffle(paths)
    again = load_manifest(MemorySource({p: files[p] for p in paths}), seed=seed, limit=limit, val_share=share)
    pd.testing.assert_frame_equal(table, again.images)
    assert again.fingerprint == manifest.fingerprint
    assert again.notes == manifest.notes


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), max_size=60),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
)
def test_hold_out_sets_aside_enough_and_never_all(rows, share, seed):
    rows = [(f"p{p}", label) for p, label in rows]
    held = hold_out([p for p, _ in rows], [label for _, label in rows], share, seed, "val")
    for label in (0, 1):
        mine = {p for p, of in rows if of == label}
        only = {p for p in mine if (p, 1 - label) not in rows}
        if mine:
            assert mine - held
        if len(only) > 1 and mine == only:
            got = sum(p in held for p, of in rows if of == label)
            assert got > 0
            assert got + 1e-9 >= share * sum(of == label for _, of in rows) or len(mine - held) == 1


def test_val_takes_no_more_patients_than_the_share_needs():
    patients = [f"p{i}" for i in range(100)]
    held = hold_out(patients, [0] * 100, 0.1, 0, "val")
    assert len(held) == 10
    assert len(hold_out(patients[:30], [0] * 30, 0.1, 0, "val")) == 3
    assert held != hold_out(patients, [0] * 100, 0.1, 1, "val")
    assert held != hold_out(patients, [0] * 100, 0.1, 0, "test")


def test_a_larger_limit_keeps_what_a_smaller_one_chose():
    ids, labels = [f"{i:016x}" for i in range(200)], [i % 2 for i in range(200)]
    smaller, larger = (choose(ids, labels, n, 0) for n in (20, 60))
    assert smaller < larger
    assert sum(int(i, 16) % 2 for i in smaller) == 10


def test_an_absent_label_is_replaced_by_the_other():
    assert len(choose(list("abcdef"), [1, 1, 1, 1, 1, 0], 4, 0)) == 4
    assert "f" in choose(list("abcdef"), [1, 1, 1, 1, 1, 0], 4, 0)


def test_a_manifest_without_training_may_have_no_val():
    only_test = {k: v for k, v in kaggle().items() if k.startswith("test")}
    manifest = load_manifest(MemorySource(only_test), training=False)
    assert len(manifest.rows("test")) == 8
    assert len(manifest.training_rows()) == len(manifest.rows("val")) == 0


# ------------------------------------------------------------------------------------------------------ pixels


def test_load_pixels_leaves_out_what_cannot_be_decoded(tmp_path):
    files = kaggle() | {"test/NORMAL/IM-0600-0001.jpeg": picture(1, size=64)[:1500]}
    source = FolderSource(str(write(tmp_path, files)))
    rows = load_manifest(source).rows("test")
    pixels = load_pixels(source, rows, 16, "squash")
    bad = rows["path"] == "test/NORMAL/IM-0600-0001.jpeg"
    assert bad.sum() == 1
    np.testing.assert_array_equal(pixels.keep, ~bad.to_numpy())
    (error,) = pixels.errors
    assert error["image_id"] == rows.loc[bad, "image_id"].item()
    assert error["stage"] == "decode"
    assert "truncated" in error["reason"]
    schemas.ERRORS.from_rows(pixels.errors)
    assert pixels.images_NCHW.shape == (8, 3, 16, 16)
    assert pixels.images_NCHW.dtype == np.uint8
    for path, image in zip(rows["path"][pixels.keep], pixels.images_NCHW, strict=True):
        np.testing.assert_array_equal(image[1], np.asarray(Image.open(tmp_path / path)))


def test_load_pixels_of_nothing():
    pixels = load_pixels(MemorySource({}), pd.DataFrame({"path": [], "image_id": []}), 16)
    assert pixels.images_NCHW.shape == (0, 3, 16, 16)
    assert pixels.errors == []


# ---------------------------------------------------------------------------------------------------- phantoms


def phantoms(**changes) -> PhantomSource:
    return PhantomSource(
        **{"train": 12, "test": 8, "prevalence": 0.25, "marker_correlation": 0.5, "size": 64, "seed": 3, **changes}
    )


def test_phantoms_have_exact_counts_and_each_its_patient():
    manifest = load_manifest(phantoms())
    table = manifest.images
    folder = table["split"].replace("val", "train")
    assert table.groupby([folder, "label"]).size().to_dict() == {
        ("test", 0): 6, ("test", 1): 2, ("train", 0): 9, ("train", 1): 3,
    }  # fmt: skip
    assert table["patient_id"].is_unique
    assert table["content_hash"].is_unique
    assert set(table["kind"]) == {"unknown"}
    assert set(table["mode"]) == {"L"}
    assert "train/PNEUMONIA/phantom-000000.pgm" in set(table["path"])


def test_phantom_bytes_are_the_same_in_a_copy_and_decode_to_the_image():
    from cxr_ray.data import images

    source = phantoms()
    copy = pickle.loads(pickle.dumps(source))
    path = source.list()[0].path
    content = source.read(path)
    assert copy.read(path) == content
    assert content.startswith(b"P5\n64 64\n255\n")
    np.testing.assert_array_equal(images.decode(content, 64)[0].ravel(), np.frombuffer(content[-64 * 64 :], np.uint8))
    assert phantoms(seed=4).read(path) != content
    assert phantoms(train=10).read(path) == content  # other counts leave an image as it is
    with pytest.raises(FileNotFoundError):
        source.read("train/NORMAL/phantom-999999.pgm")


def test_phantom_masks():
    source = phantoms()
    for path, pneumonia in (("test/PNEUMONIA/phantom-000012.pgm", True), ("test/NORMAL/phantom-000019.pgm", False)):
        masks = source.masks(path)
        assert set(masks) == {"lungs", "opacity", "marker"}
        assert all(m.shape == (64, 64) and m.dtype == bool for m in masks.values())
        assert masks["lungs"].any()
        assert masks["opacity"].any() == pneumonia


@pytest.mark.parametrize(
    ("changes", "says"), [({"size": 32}, "data.size to 64"), ({"prevalence": 0.01}, "both classes")]
)
def test_phantoms_that_cannot_be_made(changes, says):
    with pytest.raises(DataError, match=says):
        phantoms(**changes).list()


# -------------------------------------------------------------------------------------------------------- hubs


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stand-ins for both clients; the download is a folder with Parquet files as the mirror has them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    download = tmp_path / "download"
    images: dict[str, list] = {"train-00000-of-00002": [], "train-00001-of-00002": [], "validation-0": [], "test-0": []}
    for path, content in kaggle().items():
        split, class_name, name = path.split("/")
        shard = f"{split}-0" if split == "test" else f"train-0000{len(name) % 2}-of-00002"
        images[shard].append(({"bytes": content, "path": name}, schemas.CLASSES.index(class_name)))
    images["validation-0"].append(({"bytes": picture("v"), "path": None}, 0))
    images["test-0"].append(({"bytes": picture("x"), "path": "../../IM-0500-0001.jpeg"}, 0))
    for shard, rows in images.items():
        table = pa.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
        (download / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, download / "data" / f"{shard}.parquet")
    calls = []

    def answer(*args, **kwargs):
        calls.append(args)
        return str(download)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=answer))
    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=answer))
    return types.SimpleNamespace(download=download, calls=calls, cache=tmp_path / "cache" / "cxr_ray")


def test_huggingface_is_unpacked_once(hub):
    folder = hub_folder("huggingface")
    manifest = load_manifest(FolderSource(folder))
    assert len(manifest.images) == 17
    assert manifest.images["split"].value_counts()["test"] == 9  # two files of one name: both are there
    assert any("own val split (1 images)" in note for note in manifest.notes)
    assert set(manifest.images["path"]) >= set(kaggle())
    assert hub_folder("huggingface") == folder
    assert len(hub.calls) == 1
    assert [p.name for p in hub.cache.iterdir()] == ["chest-xray-pneumonia"]


def test_an_interrupted_unpacking_leaves_nothing_behind(hub):
    (hub.download / "data" / "test-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="give --data its path"):
        hub_folder("huggingface")
    assert list(hub.cache.iterdir()) == []


def test_kaggle_gives_its_own_folder(hub):
    shutil.rmtree(hub.download)
    write(hub.download, kaggle("chest_xray/"))
    assert len(load_manifest(FolderSource(hub_folder("kaggle"))).images) == 16


@pytest.mark.parametrize(("name", "module"), [("kaggle", "kagglehub"), ("huggingface", "huggingface_hub")])
def test_a_missing_package_and_a_failed_download_say_what_to_do(hub, monkeypatch, name, module):
    def fail(*args, **kwargs):
        raise ConnectionError("Max retries exceeded:\nname resolution")

    client = types.SimpleNamespace(dataset_download=fail, snapshot_download=fail)
    monkeypatch.setitem(sys.modules, module, client)
    with pytest.raises(DataError, match=rf"hub:{name} could not be downloaded \(ConnectionError: .*--data") as e:
        hub_folder(name)
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'cxr-ray\[hub\]'"):
        hub_folder(name)


def test_an_unknown_hub():
    with pytest.raises(DataError, match="hub:zenodo is not known: use hub:kaggle or hub:huggingface"):
        hub_folder("zenodo")


# --------------------------------------------------------------------------------------------------- the real data


@needs_real_data
def test_the_real_data():
    source = FolderSource(f"{REAL}/chest_xray_224")
    manifest = load_manifest(source)
    table = manifest.images
    assert manifest.errors == []
    folder = table["split"].replace("val", "train")
    assert table.groupby([folder, "label"]).size().to_dict() == {
        ("test", 0): 234, ("test", 1): 390, ("train", 0): 1341, ("train", 1): 3875,
    }  # fmt: skip
    assert any("30 groups, 24 inside train, 6 inside test, 0 in both" in note for note in manifest.notes)
    assert "Patients in both test and train: 0 by kind and number; 170 by the number alone." in manifest.notes
    assert not (table["kind"] == "unknown").any()
    assert len(manifest.rows("test")) == 624
    train, val = manifest.training_rows(), manifest.rows("val")
    assert not set(train["patient_id"]) & set(val["patient_id"])
    for label in (0, 1):
        share = (val["label"] == label).sum() / ((val["label"] == label).sum() + (train["label"] == label).sum())
        assert 0.1 <= share < 0.12
    pixels = load_pixels(source, manifest.rows("test").head(32), 224)
    assert pixels.keep.all()
    assert 20 < pixels.images_NCHW.mean() < 200


@needs_real_data
def test_the_real_images_as_published():
    source = FolderSource(f"{REAL}/chest_xray_native_sample")
    manifest = load_manifest(source, training=False)
    assert manifest.images["label"].value_counts().to_dict() == {1: 24, 0: 20}
    assert set(manifest.images["mode"]) == {"L", "RGB"}
    for fit in ("squash", "pad", "crop"):
        pixels = load_pixels(source, manifest.images, 224, fit)
        assert pixels.keep.all()
    assert set(load_manifest(source).images["split"]) == {"train", "val", "test"}


# ------------------------------------------------------------------------------------------------ parts of images


def test_versions_of_a_phantom_differ_where_they_should():
    source = phantoms(size=64)
    path = "test/PNEUMONIA/phantom-000012.pgm"
    masks, own = source.masks(path), images.decode(source.read(path), 64)[0].astype(int)
    for change, mask in (("opacity", "opacity"), ("marker", "marker"), ("glyph", "marker")):
        other = images.decode(source.version(path, change), 64)[0]
        assert (other != own).any()
        assert not (other != own)[~masks[mask]].any()


def test_parts_of_phantoms_come_at_the_models_size():
    source = phantoms(size=64)
    rows = [{"path": f"test/{c}/phantom-{i:06d}.pgm", "image_id": "x"} for c, i in (("PNEUMONIA", 12), ("NORMAL", 19))]
    parts = load_parts(source, None, rows, 96, changes=["glyph"])
    assert {name: m.shape for name, m in parts.masks.items()} == dict.fromkeys(
        ("lungs", "opacity", "marker"), (2, 96, 96)
    )
    assert parts.counterfactuals["glyph"].shape == (2, 3, 96, 96)
    assert parts.masks["opacity"].any((1, 2)).tolist() == [True, False]
    small = load_parts(source, None, rows, 64)
    assert np.array_equal(small.masks["marker"][0], source.masks(rows[0]["path"])["marker"])
    assert small.counterfactuals == {}
    shares = [p.masks["lungs"].mean() for p in (parts, small)]
    assert shares[0] == pytest.approx(shares[1], rel=0.02)


def mask_bytes(mask: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, kind)
    return stream.getvalue()


def test_lung_masks_from_a_folder(tmp_path):
    half = np.zeros((50, 80), np.uint8)
    half[:, 40:] = 255
    files = {
        "a.png": mask_bytes(half), "deeper/b.jpeg": mask_bytes(half, "JPEG"), "broken.png": b"\x89PNG\r\n\x1a\n",
        "test/NORMAL/twice.png": mask_bytes(half), "test/PNEUMONIA/twice.png": mask_bytes(255 - half),
        "notes.txt": b"no mask", "c.png": mask_bytes(np.full((9, 9), 127, np.uint8)),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    paths = ["test/NORMAL/a.jpeg", "test/NORMAL/b.jpeg", "test/NORMAL/missing.jpeg", "test/NORMAL/broken.jpeg",
             "test/NORMAL/twice.jpeg", "test/PNEUMONIA/twice.jpeg", "test/NORMAL/c.jpeg"]  # fmt: skip
    rows = [{"path": path, "image_id": path[-9:]} for path in paths]
    parts = load_parts(FolderSource(str(tmp_path)), MaskFolder(str(tmp_path)), rows, 32)
    right = np.zeros((32, 32), bool)
    right[:, 16:] = True
    expected = [right, right, ~right & right, ~right & right, right, ~right, ~right & right]  # 127 is not in the lungs
    assert np.array_equal(parts.masks["lungs"], expected)
    assert [(e["path"], e["stage"]) for e in parts.errors] == [("test/NORMAL/broken.jpeg", "lungs")]
    padded = load_parts(FolderSource(str(tmp_path)), MaskFolder(str(tmp_path)), rows[:1], 32, "pad").masks["lungs"][0]
    assert not padded[:6].any()
    assert not padded[-6:].any()
    assert padded[6:26, 16:].all()
    assert not padded[:, :16].any()


def test_a_folder_without_masks_for_the_images_says_so(tmp_path, tiny_folder):
    manifest = load_manifest(FolderSource(str(tiny_folder)))
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; give the folder of the lung masks, torchxray"):
        MaskFolder(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no file in .* is named as a test image \(such as test/NORMAL/IM-0500-0001\)"):
        lung_note(MaskFolder(str(tmp_path)), manifest)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "IM-0500-0001.png").write_bytes(mask_bytes(np.zeros((4, 4), np.uint8)))
    assert lung_note(MaskFolder(str(tmp_path / "masks")), manifest).startswith(
        "Lung masks: 1 of 12 test images have one"
    )
