"""cxr-ray explain: maps and pictures of a folder, their measurement, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxr_ray import library
from cxr_ray.commands import explain
from cxr_ray.measure.given import given
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec

SIZE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "mine.safetensors"
    path.write_bytes(checkpoints.to_bytes(networks.build("resnet18", ModelSpec("resnet18", SIZE))))
    return str(path)


@pytest.fixture
def said(capsys, tmp_path, model):
    """Runs the command; the exit code, lines on stdout, lines on stderr."""

    def run(*argv: str):
        code = explain.main([model, *argv, "--out", str(tmp_path / "out")])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_each_image_has_the_map_of_the_library_and_a_picture(said, tiny_folder, tmp_path, model):
    code, lines, err = said(str(tiny_folder / "test"), "--explainer", "gradcam", "centre", "--limit", "4")
    assert (code, err) == (0, [])
    assert lines == [
        "Images: 4 of 12, labels by their folders.",
        f"Maps: {tmp_path}/out/maps; pictures: {tmp_path}/out/pictures",
    ]
    files = sorted((tmp_path / "out" / "maps" / "gradcam").rglob("*.npy"))
    assert len(files) == 4
    assert {f.parent.name for f in files} == {"NORMAL", "PNEUMONIA"}
    loaded = checkpoints.load(model)
    for file in files:
        image = tiny_folder / "test" / file.relative_to(tmp_path / "out" / "maps" / "gradcam").with_suffix(".png")
        (expected,) = library.explain(loaded, given(loaded, [str(image)], loaded.spec).pixels, spec=loaded.spec)
        np.testing.assert_allclose(np.load(file), expected, rtol=1e-4, atol=1e-5)
    pictures = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    assert [Image.open(p).size[1] for p in pictures] == [Image.open(pictures[0]).size[1]] * 4
    assert len(pictures) == 4


def test_measured_maps_end_with_a_sentence_that_claims_nothing_of_few_images(said, tiny_folder, tmp_path):
    code, lines, err = said(str(tiny_folder / "test"), "--limit", "6", "--measure", "--quiet")
    assert (code, err) == (0, [])
    assert lines[0] == "In deletion area, log-odds, fill mean, 6 images:"
    assert lines[1] == "Grad-CAM on mine: not tested against any control (under 20 patients)."
    assert lines[2] == f"Tables: {tmp_path}/out/tables"
    summary = pd.read_parquet(tmp_path / "out" / "tables" / "summary")
    assert set(summary["control"]) == {"none", *explain.CONTROLS}
    assert set(summary["bucket"]) > {"all"}


def test_images_without_class_folders_have_no_labels(tiny_folder, tmp_path):
    for i, file in enumerate(sorted((tiny_folder / "test" / "PNEUMONIA").glob("*.png"))):
        shutil.copy(file, tmp_path / f"scan{i}.png")
    chosen = explain.choose([str(tmp_path), str(tmp_path / "scan0.png")][:1], 100, 0)
    assert (len(chosen.paths), chosen.all, chosen.labels) == (6, 6, None)
    assert explain.choose([str(tmp_path / "scan0.png")], 16, 0).names == ["scan0"]


def test_the_choice_depends_on_the_seed_alone(tiny_folder):
    root = str(tiny_folder / "test")
    first = explain.choose([root], 4, 0)
    assert explain.choose([f"{root}/PNEUMONIA", f"{root}/NORMAL"], 12, 0).all == 12
    assert first.names == explain.choose([root], 4, 0).names
    assert first.labels is not None
    assert sorted(first.labels) == [0, 0, 1, 1]
    assert any(first.names != explain.choose([root], 4, seed).names for seed in range(1, 6))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere, which is not there"),
        (["{empty}"], "where no image is"),
        (["{data}", "--explainer", "grdcam"], "Did you mean 'gradcam'?"),
        (["{data}", "--limit", "0"], "--limit: got 0"),
        (["{data}", "{data}"], "two images named"),
    ],
)
def test_a_wrong_request_is_a_sentence(said, tiny_folder, tmp_path, argv, message):
    (tmp_path / "empty").mkdir()
    named = {"empty": tmp_path / "empty", "data": tiny_folder / "test"}
    code, _, (error,) = said(*(a.format(**named) for a in argv))
    assert code == 2
    assert message in error
    assert not list((tmp_path / "out").rglob("*.npy"))
