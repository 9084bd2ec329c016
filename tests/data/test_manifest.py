import hashlib
import os
import time
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray import schemas
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import DataError
from cxr_ray.schemas import CLASSES
from tests.builders.images import MemorySource, gradient, kaggle, picture, write

REAL = os.environ.get("CXR_RAY_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="CXR_RAY_DATA names no folder")


def test_image_ids_are_as_documented(tmp_path):
    files = kaggle()
    manifest = load_manifest(FolderSource(str(write(tmp_path, files))))
    for row in manifest.images.to_dict("records"):
        content = files[row["path"]]
        assert row["image_id"] == hashlib.sha256(row["path"].encode() + b"\0" + content).hexdigest()[:16]
        assert row["content_hash"] == hashlib.sha256(content).hexdigest()
    ids = "\n".join(sorted(manifest.images["image_id"]))
    assert manifest.fingerprint == hashlib.sha256(ids.encode()).hexdigest()


def test_ids_depend_on_neither_case_of_folders_nor_where_they_lie_nor_the_seed(tmp_path):
    plain = load_manifest(FolderSource(str(write(tmp_path / "a", kaggle()))))
    renamed = {k.replace("train", "Train").replace("NORMAL/", "Normal/"): v for k, v in kaggle("x/y/").items()}
    moved = load_manifest(FolderSource(str(write(tmp_path / "b", renamed))), seed=5)
    assert moved.fingerprint == plain.fingerprint
    assert moved.images["path"].str.startswith("x/y/").all()


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


def test_a_limit_too_small_to_train_says_so(tmp_path):
    with pytest.raises(DataError, match=r"raise data.limit \(2\)"):
        load_manifest(FolderSource(str(write(tmp_path, kaggle()))), limit=2)


def test_identical_files_are_marked_and_belong_to_one_patient():
    files = kaggle(patients=8)
    files["test/NORMAL/IM-0500-0002.jpeg"] = files["test/NORMAL/IM-0501-0001.jpeg"]
    files["train/PNEUMONIA/person0_virus_99.jpeg"] = files["train/PNEUMONIA/person3_bacteria_10.jpeg"]
    files["train/NORMAL/IM-0900-0001.jpeg"] = files["test/NORMAL/IM-0502-0001.jpeg"]
    manifest = load_manifest(MemorySource(files))
    table: Any = manifest.images.set_index("path")

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
    table: Any = load_manifest(FolderSource(str(write(tmp_path, files)))).images.set_index("path")
    assert table.loc[leaked, "duplicate_of"] == table.loc["test/NORMAL/IM-0502-0001.jpeg", "image_id"]
    assert table["duplicate_of"].notna().sum() == 1


def test_one_name_in_several_folders_tells_no_patient_though_it_looks_like_a_known_one(tmp_path):
    names = [f"test/{c}/patient{p}/IM-0001-0001.jpeg" for c in ("NORMAL", "PNEUMONIA") for p in (1, 2)]
    folder = FolderSource(str(write(tmp_path, {name: picture(name) for name in names})))
    (doubt,) = load_manifest(folder, training=False).doubts
    assert (doubt.name, doubt.about) == ("equal_stems", "IM-0001, IM-0001-0001")
    told = load_manifest(replace(folder, patient="folder"), training=False)
    assert not told.doubts
    chexpert = {f"test/{c}/patient0000{p}/study1/view1.jpg": picture(f"{c}{p}") for c in CLASSES for p in (1, 2)}
    assert not load_manifest(FolderSource(str(write(tmp_path / "chexpert", chexpert))), training=False).doubts


def test_a_number_that_viewers_give_in_several_folders_tells_no_patient(tmp_path):
    names = [f"test/{c}/p{p}/IM-0001-{i}{p:03d}.jpeg" for i, c in enumerate(CLASSES) for p in (1, 2)]
    folder = FolderSource(str(write(tmp_path / "a", {name: picture(name) for name in names})))
    (doubt,) = load_manifest(folder, training=False).doubts
    assert (doubt.name, doubt.about) == ("equal_stems", "IM-0001")
    flat = [f"{split}/{c}/IM-0115-{i}{len(split)}.jpeg" for split in ("train", "test") for i, c in enumerate(CLASSES)]
    again = load_manifest(
        FolderSource(str(write(tmp_path / "b", {name: picture(name) for name in flat}))), training=False
    )
    assert not again.doubts  # one folder a class, as published


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


def test_a_manifest_without_training_may_have_no_val():
    only_test = {k: v for k, v in kaggle().items() if k.startswith("test")}
    manifest = load_manifest(MemorySource(only_test), training=False)
    assert len(manifest.rows("test")) == 8
    assert len(manifest.training_rows()) == len(manifest.rows("val")) == 0


@needs_real_data
def test_the_published_data_have_the_counts_of_their_paper():
    source = FolderSource(f"{REAL}/chest_xray_224")
    manifest = load_manifest(source)
    table = manifest.images
    assert manifest.errors == []
    folder = table["split"].replace("val", "train")
    assert table.groupby([folder, "label"]).size().to_dict() == {
        ("test", 0): 234,
        ("test", 1): 390,
        ("train", 0): 1341,
        ("train", 1): 3875,
    }
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
def test_the_published_images_are_read_at_their_own_size():
    source = FolderSource(f"{REAL}/chest_xray_native_sample")
    manifest = load_manifest(source, training=False)
    assert manifest.images["label"].value_counts().to_dict() == {1: 24, 0: 20}
    assert set(manifest.images["mode"]) == {"L", "RGB"}
    for fit in ("squash", "pad", "crop"):
        pixels = load_pixels(source, manifest.images, 224, fit)
        assert pixels.keep.all()
    assert set(load_manifest(source).images["split"]) == {"train", "val", "test"}


@pytest.fixture
def remembering(tmp_path, monkeypatch):
    """A folder whose files were written an hour ago, a cache of its own, and the paths that were read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write(tmp_path / "data", kaggle())
    for file in folder.rglob("*.*"):
        age(file, 3600)
    read: list[str] = []
    whole = FolderSource.read

    def reading(self, path):
        read.append(path)
        return whole(self, path)

    monkeypatch.setattr(FolderSource, "read", reading)
    return folder, read


def age(file, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def remembered_files(tmp_path):
    return list((tmp_path / "cache" / "cxr_ray" / "images").glob("[!.]*"))


def assert_equal_manifests(one, other):
    pd.testing.assert_frame_equal(one.images, other.images)
    assert (one.errors, one.notes, one.fingerprint) == (other.errors, other.notes, other.fingerprint)


def test_a_manifest_from_memory_equals_the_one_that_was_read(tmp_path, remembering):
    folder, read = remembering
    (folder / "train" / "NORMAL" / "broken.jpeg").write_bytes(b"no image")
    age(folder / "train" / "NORMAL" / "broken.jpeg", 3600)
    first = load_manifest(FolderSource(str(folder)))
    assert len(read) == len(kaggle()) + 1
    read.clear()
    assert_equal_manifests(load_manifest(FolderSource(str(folder))), first)
    assert read == ["train/NORMAL/broken.jpeg"]  # what could not be read is tried again
    (file,) = remembered_files(tmp_path)
    file.unlink()
    assert_equal_manifests(load_manifest(FolderSource(str(folder))), first)


def test_only_files_that_changed_are_read_again(remembering):
    folder, read = remembering
    first = load_manifest(FolderSource(str(folder)))
    paths = sorted(first.images["path"])
    read.clear()
    bytes_of_another = (folder / paths[1]).read_bytes()
    (folder / paths[0]).write_bytes(bytes_of_another)
    age(folder / paths[0], -3600)
    (folder / paths[2]).rename(folder / f"{paths[2]}.png")  # another name is another image_id
    again = load_manifest(FolderSource(str(folder)))
    assert sorted(read) == sorted([paths[0], f"{paths[2]}.png"])
    hashes = again.images.set_index("path")["content_hash"]
    assert hashes[paths[0]] == hashes[paths[1]] == hashlib.sha256(bytes_of_another).hexdigest()
    read.clear()
    load_manifest(FolderSource(str(folder)))
    assert read == [paths[0]]  # not old enough: it might change again at the same time


@pytest.mark.parametrize("damage", [b"", b"no parquet", "half", "another table", "nulls"])
def test_a_damaged_memory_counts_as_none(tmp_path, remembering, damage):
    folder, read = remembering
    first = load_manifest(FolderSource(str(folder)))
    (file,) = remembered_files(tmp_path)
    table = pq.read_table(file)
    if damage == "another table":
        pq.write_table(table.drop_columns(["mode"]), file)
    elif damage == "nulls":
        nulls = pa.array([None] * len(table), pa.string())
        pq.write_table(table.set_column(table.schema.get_field_index("image_id"), "image_id", nulls), file)
    else:
        file.write_bytes(file.read_bytes()[:-40] if damage == "half" else damage)
    read.clear()
    assert_equal_manifests(load_manifest(FolderSource(str(folder))), first)
    assert len(read) == len(kaggle())


def test_a_cache_folder_that_cannot_be_written_is_no_mistake(tmp_path, remembering):
    folder, read = remembering
    (tmp_path / "cache").write_text("a file")
    first = load_manifest(FolderSource(str(folder)))
    assert_equal_manifests(load_manifest(FolderSource(str(folder))), first)
    assert len(read) == 2 * len(kaggle())
