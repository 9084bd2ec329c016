"""Folders as people have them: other classes, other names of splits, masks, patients. What is left out is told."""

import shutil

import pytest

from cxr_ray.config import Classes, Data, Splits
from cxr_ray.data.doubts import settle
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.labels import ClassMap
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.sources import require_own_val
from cxr_ray.errors import DataError
from tests.builders.images import kaggle, picture, write


def folders(splits, classes, n=4, ending=".png"):
    """n images of each class in each split; no name stands twice."""
    return {
        f"{split}{name}/{name.split('/')[0]}-{split.strip('/')}{i}{ending}".lstrip("/"): picture(
            f"{split}{name}{i}", "PNG"
        )
        for split in splits
        for name in classes
        for i in range(n)
    }


@pytest.fixture
def folder(tmp_path):
    def written(files, **settings):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        return FolderSource(str(write(tmp_path / "data", files)), **settings)

    return written


def manifest_of(source, accept=(), **settings):
    manifest = load_manifest(source, **settings)
    return manifest, settle(manifest.doubts, accept)


BOTH = ("train/", "test/")
THREE = folders(BOTH, ("NORMAL", "BACTERIA", "VIRUS"))
FOUR = folders(BOTH, ("NORMAL", "PNEUMONIA", "COVID19", "TURBERCULOSIS"))


def test_kaggles_folder_raises_no_doubt(folder):
    _, notes = manifest_of(folder(kaggle()))
    assert notes == []


def test_several_folders_may_be_one_class(folder):
    source = folder(THREE, classes=Classes(negative=["normal"], positive=["Bacteria", "VIRUS"]))
    manifest, notes = manifest_of(source)
    assert manifest.rows("test")["label"].value_counts().to_dict() == {0: 4, 1: 8}
    assert manifest.images["image_id"].is_unique
    assert notes == []


def test_images_of_equal_name_and_content_in_two_folders_of_a_class_differ_in_their_id(folder):
    files = {**THREE, "test/BACTERIA/same.png": picture(1, "PNG"), "test/VIRUS/same.png": picture(1, "PNG")}
    manifest, _ = manifest_of(folder(files, classes=Classes(positive=["BACTERIA", "VIRUS"])))
    assert manifest.images["image_id"].is_unique
    assert len(manifest.images) == len(files)


def test_the_rest_may_be_a_class_or_ignored(folder):
    rest, notes = manifest_of(folder(FOUR, classes=Classes(negative=["*"], positive=["covid19"])))
    assert rest.rows("test")["label"].value_counts().to_dict() == {0: 12, 1: 4}
    assert notes == []
    _, notes = manifest_of(folder(FOUR, classes=Classes(ignore=["*"])))
    assert notes == ["Images left out, as data.classes.ignore says: 16 (COVID19: 8, TURBERCULOSIS: 8)."]


def test_folders_named_0_and_1_are_negative_and_positive(folder):
    manifest, _ = manifest_of(folder(folders(BOTH, ("0", "1"))))
    assert manifest.rows("test")["label"].value_counts().to_dict() == {0: 4, 1: 4}


@pytest.mark.parametrize(
    ("names", "test"),
    [(("training/", "testing/"), []), (("Train/", "holdout/"), ["holdout", "val"]), (("train/", "val/"), ["VAL"])],
)
def test_splits_may_have_other_names(folder, names, test):
    splits = Splits(test=test)
    manifest, _ = manifest_of(folder(folders(names, ("NORMAL", "PNEUMONIA")), splits=splits))
    assert manifest.images["split"].value_counts().to_dict() == {"test": 8, "train": 6, "val": 2}


def test_names_of_splits_that_the_folder_lacks_are_refused(folder):
    for names in (("train/", "test/"), ("",)):
        source = folder(folders(names, ("NORMAL", "PNEUMONIA")), splits=Splits(test=["holdout"]))
        with pytest.raises(DataError, match=r"^got data.splits.test: \[?'?holdout.*has none .*correct them\.$"):
            source.list()


def test_a_name_of_two_splits_is_refused():
    with pytest.raises(ValueError, match=r"got '?x'? twice; expected each name in one split"):
        Splits(train=["x"], test=["X"])


def test_a_pattern_of_labels_that_no_path_has_is_refused(folder):
    source = folder(folders(("train/", "test/"), ("NORMAL", "PNEUMONIA")), label="_(nowhere|never)_")
    with pytest.raises(DataError, match=r"^got data.label: _\(nowhere\|never\)_, which is found in no path"):
        source.list()


def test_val_that_is_asked_for_and_not_there_is_refused(folder):
    source = folder(folders(("train/", "test/"), ("NORMAL", "PNEUMONIA")))
    with pytest.raises(DataError, match=r"^got data.val: own and x without a val split"):
        require_own_val(Data(path="x", val="own"), source.list())
    require_own_val(Data(path="x"), source.list())


def test_ones_own_val_split_validates_where_asked(folder):
    source = folder(folders(("train/", "dev/", "test/"), ("NORMAL", "PNEUMONIA")))
    manifest, _ = manifest_of(source, own_val=True)
    assert manifest.images["split"].value_counts().to_dict() == {"test": 8, "train": 8, "val": 8}
    assert manifest.images[manifest.images["split"] == "val"]["path"].str.startswith("dev/").all()
    assert not any("is not used" in note for note in manifest.notes)


def test_patients_are_folders_patterns_or_files(folder):
    files = {
        f"{split}/{name}/{split}-{name}-p{i // 2}/{i}.png": picture(f"{split}{name}{i}", "PNG")
        for split in ("train", "test")
        for name in ("NORMAL", "PNEUMONIA")
        for i in range(8)
    }
    with pytest.raises(
        DataError, match=r"got 8 names of files .* stand in several folders and tell no patient \(0, 1, 2 "
    ):
        manifest_of(folder(files))
    by_folder, _ = manifest_of(folder(files, patient="folder"))
    assert by_folder.rows("test")["patient_id"].nunique() == 8
    by_pattern, _ = manifest_of(folder(files, patient=r"(train|test)-(\w+)-p(\d)"))
    assert set(by_pattern.rows("test")["patient_id"]) == {
        f"test-{c}-{i}" for c in ("NORMAL", "PNEUMONIA") for i in range(4)
    }
    by_file, _ = manifest_of(folder(files, patient="file"))
    assert by_file.rows("test")["patient_id"].nunique() == 16


def test_augmented_copies_and_their_original_are_one_patient(folder):
    files = {
        path: picture(path)
        for split, base in (("train", 0), ("test", 500))
        for i in range(base, base + 4)
        for path in (
            f"{split}/PNEUMONIA/PNEUMONIA_original_person{i}_bacteria_{i}.jpeg_0b1c2d3.jpeg",
            f"{split}/PNEUMONIA/person{i}_bacteria_{i} (1).jpeg",
            f"{split}/PNEUMONIA/person{i}_bacteria_{i}.jpeg",
            f"{split}/NORMAL/aug_2_IM-{i:04d}-0001.jpeg",
            f"{split}/NORMAL/IM-{i:04d}-0001.jpeg",
        )
    }
    manifest, _ = manifest_of(folder(files))
    child = manifest.images["path"].str.extract(r"(person\d+|IM-\d+)")[0]
    assert (manifest.images.groupby(child)["split"].nunique() == 1).all()


def test_names_of_a_known_data_set_are_told(folder):
    files = {
        f"{split}/{name}/{kind}-{number + (500 if kind == 'NORMAL' else 0) + i}-000{k}.jpeg": picture(
            f"{split}{kind}{i}{k}"
        )
        for split, number in (("train", 1000000), ("test", 2000000))
        for name, kind in (("NORMAL", "NORMAL"), ("PNEUMONIA", "BACTERIA"))
        for i in range(4)
        for k in (1, 2)
    }
    manifest, _ = manifest_of(folder(files))
    assert (manifest.images.groupby("patient_id")["image_id"].size() == 2).all()
    assert any("as in Chest X-Ray Images (Pneumonia), first published: 32 images" in n for n in manifest.notes)


@pytest.mark.parametrize("ending", [".jfif", ""])
def test_rare_endings_and_none_are_read(folder, ending):
    manifest, _ = manifest_of(folder(folders(BOTH, ("NORMAL", "PNEUMONIA"), ending=ending)))
    assert manifest.errors == []
    assert len(manifest.images) == 16


def test_what_lies_beside_the_images_is_told(folder):
    extra = {"more/NORMAL/x.png": b"x", "test/loose.png": b"x", "readme.png/x.txt": b"x"}
    _, notes = manifest_of(folder({**kaggle(), **extra}))
    assert notes == [
        "Folders beside those of the splits, not used: 2 (more, readme.png).",
        "Image files beside the class folders, not used: 1 (test/loose.png).",
    ]


MASKED = folders(("",), ("Normal/images", "Normal/masks", "Pneumonia/images", "Pneumonia/masks"), n=6)


@pytest.mark.parametrize(
    ("files", "name", "says", "left"),
    [
        (
            FOUR,
            "other_labels",
            r"got 16 images whose label is in no class \(COVID19: 8, TURBERCULOSIS: 8\); expected",
            16,
        ),
        (
            MASKED,
            "masks",
            r"got 12 files that look like masks, .* \(Normal/masks: 6, Pneumonia/masks: 6\); expected",
            12,
        ),
        (
            {**kaggle(), "test/NORMAL/IM-0500-0001_mask.png": picture(1, "PNG"), "test/masks/a.png": picture(2, "PNG")},
            "masks",
            r"got 2 files that look like masks",
            16,
        ),
        (
            {**kaggle(), "test/NORMAL/IM-0500-0001_seg.png": picture(1, "PNG"), "test/NORMAL/segmentation/a.png": b"x"},
            "masks",
            r"got 2 files that look like masks",
            16,
        ),
        (
            {**kaggle(), "test/NORMAL/a.png": picture(1, "PNG"), "test/NORMAL/a.jpg": picture(2)},
            "equal_stems",
            r"got 1 names of files or patients that stand in several folders and tell no patient \(a\); expected",
            18,
        ),
    ],
)
def test_a_suspicion_stops_the_run_unless_it_is_accepted(folder, files, name, says, left):
    source = folder(files)
    with pytest.raises(DataError, match=rf"^{says}.*, or confirm with data.accept: \[{name}\]\.$"):
        manifest_of(source)
    manifest, notes = manifest_of(source, [name])
    assert len(manifest.images) == left
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            THREE,
            r"no PNEUMONIA image for the test split \(16 images .* \(BACTERIA: 8, VIRUS: 8\)\); .*, or name them in",
        ),
        (
            folders(BOTH, ("sick", "well")),
            r"without class folders, .* \(it has test, train\); .*, or name its folders in",
        ),
        (folders(("train/", "val/"), ("NORMAL", "PNEUMONIA")), r"val can be test: data\.splits: \{test: \[val\]\}"),
        (
            folders(("train/", "training/"), ("NORMAL", "PNEUMONIA")),
            "with train and training, both train; expected one",
        ),
        (
            {"chest_xray\\train\\NORMAL\\a.jpeg": b"x"},
            "with back slashes in the names of files .*; unpack the archive again",
        ),
    ],
)
def test_mistakes_say_what_was_got_and_what_to_do(folder, files, says):
    with pytest.raises(DataError, match=says) as e:
        manifest_of(folder(files))
    assert "\n" not in str(e.value)
    assert "; expected" in str(e.value)


IN_NAMES = {
    f"{split}/{folder}/{name.format(i)}": picture(f"{split}{name}{i}", "PNG")
    for split in ("train", "test")
    for folder, name in (
        ("NORMAL", "IM-{:04d}-0001.png"),
        ("PNEUMONIA", "person{}_bacteria_1.png"),
        ("PNEUMONIA", "person{}_virus_2.png"),
    )
    for i in (range(8) if split == "train" else range(8, 12))
}
SEVERAL = {"normal": ["NORMAL"], "bacterial": ["bacteria"], "viral": ["virus"]}


def of_target(target, **more):
    return {"label": "_(bacteria|virus)_", "classes": Classes(several=SEVERAL, target=target), **more}


@pytest.mark.parametrize("target", SEVERAL)
def test_one_of_several_classes_is_measured_against_the_rest(folder, target):
    manifest, notes = manifest_of(folder(IN_NAMES, **of_target(target)))
    assert notes == []
    test = manifest.rows("test")
    assert test["class_name"].value_counts().to_dict() == {"normal": 4, "bacterial": 4, "viral": 4}
    assert (test["label"] == (test["class_name"] == target)).all()
    assert test["class_name"].map({"normal": "normal", "bacterial": "bacteria", "viral": "virus"}).eq(test.kind).all()


def test_ids_and_patients_of_images_do_not_depend_on_the_class_that_is_measured(folder):
    found = [load_manifest(folder(IN_NAMES, **of_target(target))).images.set_index("path") for target in SEVERAL]
    for other in found[1:]:
        assert other["image_id"].to_dict() == found[0]["image_id"].to_dict()
        assert other["patient_id"].to_dict() == found[0]["patient_id"].to_dict()


def test_a_name_without_the_label_has_the_folders_and_is_told_where_no_class_has_it(folder):
    source = folder({**IN_NAMES, "test/PNEUMONIA/other.png": picture("other", "PNG")}, **of_target("viral"))
    with pytest.raises(DataError, match=r"1 images whose label is in no class \(PNEUMONIA\)"):
        manifest_of(source)
    two = folder(IN_NAMES, label="_(bacteria|virus)_", classes=Classes(positive=["virus"], ignore=["bacteria"]))
    manifest, (note,) = manifest_of(two)
    assert manifest.rows("test")["kind"].value_counts().to_dict() == {"normal": 4, "virus": 4}
    assert manifest.images["class_name"].isna().all()
    assert "bacteria: 12" in note


def test_an_image_of_several_classes_is_that_which_is_measured_and_doubtful():
    class_map = ClassMap(Classes(several=SEVERAL, target="viral"))
    assert class_map.group(["bacteria", "virus"]) == "viral"
    assert class_map.of(["bacteria", "virus"])[0] == "PNEUMONIA"
    assert class_map.group(["bacteria", "NORMAL"]) == "normal"
    name, doubts = class_map.of(["bacteria", "NORMAL"])
    assert (name, [doubt.name for doubt in doubts]) == ("NORMAL", ["both_labels"])
    assert class_map.group(["COVID"]) is None
