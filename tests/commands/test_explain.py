"""cxr-ray explain: maps and pictures of a folder, their measurement, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxr_ray import library
from cxr_ray.commands import explain
from cxr_ray.config import IMAGENET_MEAN, IMAGENET_STD
from cxr_ray.measure.attribution.inputs import Explainer
from cxr_ray.measure.explainers import EXPLAINERS
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
        lines = [line for line in captured.out.splitlines() if not line.startswith("  ")]  # but for slow stages
        return code, lines, captured.err.splitlines()

    return run


def test_each_image_has_the_map_of_the_library_and_a_picture(said, tiny_folder, tmp_path, model):
    code, lines, err = said(str(tiny_folder / "test"), "--explainer", "gradcam", "centre", "--limit", "4")
    assert (code, err) == (0, [])
    assert lines == [
        "Images: 4 of 12, 4 patients by file names; labels by their folders: 2 NORMAL, 2 PNEUMONIA.",
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
    assert code == 0
    assert err == ["cxr_ray: 6 patients: under 20 the tables hold means without intervals, and nothing is claimed."]
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
        (["{data}", "--outputs", "NORMAL=0", "PNEUMONIA=0"], "--outputs: got NORMAL=0 PNEUMONIA=0; expected"),
        (["{data}", "--outputs", "Sick=0"], "--outputs: got Sick=0; expected"),
        (["{data}", "--mean", "0.5", "0.4"], "--mean: got 0.5 0.4; expected one number or three, none below 0"),
        (["{data}", "--std", "0"], "--std: got 0; expected one number or three, each above 0"),
    ],
)
def test_a_wrong_request_is_a_sentence(said, tiny_folder, tmp_path, argv, message):
    (tmp_path / "empty").mkdir()
    named = {"empty": tmp_path / "empty", "data": tiny_folder / "test"}
    code, _, (error,) = said(*(a.format(**named) for a in argv))
    assert code == 2
    assert message in error
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_masks_and_dark_images_are_told(said, tmp_path):
    for name, top in (("images/a.png", 4095), ("images/b.png", 65535), ("masks/a.png", 65535)):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.linspace(0, top, 32 * 32, dtype=np.uint16).reshape(32, 32)).save(file)
    code, lines, err = said(str(tmp_path / "data"), "--explainer", "edges")
    assert code == 0
    assert "Left out as masks, by name: 1 (masks/a.png)." in lines
    assert "1 of 2 images end far below their 16 bits" in err[0]
    assert ", as 12 bits would" in err[0]


def test_a_name_with_a_line_end_has_a_picture(said, tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a\nb.png")
    assert said(str(tmp_path / "a\nb.png"), "--explainer", "edges")[0] == 0


def test_a_size_that_no_sweep_takes_is_one_line(said, tmp_path):
    code, _, (line,) = said(str(tmp_path), "--size", "8")
    assert (code, line) == (
        2,
        "cxr_ray: --size: got 8; expected 32 to 1024 pixels; give the side of the model's input.",
    )


def test_the_maps_go_to_a_new_folder_of_this_machine(said, model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, _, (line,) = said(str(tmp_path))
    assert (code, line.partition("out, which")[2]) == (
        2,
        " is there already; expected a new folder; give another (--out PATH).",
    )
    assert explain.main([model, str(tmp_path), "--out", "s3://bucket/out"]) == 2
    assert "expected a folder of this machine" in capsys.readouterr().err


def test_classes_of_other_names_are_refused_until_the_outputs_are_given(tiny_folder, tmp_path, capsys):
    torch.manual_seed(0)
    state = networks.build("resnet18", ModelSpec("resnet18", SIZE)).network.state_dict()
    torch.save({"state_dict": state, "class_to_idx": {"Sick": 0, "Healthy": 1}}, tmp_path / "m.pt")
    argv = [str(tmp_path / "m.pt"), str(tiny_folder / "test"), "--size", str(SIZE), "--limit", "2"]
    assert explain.main([*argv, "--out", str(tmp_path / "a")]) == 2
    assert "names its classes Sick 0, Healthy 1; expected" in capsys.readouterr().err
    given = explain.parser().parse_args([*argv, "--outputs", "NORMAL=1", "PNEUMONIA=0"])
    spec = explain.load(given).spec
    assert (spec.columns, spec.mean, spec.std) == (((1,), (0,)), IMAGENET_MEAN, IMAGENET_STD)


def test_an_explainer_of_another_author_that_fails_is_one_line(said, tiny_folder, monkeypatch):
    def failing(model, inputs):
        raise IndexError("no such layer")

    monkeypatch.setitem(EXPLAINERS, "theirs", Explainer(failing, lambda size: (1, 0), "Theirs."))
    code, _, (line,) = said(str(tiny_folder / "test"), "--explainer", "theirs", "--limit", "2")
    assert (code, "got theirs, which fails on this network (no such layer)" in line) == (2, True)


def test_images_are_made_square_as_the_model_says(tmp_path, capsys):
    """Its training kept their proportions: squashed they would be others."""
    model = networks.build("resnet18", ModelSpec("resnet18", SIZE, fit="pad"))
    (tmp_path / "m.safetensors").write_bytes(checkpoints.to_bytes(model))
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, 2 * SIZE), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    argv = [str(tmp_path / "m.safetensors"), str(tmp_path / "wide.png"), "--explainer", "intensity"]
    assert explain.main([*argv, "--out", str(tmp_path / "out")]) == 0
    (made,) = (np.load(file) for file in (tmp_path / "out" / "maps").rglob("*.npy"))
    assert made.shape == (SIZE, SIZE)
    assert np.ptp(made[: SIZE // 4]) == 0, "black above a padded image"
    assert np.ptp(made[SIZE // 4 : -SIZE // 4]) > 0
    assert explain.main([*argv, "--fit", "crop", "--out", str(tmp_path / "other")]) == 2
    assert "--fit: got crop; expected pad, as " in capsys.readouterr().err


def test_the_normalisation_of_a_model_is_as_given(tmp_path):
    torch.save(networks.build("resnet18", ModelSpec("resnet18", SIZE)).network.state_dict(), tmp_path / "m.pt")
    argv = [str(tmp_path / "m.pt"), str(tmp_path), "--mean", "0.5", "--std", "0.1", "0.2", "0.3"]
    spec = explain.load(explain.parser().parse_args(argv)).spec
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_images_without_an_ending_are_explained_and_one_name_in_several_folders_is_no_patient(said, tmp_path):
    for n, name in enumerate(("p1/IM-0001-0001", "p2/IM-0001-0001", "p2/notes")):
        file = tmp_path / "scans" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((32, 32), 50 * n, np.uint8))
        image.save(file, "PNG") if name != "p2/notes" else file.write_text("no image")
    code, lines, err = said(str(tmp_path / "scans"), "--explainer", "edges")
    assert code == 0
    assert "Images: 2 of 2" in lines[0]
    assert "2 images have a name that stands in several folders (p1/IM-0001-0001)" in err[0]
    assert explain.choose([str(tmp_path / "scans")], 9, 0).patients == ["p1/IM-0001-0001", "p2/IM-0001-0001"]
