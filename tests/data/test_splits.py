import random

import pandas as pd
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cxr_ray import schemas
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.splits import choose, hold_out
from cxr_ray.errors import DataError
from tests.builders.images import MemorySource, gradient, kaggle, picture, write


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
        ("test", 0): 2,
        ("test", 1): 2,
        ("train", 0): 7,
        ("train", 1): 7,
        ("val", 0): 1,
        ("val", 1): 1,
    }
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


def test_duplicates_do_not_count_towards_val_share():
    files = kaggle(patients=20)
    copies = {f"train/NORMAL/IM-0000-1{k:03d}.jpeg": files["train/NORMAL/IM-0000-0001.jpeg"] for k in range(20)}
    for seed in range(3):
        val = load_manifest(MemorySource(files | copies), seed=seed).rows("val")
        assert val["label"].value_counts().to_dict() == {0: 2, 1: 2}


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


@settings(max_examples=20, deadline=None)
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
            available = [sum(p.startswith(f"{split}/{c}/") for p in files) for c in schemas.CLASSES]
            assert len(part) == min(limit, sum(available))
            for label in (0, 1):
                assert (part["label"] == label).sum() >= min(limit // 2, available[label])

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
        patients = {p for p, own in rows if own == label}
        only = {p for p in patients if (p, 1 - label) not in rows}
        if patients:
            assert patients - held
        if len(only) > 1 and patients == only:
            got = sum(p in held for p, own in rows if own == label)
            assert got > 0
            enough = got + 1e-9 >= share * sum(own == label for _, own in rows)
            assert enough or len(patients - held) == 1


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
