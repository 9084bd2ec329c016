"""Files that are named by a URI with options, as object stores need them (s3://bucket/labels.csv?region=eu-west-1)."""

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_ray.data.folder import FolderSource
from cxr_ray.data.map_files import MapFiles
from cxr_ray.data.sources import changes_of, source_of
from cxr_ray.data.table import TableSource
from cxr_ray.data.truth import load_truth, truth_of
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.sweepfile import resolve
from tests.builders.images import picture, write
from tests.builders.networks import varied_resnet18

OPTIONS = "?region=eu-west-1"  # of no meaning to local files, which are read all the same
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def uri(path) -> str:
    return f"file://{path}{OPTIONS}"


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.csv.gz", "labels.parquet"])
def test_a_table_and_the_images_beside_it(tmp_path, name):
    write(tmp_path, {f"{i}.png": picture(i, "PNG") for i in range(4)})
    rows = pd.DataFrame({"path": [f"{i}.png" for i in range(4)], "label": ["NORMAL", "PNEUMONIA"] * 2})
    if name.endswith(".parquet"):
        rows.to_parquet(tmp_path / name)
    else:
        rows.to_csv(tmp_path / name, index=False, sep="\t" if ".tsv" in name else ",")
    named = {key.removeprefix("data."): value for key, value in changes_of(uri(tmp_path / name)).items()}
    source = source_of(resolve({"data": named}).data, seed=0)
    assert isinstance(source, TableSource)
    assert sorted(entry.path for entry in source.list()) == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"), [("/maps", ["a.npy", "deep/b.npy"]), ("/maps/*.npy", ["a.npy"]), ("/all.npz", ["c"])]
)
def test_maps_from_outside(tmp_path, pattern, expected):
    for name in ("a", "deep/b"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "maps" / f"{name}.npy", VALUES)
    np.savez(tmp_path / "all.npz", c=VALUES)
    found = MapFiles("mine", uri(f"{tmp_path}{pattern}"))
    assert found.list() == expected
    with found.reader() as reader:
        np.testing.assert_array_equal(reader(expected[0]), VALUES)


@pytest.mark.parametrize("name", ["boxes.csv", "boxes.tsv"])
def test_boxes_of_experts(tmp_path, name):
    write(tmp_path, {"images/test/NORMAL/a.png": picture(0, "PNG", 20)})
    lines = "image,x,y,width,height\na,0,0,10,20\n"
    (tmp_path / name).write_text(lines.replace(",", "\t") if name.endswith(".tsv") else lines)
    source = FolderSource(str(tmp_path / "images"))
    boxes = truth_of(resolve({"truth": {"path": uri(tmp_path / name)}}))
    assert boxes is not None
    found, errors = load_truth(source, boxes, [{"path": "test/NORMAL/a.png", "image_id": "a"}], 20)
    assert errors == []
    assert found["truth"][0, :, :10].all()
    assert not found["truth"][0, :, 10:].any()


@torch.no_grad()
def test_a_checkpoint_and_its_spec(tmp_path):
    model = Classifier(varied_resnet18(2), ModelSpec("resnet18", 64, mean=(0.1, 0.2, 0.3)))
    (tmp_path / "mine.safetensors").write_bytes(checkpoints.to_bytes(model))
    named = uri(tmp_path / "mine.safetensors")
    saved = checkpoints.saved_spec(named)
    assert saved is not None
    assert saved.mean == (0.1, 0.2, 0.3)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(checkpoints.load(named, saved)(images), model(images), atol=1e-5)
