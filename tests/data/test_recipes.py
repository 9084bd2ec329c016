"""The recipes of docs/howto/dataset.md, each on made-up files in the layout that its data set documents."""

import re
from pathlib import Path

import pandas as pd
import pytest

from cxr_ray.data.doubts import settle
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.sources import source_of, validates_own
from cxr_ray.sweepfile import resolve
from cxr_ray.yamlfile import parse_yaml
from tests.builders.images import picture, write

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "dataset.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))


def nih():
    rows, files = ["Image Index,Finding Labels,Follow-up #,Patient ID,View Position"], {}
    for i in range(12):
        for k, view in ((0, "PA"), (1, "AP")):
            name = f"{i + 1:08d}_{k:03d}.png"
            files[f"nih/images_001/images/{name}"] = picture(name, "PNG")
            finding = ("No Finding", "Infiltration|Pneumonia", "Edema")[i % 3]
            rows.append(f"{name},{finding},{k},{i + 1},{view}")
    return {**files, "nih/Data_Entry_2017.csv": "\n".join(rows).encode()}, {"negative": 4, "positive": 4, "patients": 8}


def chexpert():
    rows, files = ["Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pneumonia"], {}
    for i in range(12):
        for view in ("frontal", "lateral"):
            path = f"CheXpert-v1.0-small/train/patient{i + 1:05d}/study1/view1_{view}.jpg"
            files[path] = picture(path)
            rows.append(f"{path},Male,68,{view.title()},AP,{('1.0,', ',1.0', ',-1.0')[i % 3]}")
    table = "\n".join(rows).encode()
    return {**files, "CheXpert-v1.0-small/train.csv": table}, {"negative": 4, "positive": 4, "patients": 8}


def rsna():
    rows, files = ["patientId,x,y,width,height,Target"], {}
    for i in range(8):
        name = f"{i:08x}-6bf1-40ed-b54c-ac657f8495c5"
        files[f"rsna/stage_2_train_images/{name}.dcm"] = picture(name)
        rows += [f"{name},264,152,213,379,1", f"{name},562,152,256,453,1"] if i % 2 else [f"{name},,,,,0"]
    table = "\n".join(rows).encode()
    return {**files, "rsna/stage_2_train_labels.csv": table}, {"negative": 4, "positive": 4, "patients": 8}


def vindr():
    rows, files = ["image_id,rad_id,Edema,Pneumonia,No finding"], {}
    for i in range(9):
        name = f"{i:032x}"
        files[f"vindr-cxr/train/{name}.dicom"] = picture(name)
        cells = ("0,0,1", "0,1,0", "1,0,0")[i % 3]
        rows += [f"{name},R{k},{cells}" for k in (8, 9, 10)]
    rows[-9] = rows[-9].replace("0,0,1", "0,1,0")  # one radiologist of three sees pneumonia
    table = "\n".join(rows).encode()
    return {**files, "vindr-cxr/annotations/image_labels_train.csv": table}, {
        "negative": 2,
        "positive": 4,
        "patients": 6,
    }


def covidx():
    files = {}
    for split in ("train", "test"):
        rows = []
        for i in range(12):
            name, label = f"{split}{i}.png", ("normal", "COVID-19", "pneumonia")[i % 3]
            files[f"covidx/{split}/{name}"] = picture(name, "PNG")
            rows.append(f"{split}-p{i} {name} {label} cohen")
        files[f"covidx/{split}.txt"] = "\n".join(rows).encode()
    return files, {"negative": 8, "positive": 8, "patients": 16}


@pytest.mark.parametrize(
    ("title", "made"),
    [
        ("NIH ChestX-ray14", nih),
        ("CheXpert", chexpert),
        ("RSNA pneumonia challenge", rsna),
        ("VinDr-CXR", vindr),
        ("COVIDx", covidx),
    ],
)
def test_a_recipe_reads_its_data_set(tmp_path, monkeypatch, title, made):
    files, expected = made()
    write(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    if title == "COVIDx":
        exec(re.findall(r"```py\n(.*?)```", SECTIONS[title], re.DOTALL)[0], {"pd": pd})
    text = re.findall(r"```yaml\n(.*?)```", SECTIONS[title], re.DOTALL)[0]
    sweep = resolve({**parse_yaml(text, title), "checkpoints": {"m": {"path": "m.pt"}}})
    manifest = load_manifest(source_of(sweep.data, 0), training=False, own_val=validates_own(sweep.data))
    notes = settle(manifest.doubts, sweep.data.accept)
    assert any("contradict" in note for note in notes) == (title == "VinDr-CXR")
    images = manifest.images
    assert manifest.errors == []
    assert (images["label"] == 0).sum() == expected["negative"]
    assert (images["label"] == 1).sum() == expected["positive"]
    assert images["patient_id"].nunique() == expected["patients"]


def test_the_published_split_of_nih_is_that_of_its_list(tmp_path, monkeypatch):
    files, _ = nih()
    names = [Path(path).name for path in files if path.endswith("_000.png")]
    write(tmp_path, {**files, "nih/test_list.txt": "\n".join(names[:6]).encode()})
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```py\n(.*?)```", SECTIONS["NIH ChestX-ray14"], re.DOTALL)[0], {"pd": pd, "Path": Path})
    table = pd.read_csv("nih/labels.csv").set_index("Image Index")["split"]
    assert set(table.index[table == "test"]) == set(names[:6])


def test_every_recipe_is_tested():
    assert list(SECTIONS) == ["NIH ChestX-ray14", "CheXpert", "RSNA pneumonia challenge", "VinDr-CXR", "COVIDx"]
