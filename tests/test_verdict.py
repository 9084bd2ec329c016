"""The command line cxr-ray verdict: its sentences, its exit codes and what it keeps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cxr_ray.verdict as verdict
from cxr_ray import results
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import local_verdict, progress
from cxr_ray.schemas import TABLES

SIZE = 32


def untrained() -> networks.Classifier:
    torch.manual_seed(0)
    return networks.build("resnet18", ModelSpec("resnet18", SIZE))


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "Mine 1.safetensors"
    path.write_bytes(checkpoints.to_bytes(untrained()))
    return str(path)


@pytest.fixture
def said(capsys, mine, tiny_folder):
    """Runs the command line; the exit code, lines on stdout, lines on stderr."""

    def run(*argv: str, checkpoint: str = mine, data: str = str(tiny_folder)):
        code = verdict.main(["--checkpoint", checkpoint, "--data", data, "--size", str(SIZE), *argv])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_it_ends_with_a_sentence_for_each_control_and_keeps_the_table(said, tmp_path):
    out = str(tmp_path / "kept")
    code, lines, err = said("--controls", "shifted", "mean_map", "--out", out, "--limit", "8")
    assert (code, err) == (0, [])
    assert lines[0].startswith("Is Grad-CAM on ")
    table = results.open_run(out).pandas("verdicts")
    assert list(table.columns) == list(TABLES["verdicts"].columns)
    assert list(table.control) == ["shifted", "mean_map"]
    assert (table.family_size == 2).all()
    assert table.n_available.nunique() == 1
    n = table.n_available[0]
    assert lines[-6:-4] == list(table.sentence)
    assert lines[-4].startswith("Compared by deletion area in log-odds, fill mean. Filled with mean, ")
    assert lines[-3].startswith(
        f"A sample: at most 8 images of test, balanced by label (--limit), so 8 test images of {n} patients."
    )
    assert lines[-2].startswith(
        "The chance of any wrong sentence is at most 0.05. Each interval holds at all times with "
    )
    assert table.sentence[0].startswith("Grad-CAM on mine_1: ")
    assert lines[-1] == f"Table: {out}/tables/verdicts"


def test_without_train_there_is_deletion_alone(said, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder / "test", tmp_path / "test")
    code, lines, _ = said("--controls", "shifted", data=str(tmp_path))
    assert code == 0
    assert "There are no validation images to check a fill on: maps are compared by deletion alone." in lines


def test_live_lines_are_drawn_in_place_on_a_terminal_alone(said, monkeypatch):
    _, lines, _ = said("--controls", "shifted")
    assert not any("\x1b" in line for line in lines)
    monkeypatch.setattr(progress, "in_place", lambda: True)
    _, lines, _ = said("--controls", "shifted")
    assert any("\x1b[2K" in line for line in lines)
    assert "\x1b" not in lines[-1]


def test_quiet_leaves_the_verdict_alone(said):
    code, lines, err = said("--controls", "shifted", "--quiet")
    assert (code, err) == (0, [])
    assert [line.split()[0] for line in lines] == ["Grad-CAM", "Compared", "The"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--explainer", "grdcam"), "--explainer: got 'grdcam'. Did you mean 'gradcam'?"),
        (("--controls", "shiftd"), "--controls: got 'shiftd'. Did you mean 'shifted'?"),
        (("--controls", "shifted", "shifted"), "--controls: got shifted twice; expected each once."),
        (("--size", "8"), "--size: got 8; expected a value greater than or equal to 32."),
        (("--arch", "resnet19"), "--arch: got 'resnet19'. Did you mean 'resnet18'?"),
        (("--out", "."), "--out: got ., which is not empty"),
    ],
)
def test_a_wrong_option_is_a_sentence(said, argv, expected):
    code, _, err = said(*argv)
    assert code == 2
    assert err[0].startswith(f"cxr_ray: {expected}")


def test_a_model_that_was_trained_on_padded_images_needs_them(said, tmp_path):
    model = networks.build("resnet18", ModelSpec("resnet18", SIZE, fit="pad"))
    (tmp_path / "padded.safetensors").write_bytes(checkpoints.to_bytes(model))
    code, _, (line,) = said(checkpoint=str(tmp_path / "padded.safetensors"))
    assert (code, line.partition(", as")[0]) == (2, "cxr_ray: --fit: got 'squash'; expected 'pad'")


def test_the_normalisation_reaches_the_sweep():
    argv = ["--checkpoint", "m.pt", "--data", "phantom", "--mean", "0.5", "0.4", "0.3", "--std", "0.25"]
    (given,) = verdict.sweep_of(verdict.parser().parse_args(argv)).checkpoints.values()
    assert (given.mean, given.std) == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


def test_one_of_several_classes_is_measured_against_the_rest(said, tiny_folder, tmp_path):
    """As the library's, whose spec says which of three outputs is the class."""
    data = tmp_path / "three"
    shutil.copytree(tiny_folder / "test", data / "test")
    for file in sorted((data / "test" / "PNEUMONIA").iterdir())[::2]:
        file.rename(file.with_name(file.name.replace("virus", "bacteria")))
    torch.manual_seed(0)
    network = networks.build("resnet18", ModelSpec("resnet18", SIZE, outputs=3)).network
    torch.save(network.state_dict(), tmp_path / "three.pt")
    classes = ["--classes", "normal=NORMAL", "bacterial=bacteria", "viral=virus", "--label", "_(bacteria|virus)_"]
    files = {"checkpoint": str(tmp_path / "three.pt"), "data": str(data)}
    code, lines, err = said(*classes, "--class", "viral", "--controls", "shifted", **files)
    assert (code, err) == (0, [])
    assert "three (resnet18): its outputs stand for normal, bacterial, viral, in the order of data.classes.sev" in str(
        lines
    )
    assert any(line.startswith("Grad-CAM on three: ") for line in lines)
    for argv, expected in [
        (classes, "--class: got none; expected one of normal, bacterial, viral"),
        (
            [*classes, "--class", "fungal"],
            "--classes: got 'fungal' as target; expected one of normal, bacterial, viral",
        ),
        ([*classes, "--class", "viral", "--outputs", "normal=x"], "--outputs: got 'x'; expected numbers of outputs"),
        ([*classes, "--class", "viral", "--outputs", "viral=7", "normal=0", "bacterial=1"], "got outputs 7 for"),
        ([], "got {checkpoint} with a head of 3 outputs"),
    ]:
        code, _, err = said(*argv, **files)
        assert code == 2, argv
        assert expected.format(**files) in err[0], err


def test_a_wrong_checkpoint_or_folder_is_a_sentence(said, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no")
    (tmp_path / "empty").mkdir()
    for options, expected in [
        ({"checkpoint": str(tmp_path / "none.pt")}, "none.pt, which is no file"),
        ({"checkpoint": str(tmp_path / "broken.pt")}, "broken.pt, which cannot be loaded safely"),
        ({"data": str(tmp_path / "nowhere")}, "nowhere, which is no folder"),
        ({"data": str(tmp_path / "empty")}, "empty without class folders"),
    ]:
        code, _, err = said(**options)
        assert code == 2
        assert len(err) == 1
        assert expected in err[0]


def test_a_folder_without_a_test_split_is_a_sentence(said, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder / "train", tmp_path / "train")
    code, _, err = said(data=str(tmp_path))
    assert code == 2
    assert "with no NORMAL image for the test split" in err[0]


def test_a_network_that_overflows_on_images_is_a_sentence(said, monkeypatch):
    """On the two images that a checkpoint is tried with it does not."""
    log_odds = networks.Classifier.log_odds
    monkeypatch.setattr(
        networks.Classifier, "log_odds", lambda self, x: log_odds(self, x) * (1 if len(x) == 2 else torch.inf)
    )
    code, _, err = said("--controls", "shifted")
    assert code == 2
    assert "which gives no finite score for any test image" in err[0]


def test_a_bucket_without_patients_is_a_sentence(said, monkeypatch):
    code, _, err = said("--controls", "shifted", "--bucket", "TP", "TN")  # it calls every image the same
    assert code == 2
    assert "has no patient; expected one that it has (all, " in err[0]


def test_ctrl_c_is_130(said, monkeypatch):
    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(local_verdict.LocalVerdict, "rounds", interrupted)
    code, _, err = said("--controls", "shifted")
    assert (code, err) == (130, ["cxr_ray: interrupted; nothing was kept."])
    assert not list(Path.cwd().glob(".work"))


def test_maps_from_outside_are_asked_about_alone(said, tiny_folder, tmp_path):
    for file in (tiny_folder / "test").rglob("*.png"):
        np.save(tmp_path / f"{file.stem}.npy", np.random.default_rng(list(file.stem.encode())).random((7, 7)))
    code, lines, err = said("--maps", f"{tmp_path}/*.npy", "--controls", "shifted", "mean_map")
    assert (code, err) == (0, [])
    assert lines[0].startswith(f"Is what {tmp_path}/*.npy shows on ")
    assert any(line.startswith("Maps maps: 12 of 12 test images have one in ") for line in lines)
    assert [line.split(":")[0] for line in lines if line.startswith("maps on mine_1")] == ["maps on mine_1"] * 2
    code, lines, (message,) = said("--maps", f"{tmp_path}/*.npz")
    assert code == 2
    assert message.startswith(f"cxr_ray: --maps: got {tmp_path}/*.npz, where no map is; expected a folder of .npy or ")


def test_the_labels_of_two_classes_may_be_named():
    argv = ["--checkpoint", "m.pt", "--data", "t.csv", "--classes", "NORMAL=negative,none", "PNEUMONIA=positive"]
    asked = verdict.sweep_of(verdict.parser().parse_args(argv)).data.classes
    assert (asked.negative, asked.positive, asked.several) == (["negative", "none"], ["positive"], {})
