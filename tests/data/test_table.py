"""Tables of labels as people have them: how rows become images, and what is told of the rest."""

import pickle
import unicodedata

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray.config import Classes, Columns, Splits
from cxr_ray.data.doubts import settle
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.table import TableSource
from cxr_ray.errors import DataError
from tests.builders.images import kaggle, picture, write

FILES = {f"scans/{i:02d}.png": picture(i, "PNG") for i in range(24)}
ROWS = pd.DataFrame(
    {
        "path": [f"scans/{i:02d}.png" for i in range(24)],
        "label": ["NORMAL", "PNEUMONIA"] * 12,
        "patient": [f"p{i // 2:02d}" for i in range(24)],
        "split": ["train"] * 12 + ["val"] * 4 + ["test"] * 8,
    }
)


@pytest.fixture
def table(tmp_path):
    """Write a table beside the images, in the format of its name; returns the source."""

    def written(rows=ROWS, name="labels.csv", files=FILES, **settings):
        write(tmp_path, files)
        path = tmp_path / name
        if isinstance(rows, str):
            path.write_text(rows)
        elif isinstance(rows, bytes):
            path.write_bytes(rows)
        elif name.endswith(".parquet"):
            rows.to_parquet(path)
        else:
            rows.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
        return TableSource(str(path), **settings)

    return written


def manifest_of(source, accept=(), **settings):
    manifest = load_manifest(source, own_val=True, **settings)
    return manifest, settle(manifest.doubts, accept)


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.csv.gz", "LABELS.CSV", "labels.parquet"])
def test_each_format_gives_the_same_manifest(table, name):
    manifest, notes = manifest_of(table(name=name))
    images = manifest.images.sort_values("path", ignore_index=True)
    assert list(images["path"]) == list(ROWS["path"])
    assert list(images["label"]) == [0, 1] * 12
    assert list(images["patient_id"]) == list(ROWS["patient"])
    assert list(images["split"]) == list(ROWS["split"])
    assert manifest.errors == []
    assert notes == []


def test_text_of_parquet_that_is_not_marked_as_text_is_text(table, tmp_path):
    patients = [b"" if i % 6 == 0 else f"p{i // 2:02d}".encode() for i in range(24)]
    marked = ROWS.assign(patient=[p.decode() for p in patients])
    expected, told = manifest_of(table(marked, "marked.parquet"), ["no_patient"])
    assert any("patient" in line for line in told)
    columns = {name: [str(cell).encode() for cell in ROWS[name]] for name in ROWS} | {"patient": patients}
    pq.write_table(pa.table(columns), tmp_path / "bytes.parquet")
    assert pq.read_schema(tmp_path / "bytes.parquet").field("path").type == pa.binary()
    manifest, told_too = manifest_of(TableSource(str(tmp_path / "bytes.parquet")), ["no_patient"])
    pd.testing.assert_frame_equal(manifest.images, expected.images)
    assert [line.replace("bytes", "marked") for line in told_too] == told


def test_a_source_travels_to_a_worker(table):
    source = table()
    entries = source.list()
    assert pickle.loads(pickle.dumps(source)).read(entries[0].path) == FILES[entries[0].path]


def test_val_is_taken_from_train_where_asked(table):
    manifest = load_manifest(table())
    assert "val split (4 images) is not used" in " ".join(manifest.notes)
    assert manifest.images["split"].value_counts().to_dict() == {"test": 8, "train": 10, "val": 2}


def test_a_table_without_splits_is_split_by_patient(table):
    manifest, _ = manifest_of(table(ROWS.drop(columns="split")))
    assert set(manifest.images["split"]) == {"train", "val", "test"}
    assert (manifest.images.groupby("patient_id")["split"].nunique() == 1).all()


def test_without_a_column_of_patients_the_names_of_the_files_tell_them(table):
    files = kaggle()
    rows = pd.DataFrame({"path": list(files), "label": ["PNEUMONIA" if "PNEU" in f else "NORMAL" for f in files]})
    rows["split"] = rows["path"].str.split("/").str[0]
    manifest, _ = manifest_of(table(rows, files=files), training=False)
    assert set(manifest.rows("test")["patient_id"]) >= {"IM-0500", "virus-500", "bacteria-501"}


def test_columns_of_one_label_each_are_read_together(table):
    rows = ROWS.assign(Pneumonia=["0", "1.0"] * 12, Healthy=["1", ""] * 12).drop(columns="label")
    rows.loc[0, ["Pneumonia", "Healthy"]] = ["-1", ""]
    columns = Columns(labels=["Healthy", "Pneumonia"])
    classes = Classes(negative=["Healthy"], positive=["Pneumonia"], ignore=["Pneumonia=-1"])
    manifest, notes = manifest_of(table(rows, columns=columns, classes=classes))
    assert manifest.images.sort_values("path")["label"].tolist() == [1] + [0, 1] * 11
    assert notes == ["Images left out, as data.classes.ignore says: 1 (Pneumonia=-1)."]


def test_one_class_against_the_rest_takes_every_other_label(table):
    rows = ROWS.assign(label=["No Finding|Support Devices", "Edema|Pneumonia"] * 12)
    classes = Classes(negative=["*"], positive=["Pneumonia"])
    manifest, notes = manifest_of(table(rows, columns=Columns(separator="|"), classes=classes))
    assert manifest.images.sort_values("path")["label"].tolist() == [0, 1] * 12
    assert notes == ["Images whose label no class names, in the class of *: 12 (No Finding and Support Devices: 12)."]


def test_rows_of_one_path_are_one_image_with_the_labels_of_all(table):
    boxes = pd.concat([ROWS, ROWS[ROWS["label"] == "PNEUMONIA"]])
    manifest, notes = manifest_of(table(boxes))
    assert len(manifest.images) == 24
    assert notes == []


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("scans/00.png", "scans/00.png"),
        ("dataset-small/scans/00.png", "scans/00.png"),
        ("scans\\00.png", "scans/00.png"),
        ("00.png", "scans/00.png"),
        ("00", "scans/00.png"),
        ("scans/00", "scans/00.png"),
    ],
)
def test_a_path_is_that_of_a_file_or_the_end_of_one(table, written, found):
    rows = ROWS.assign(path=[written, *ROWS["path"][1:]])
    manifest, notes = manifest_of(table(rows))
    assert sorted(manifest.images["path"]) == sorted(ROWS["path"])
    plain = written.replace("\\", "/")
    assert notes == (
        [] if plain == found else [f"Images found by the end of their path, not by the whole: 1 ({plain} as {found})."]
    )


def test_absolute_paths_below_the_folder_are_found(table, tmp_path):
    manifest, _ = manifest_of(table(ROWS.assign(path=[f"{tmp_path}/{path}" for path in ROWS["path"]])))
    assert sorted(manifest.images["path"]) == sorted(ROWS["path"])


def test_values_of_a_named_label_are_no_other_label_until_they_are_named(table):
    rows = ROWS.assign(Pneumonia=["0", "1", "-1.0", "0.9"] * 6)

    def source(negative):
        classes = Classes(negative=negative, positive=["Pneumonia"])
        return table(rows, columns=Columns(labels=["Pneumonia"]), classes=classes)

    with pytest.raises(DataError, match=r"12 images whose label is in no class \(Pneumonia=-1: 6, Pneumonia=0.9: 6\)"):
        manifest_of(source(["*"]))
    manifest, notes = manifest_of(source(["*", "Pneumonia=-1", "Pneumonia=0.9"]))
    assert notes == ["Images whose label no class names, in the class of *: 6 (no label: 6)."]
    assert manifest.images["label"].sum() == 6


REST = Classes(negative=["*"], positive=["Pneumonia"])
VINDR = Classes(negative=["Healthy"], positive=["Pneumonia"], ignore=["*"])


@pytest.mark.parametrize(
    ("classes", "cells", "about", "label"),  # cells: Pneumonia, Healthy of two rows of one image
    [
        (REST, ("10", "00"), "Pneumonia=0 and Pneumonia=1", 1),
        (VINDR, ("00", "10"), "Pneumonia=0 and Pneumonia=1", 1),
        (VINDR, ("01", "00"), "Healthy=0 and Healthy=1", 0),
        (VINDR, ("10", "01"), "Healthy and Pneumonia", 1),
        (REST, ("10", "-0"), "Pneumonia=-1 and Pneumonia=1", 1),
    ],
)
def test_rows_of_one_image_that_contradict_each_other_stop_the_run(table, classes, cells, about, label):
    def source(first, second):
        rows = [f"{path},{i % 2},{1 - i % 2},{split}" for i, (path, split) in enumerate(ROWS[["path", "split"]].values)]
        rows[0] = f"scans/00.png,{first},test"
        rows.append(f"scans/00.png,{second},test")
        text = "\n".join(["path,Pneumonia,Healthy,split", *rows])
        return table(text, columns=Columns(labels=["Pneumonia", "Healthy"]), classes=classes)

    def text(row):
        return ",".join(row.replace("-", "x")).replace("x", "-1")

    asked = source(*map(text, cells))
    with pytest.raises(DataError, match=rf"got 1 images .* that contradict each other \({about}\); .*\[both_labels\]"):
        manifest_of(asked, training=False)
    manifest, notes = manifest_of(asked, ["both_labels"], training=False)
    assert manifest.images.set_index("path")["label"]["scans/00.png"] == label
    assert any(f"contradict each other ({about})" in note for note in notes)
    _, notes = manifest_of(source("1,0", "1,"), training=False)  # an empty cell contradicts nothing
    assert not any("contradict" in note for note in notes)


def test_an_uncertain_row_contradicts_one_of_a_class(table):
    rows = ROWS.assign(label=[0, 1] * 12)
    rows = pd.concat([rows, rows.iloc[1:2].assign(label=-1)])
    with pytest.raises(DataError, match=r"got 1 images .* contradict each other \(-1 and 1\)"):
        manifest_of(table(rows))


def test_what_tells_no_patient_and_no_path_is_said(table):
    with pytest.raises(DataError, match=r"rows whose image is not there \(a row without a path\)"):
        manifest_of(table(ROWS.assign(path=["", *ROWS["path"][1:]])))
    with pytest.raises(DataError, match="9 images whose patient is not told"):
        manifest_of(table(ROWS.assign(patient=["NaN", "None", "n/a", "p1"] * 3 + [f"p{i}" for i in range(2, 14)])))


def test_a_column_of_lists_is_refused(tmp_path):
    pd.DataFrame({"path": ["a.png"], "label": [["Edema", "Mass"]]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the column 'label' holds lists, not one value a row"):
        TableSource(str(tmp_path / "t.parquet")).list()


def test_columns_that_may_be_meant_and_are_not_read_are_told(table):
    _, notes = manifest_of(table(ROWS.rename(columns={"patient": "Patient ID", "split": "Split"})))
    expected = (
        "not read, though their name may be meant: 2 (Patient ID for data.columns.patient, Split for data.columns.sp"
    )
    assert expected in notes[0]


def test_names_of_splits_that_the_table_lacks_are_refused(table):
    with pytest.raises(DataError, match=r"^got data.splits.test: .*holdout.*has none \(it has test, train, val\)"):
        table(splits=Splits(test=["holdout"])).list()


def test_names_of_splits_are_those_of_data_splits(table):
    rows = ROWS.assign(split=["TRAINING"] * 12 + ["dev"] * 4 + ["2"] * 8)
    manifest, _ = manifest_of(table(rows, splits=Splits(test=["2"])))
    assert manifest.images["split"].value_counts().to_dict() == {"train": 12, "test": 8, "val": 4}


def test_images_in_no_row_are_told_and_not_used(table):
    manifest, notes = manifest_of(table(files={**FILES, "scans/more.png": picture("m", "PNG"), "readme.md": b"x"}))
    assert len(manifest.images) == 24
    assert notes == ["Image files that stand in no row of the table, not used: 1 (scans/more.png)."]


OTHER = ROWS.assign(label=["NORMAL", "PNEUMONIA"] * 10 + ["COVID", "COVID", "TB", "COVID"])


@pytest.mark.parametrize(
    ("rows", "name", "says", "left"),
    [
        (
            OTHER,
            "other_labels",
            r"got 4 images whose label is in no class \(COVID: 3, TB: 1\); expected each .*; name",
            20,
        ),
        (
            ROWS.assign(label=["NORMAL|PNEUMONIA", *ROWS["label"][1:]]),
            "both_labels",
            r"got 1 images with labels of both classes, or rows .* \(NORMAL and PNEUMONIA\); expected labels of one",
            24,
        ),
        (
            ROWS.assign(path=["scans/gone.png", *ROWS["path"][1:]]),
            "missing_files",
            r"got 1 rows whose image is not there \(scans/gone.png\); expected a file for each row",
            23,
        ),
        (
            ROWS.assign(patient=["p11", *ROWS["patient"][1:]]),
            "shared_patients",
            r"got 1 patients in more than one split \(p11\); expected each patient in one split",
            24,
        ),
    ],
)
def test_a_suspicion_stops_the_run_unless_it_is_accepted(table, rows, name, says, left):
    source = table(rows, columns=Columns(separator="|"))
    with pytest.raises(DataError, match=rf"^{says}.*, or confirm with data.accept: \[{name}\]\.$"):
        manifest_of(source)
    manifest, notes = manifest_of(source, [name])
    assert len(manifest.images) == left
    assert len(notes) >= 1


@pytest.mark.parametrize(
    ("rows", "name", "says"),
    [
        ("", "labels.csv", "which is no table .*; expected one row of names and one for each image; save it as CSV"),
        ("path,label\n", "labels.csv", "without rows; expected one for each image"),
        ("path,label\na.png,0,1\n", "labels.csv", "which is no table .*; expected one row of names"),
        (b"path,label\n\xff\xfe,0\n", "labels.csv", "which is no table .*utf-8.*; save it as CSV \\(UTF-8\\)"),
        (b"no parquet", "labels.parquet", "which is no table"),
        ("path,label,label\na.png,0,1\n", "labels.csv", "with the column 'label' twice; expected each once; rename"),
        (
            "file,label\na.png,0\n",
            "labels.csv",
            r"without the column 'path'\. Expected one of: file, label\. Set data\.columns\.path",
        ),
        (
            "path,labels\na.png,0\n",
            "labels.csv",
            r"without the column 'label'\. Did you mean 'labels'\? .*data\.columns\.label",
        ),
        ("path,label\na.png,0\n", "labels.xlsx", "as a table; expected .csv, .*; save it as one of them"),
        (
            "path,label,split\nscans/00.png,0,holdout\n",
            "labels.csv",
            "with the split 'holdout'; expected one of train,",
        ),
        ("path,label,split\nscans/00.png,0,\n", "labels.csv", "with the split ''; expected one of train,"),
        (
            "path,label,split\nscans/00.png,0,train\nscans/00.png,0,test\n",
            "labels.csv",
            "with scans/00.png as split test and as train; expected one split for each image; correct",
        ),
        (
            "path,label\nscans/00.png,0\nother/scans/00.png,1\n",
            "labels.csv",
            "with other/scans/00.png for the one file scans/00.png; expected one path for each file; write it",
        ),
        (
            "path,label\nscans/00.png,COVID\nscans/01.png,0\n",
            "labels.csv",
            r"with no PNEUMONIA image for the test split \(1 images whose label is in no class \(COVID\)\); ex",
        ),
    ],
)
def test_mistakes_say_what_was_got_and_what_to_do(table, rows, name, says):
    source = table(rows, name)
    with pytest.raises(DataError, match=f"got {source.path},? {says}") as e:
        manifest_of(source, training=False)
    assert "\n" not in str(e.value)


def test_a_table_or_a_folder_that_is_not_there_is_a_data_error(table, tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv, which cannot be opened .*; expected a table; give its path"):
        TableSource(str(tmp_path / "gone.csv")).list()
    with pytest.raises(DataError, match=r"data\.images: got .*gone, which cannot be listed .*; expected the folder"):
        table(images=str(tmp_path / "gone")).list()


def test_a_patient_is_found_by_a_pattern_a_folder_or_none(table):
    rows = ROWS.drop(columns="patient")
    by_pattern, _ = manifest_of(table(rows, patient=r"scans/(\d)(?=\d)"), ["shared_patients"])
    assert set(by_pattern.rows("test")["patient_id"]) == {"1", "2"}
    by_file, _ = manifest_of(table(rows, patient="file"))
    assert set(by_file.images["patient_id"]) == set(ROWS["path"])
    with pytest.raises(DataError, match=r"got 14 images whose patient is not told \(scans/00\.png, .* and 11 more\)"):
        manifest_of(table(rows, patient=r"scans/(1\d)"))


def test_an_empty_cell_of_patients_is_told(table):
    source = table(ROWS.assign(patient=["", *ROWS["patient"][1:]]))
    with pytest.raises(DataError, match=r"got 1 images whose patient is not told \(scans/00\.png\)"):
        manifest_of(source)


def test_rows_may_be_chosen_by_other_columns(table):
    rows = ROWS.assign(view=["PA"] * 22 + ["AP", "LL"])
    manifest, notes = manifest_of(table(rows, columns=Columns(where={"view": ["pa", "LL"]})))
    assert len(manifest.images) == 23
    assert notes == ["Images left out, as data.columns.where says: 1 (scans/22.png)."]
    with pytest.raises(
        DataError, match=r"without the column 'views'\. Did you mean 'view'\?.*data\.columns\.where\.views"
    ):
        table(rows, columns=Columns(where={"views": "PA"})).list()


def test_a_relative_path_is_that_of_the_folder_where_the_run_began(table, tmp_path, monkeypatch):
    table()
    monkeypatch.chdir(tmp_path)
    source = TableSource("labels.csv")
    monkeypatch.chdir("/")
    assert source.read(source.list()[0].path) == FILES["scans/00.png"]
    assert len(TableSource(f"file://{tmp_path}/labels.csv").list()) == 24


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_an_empty_label_beside_true_and_false_is_one_image_without_a_label(table, name):
    rows = ROWS.assign(label=pd.Series([None, True, *[False, True] * 11], dtype=object))
    with pytest.raises(DataError, match=r"^got 1 images whose label is in no class \(no label\)"):
        manifest_of(table(rows, name))
    manifest, notes = manifest_of(table(rows, name), ["other_labels"])
    assert manifest.images["label"].sum() == 12
    assert "Labels True and False, taken as 1 and 0: 1 (label)." in notes


def test_large_numbers_of_patients_beside_an_empty_cell_are_exact(table, tmp_path):
    numbers = [None, *range(12345678901234567, 12345678901234567 + 23)]
    columns = ROWS.drop(columns=["patient", "split"]).to_dict("list") | {"patient": pa.array(numbers, pa.int64())}
    source = table(name="large.parquet")
    pq.write_table(pa.table(columns), source.path)
    manifest, _ = manifest_of(source, ["no_patient"])
    assert manifest.images["patient_id"].nunique() == 24


def test_labels_of_true_and_false_alone_are_1_and_0(table):
    rows = ROWS.assign(label=[False, True] * 12)
    manifest, notes = manifest_of(table(rows))
    assert manifest.images["label"].sum() == 12
    assert notes == ["Labels True and False, taken as 1 and 0: 1 (label)."]
    named, notes = manifest_of(table(rows, classes=Classes(negative=["True"], positive=["False"])))
    assert notes == []
    assert (named.images["label"].to_numpy() != manifest.images["label"].to_numpy()).all()
    with pytest.raises(DataError, match="label is in no class"):
        manifest_of(table(rows.assign(label=["maybe", *rows["label"][1:]])))


@pytest.mark.parametrize("unknown", ["unknown", "-", "ANONYMOUS", "n/a", "None", "0"])
def test_names_that_stand_for_no_patient_are_no_patient(table, unknown):
    source = table(ROWS.assign(patient=[unknown] * 5 + [f"p{i // 2}" for i in range(19)]))
    with pytest.raises(DataError, match="got 5 images whose patient is not told"):
        manifest_of(source)


def test_a_patient_may_be_0_and_whole_numbers_are_the_same_as_floating_point(table):
    numbers = [f"{i // 2}" if i % 2 else f"{i // 2}.0" for i in range(24)]
    manifest, notes = manifest_of(table(ROWS.assign(patient=numbers)))
    assert notes == []
    assert set(manifest.images["patient_id"]) == {str(n) for n in range(12)}


@pytest.mark.parametrize(
    ("name", "key"), [("set", "split"), ("subset", "split"), ("is_test", "split"), ("subject_id", "patient")]
)
def test_other_names_of_columns_are_told(table, name, key):
    _, notes = manifest_of(table(ROWS.rename(columns={key: name})))
    assert f"1 ({name} for data.columns.{key})" in notes[0]


def test_a_file_is_found_in_whichever_form_its_name_is_written(table):
    files = {unicodedata.normalize("NFD", f"é{i:02d}.png"): picture(i, "PNG") for i in range(24)}
    rows = ROWS.assign(path=[unicodedata.normalize("NFC", f"é{i:02d}.png") for i in range(24)])
    manifest, _ = manifest_of(table(rows, files=files))
    assert len(manifest.images) == 24
