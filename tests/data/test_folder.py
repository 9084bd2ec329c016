import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_ray import schemas
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import DataError
from tests.builders.images import kaggle, picture, write


def test_a_folder_in_kaggles_layout_is_read_whole(tmp_path):
    files = kaggle()
    source = FolderSource(str(write(tmp_path, files)))
    manifest = load_manifest(source)
    assert list(manifest.images.columns) == list(schemas.IMAGES.columns)
    schemas.IMAGES.build({name: manifest.images[name] for name in schemas.IMAGES.columns})
    assert manifest.errors == []
    assert sorted(manifest.images["path"]) == sorted(files)
    assert manifest.images["split"].value_counts().to_dict() == {"test": 8, "train": 6, "val": 2}
    assert (manifest.images["label"] == manifest.images["path"].str.contains("PNEUMONIA")).all()
    assert manifest.images["duplicate_of"].isna().all()
    assert set(manifest.images[["width", "height", "mode"]].itertuples(index=False, name=None)) == {(16, 16, "L")}
    assert source.read("train/NORMAL/IM-0001-0001.jpeg") == files["train/NORMAL/IM-0001-0001.jpeg"]


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


def test_endings_of_any_image_format_are_read_in_any_case(tmp_path):
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


@pytest.mark.parametrize("location", ["{}", "file://{}"])
def test_relative_paths_links_and_uris_name_the_same_folder(tmp_path, monkeypatch, location):
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
        ({}, "without class folders, .*; expected test/ and train/ .*; give --data the folder that"),
        ({"a.jpeg": b"", "pictures/b.jpeg": b""}, "without class folders"),
        ({"test/a.jpeg": b""}, "without class folders"),
        ({k: v for k, v in kaggle().items() if "test" not in k}, "no NORMAL image for the test split"),
        ({k: v for k, v in kaggle().items() if "train" not in k}, "no NORMAL image for the train split"),
        ({k: v for k, v in kaggle().items() if "test/P" not in k}, "no PNEUMONIA image for the test split"),
        (
            {k: b"" if "test/P" in k else v for k, v in kaggle().items()},
            r"no PNEUMONIA image for the test split \(4 unusable files, .*: The file is empty.\)",
        ),
        ({**kaggle("a/"), **kaggle("b/")}, "several data sets; expected one; give --data one of .*/a, .*/b"),
        ({**kaggle("a/"), **kaggle("b/b/")}, "several data sets; expected one; give --data one of .*/a, .*/b/b"),
        ({**kaggle(), "train/normal/IM-0001-0001.jpeg": b""}, "differ in case alone; expected one folder; merge them"),
        (kaggle(patients=1), "1 patient of NORMAL to train on; expected 2 or more"),
        ({"NORMAL/a.png": picture(1), "PNEUMONIA/b.png": picture(2)}, "1 patient of NORMAL; expected 3 or more"),
        (
            {"NORMAL/a.png": picture(1), "NORMAL/b.png": picture(2)},
            "no PNEUMONIA image for the test split; expected .*; add images",
        ),
    ],
)
def test_mistakes_say_where_and_what_is_expected(tmp_path, files, says):
    with pytest.raises(DataError, match=says) as e:
        load_manifest(FolderSource(str(write(tmp_path, files))))
    assert str(tmp_path) in str(e.value)
    assert "\n" not in str(e.value)


def test_an_empty_class_folder_is_refused_only_where_its_images_are_needed(tmp_path):
    write(tmp_path, {k: v for k, v in kaggle().items() if "train/N" not in k})
    (tmp_path / "train/NORMAL").mkdir()
    with pytest.raises(DataError, match="no NORMAL image for the train split"):
        load_manifest(FolderSource(str(tmp_path)))
    assert len(load_manifest(FolderSource(str(tmp_path)), training=False).rows("test")) == 8


def test_a_path_that_is_no_folder_says_what_to_give(tmp_path):
    with pytest.raises(
        DataError, match=f"got {tmp_path}/gone, which is no folder; expected a folder with test/ and train/"
    ):
        FolderSource(str(tmp_path / "gone")).list()
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"archive\.zip, a file; expected a folder with .*; unpack it and give --data the folder\.$"
    ):
        FolderSource(str(tmp_path / "archive.zip")).list()
    with pytest.raises(DataError, match="got nowhere://x, which cannot be opened"):
        FolderSource("nowhere://x").list()


def test_a_name_that_is_not_utf8_is_a_data_error(tmp_path):
    write(tmp_path, kaggle())
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/test/NORMAL/\xff.jpeg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match=r"with a name that is not UTF-8 .*; expected UTF-8; rename it"):
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
    with pytest.raises(DataError, match=r"cannot be listed \(.*Permission denied.*\); expected a folder; check your"):
        FolderSource(str(folder)).list()
