"""Every mistake of a user is one sentence on stderr and exit code 2: no traceback, no Ray, nothing half written."""

import errno
import pickle
import re
import sys
import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from cxr_ray import sweep
from cxr_ray.config import Data
from cxr_ray.data import folder
from cxr_ray.data.sources import usages
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run import context, lock, training_data

pytestmark = pytest.mark.usefixtures("folder_with_a_sweep")


def test_a_command_without_mistakes_starts_ray(reaches_ray):
    assert reaches_ray("tiny.yaml")


# The sweep file


def test_all_mistakes_of_a_sweep_file_are_told_at_once(refusal):
    Path("bad.yaml").write_text(
        "trian: {epochs: 3}\n"
        "data: {sise: 224, fit: stretch}\n"
        "train: {epochs: many, lr: 7, los: ce}\n"
        "explain: {explainers: [gradcan]}\n"
        "controls: {shiftd: 3, pixel_random: 0}\n"
        "variants: {Plain: {}}\n"
    )
    lines = refusal("bad.yaml", "--set", "seed=-1")
    assert sorted(lines) == sorted(
        [
            "train.epochs: got 'many'; expected a valid integer.",
            "train.lr: got 7; expected a value less than 1.",
            "train.los: got an unknown key. Did you mean 'loss'? Expected one of: epochs, batch_size, lr, "
            "weight_decay, loss, sampler, augment, labels, seed.",
            f"explain.explainers.0: got 'gradcan'. Did you mean 'gradcam'? Expected one of: {', '.join(EXPLAINERS)}.",
            f"controls: got 'shiftd'. Did you mean 'shifted'? Expected one of: {', '.join(CONTROLS)}.",
            "data.fit: got 'stretch'. Expected one of: squash, pad, crop.",
            f"data.sise: got an unknown key. Did you mean 'size'? Expected one of: {', '.join(Data.model_fields)}.",
            "controls.pixel_random: got 0; expected a value greater than or equal to 1.",
            "variants.Plain: got 'Plain'; expected a name that matches [a-z][a-z0-9_-]*.",
            "trian: got an unknown key. Did you mean 'train'? Expected one of: name, data, variants, model, train, "
            "search, evaluate, checkpoints, explain, perturb, controls, sequential, verdicts, regions, truth, "
            "sanity, stability, resources, track, seed.",
            "seed: got -1; expected a value greater than or equal to 0.",
        ]
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "train: {epochs: 3",
            r"bad\.yaml, line 1: got text that is not valid YAML \(.*\); expected YAML; correct it\.",
        ),
        ("a: 1\n\tb: 2", r"bad\.yaml, line 2: got text that is not valid YAML .*"),
        ("a: b: c", r"bad\.yaml, line 1: got .* not valid YAML \(mapping values are not allowed here\); .*"),
        ("seed: 1\nseed: 2", r"bad\.yaml, line 2: got the key 'seed' twice; expected it once; keep one\."),
        ("- train\n- data", r"got bad\.yaml with a list; expected a mapping; write one, such as 'name: mine'\."),
        ("just words", r"got bad\.yaml with text; expected a mapping; write one, such as 'name: mine'\."),
        (
            "!!python/object/apply:os.mkdir [executed]",
            r"bad\.yaml, line 1: got .* not valid YAML \(could not determine .*",
        ),
    ],
)
def test_a_sweep_file_that_is_no_mapping(refusal, text, sentence):
    Path("bad.yaml").write_text(text)
    (line,) = refusal("bad.yaml")
    assert re.fullmatch(sentence, line), line
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\xff", b"\xff\xfe\x00\x01", b"name: a\x00b"])
def test_a_binary_sweep_file(refusal, content):
    Path("bad.yaml").write_bytes(content)
    (line,) = refusal("bad.yaml")
    assert re.fullmatch(r"(got )?bad\.yaml.* (cannot be read as text|not valid YAML).*", line), line


def test_a_name_is_that_of_a_sweep_that_ships_unless_there_is_such_a_file(refusal):
    for name in ("seeds", "seeds.yaml", "sweeps/seeds.yaml"):
        assert sweep.load(sweep.parser().parse_args([name])).name == "seeds"
    assert sweep.load(sweep.parser().parse_args([])).name == "quickstart"
    Path("seeds.yaml").write_text("name: mine\n")
    assert sweep.load(sweep.parser().parse_args(["seeds.yaml"])).name == "mine"
    assert sweep.load(sweep.parser().parse_args(["sweeps/seeds.yaml"])).name == "seeds"
    (line,) = refusal("elsewhere/seeds.yaml")
    assert line.startswith("got elsewhere/seeds.yaml, which is no file; ")
    assert "seeds" in sweep.parser().format_help()


def test_a_mistyped_name_of_a_sweep_lists_those_that_ship(refusal):
    assert refusal("findngs") == [
        "got the sweep 'findngs', no file and none that ships. Did you mean 'findings'? Expected one of: "
        f"{', '.join(sweep.shipped_names())}."
    ]
    assert refusal("tiny") == ["got tiny, which is no file; expected a YAML file; did you mean tiny.yaml?"]


def test_a_network_of_a_package_that_is_not_installed(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    sentence = (
        "got resnet18d, a network of timm; expected timm to be installed; install it: pip install 'cxr-ray[timm]'."
    )
    assert refusal("tiny.yaml", "--set", "model.arch={grid: [resnet18, resnet18d]}") == [sentence]
    assert refusal("tiny.yaml", "--dry-run", "--set", "model.arch=resnet18d") == [sentence]
    torch.save(state(), "model.pt")
    assert refusal("tiny.yaml", "--set", "checkpoints={study: {path: model.pt, arch: resnet18d}}") == [sentence]


def test_a_sweep_file_that_is_not_there(refusal):
    assert refusal("tiny.yml") == ["got tiny.yml, which is no file; expected a YAML file; did you mean tiny.yaml?"]
    assert refusal("nowhere/x.yaml") == [
        "got nowhere/x.yaml, which is no file; expected a YAML file; give the path of one."
    ]
    Path("results.yaml").mkdir()
    assert refusal("results.yaml") == [
        "got results.yaml, which is no file; expected a YAML file; give the path of one."
    ]


def test_overrides(refusal):
    assert refusal("tiny.yaml", "--set", "train.epochs") == ["--set: got train.epochs; expected section.key=value."]
    assert refusal("tiny.yaml", "--set", "=3") == ["--set: got =3; expected section.key=value."]
    assert refusal("tiny.yaml", "--set", "name.x=3") == [
        "--set name.x: got a value for name; expected a section there."
    ]
    assert refusal("tiny.yaml", "--set", "train.epoch=3") == [
        "train.epoch: got an unknown key. Did you mean 'epochs'? Expected one of: epochs, batch_size, lr, "
        "weight_decay, loss, sampler, augment, labels, seed."
    ]
    (line,) = refusal("tiny.yaml", "--set", "train.lr={grid: [1e-3")
    assert line.startswith("--set train.lr={grid: [1e-3, line 1: got text that is not valid YAML (")
    assert len(refusal("tiny.yaml", "--set", "nope", "--set", "seed=x", "--set", "train.lr=x")) == 3


def test_options_that_do_not_exist(capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.main(["tiny.yaml", "--ouptut", "x"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --ouptut" in capsys.readouterr().err


# The data


def test_data_that_are_not_there(refusal, tmp_path):
    (line,) = refusal("tiny.yaml", given_data="nowhere")
    assert line == (
        f"got {tmp_path}/nowhere, which is no folder; expected a folder with {folder.EXPECTED}; give --data the folder "
        f"of the images. --data takes {usages()}."
    )
    assert refusal("tiny.yaml", given_data="") == ["data.path: got ''; expected at least 1 character."]
    Path("empty/folder").mkdir(parents=True)
    (line,) = refusal("tiny.yaml", given_data="empty")
    assert line.startswith(f"got {tmp_path}/empty without class folders")
    (line,) = refusal("tiny.yaml", given_data="hub:nope")
    assert line == "got hub:nope; expected one of: hub:kaggle, hub:huggingface."
    (line,) = refusal("tiny.yaml", given_data="nosuch://bucket/data")
    assert "got nosuch://bucket/data, which cannot be opened" in line


def test_a_suspicion_about_the_data_stops_the_run_unless_it_is_accepted(refusal, reaches_ray, tiny_folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "three" / split / "COVID").mkdir(parents=True)
        (tmp_path / "three" / split / "COVID" / f"{split}.png").write_bytes(b"x")
        for name in ("NORMAL", "PNEUMONIA"):
            (tmp_path / "three" / split / name).symlink_to(tiny_folder / split / name)
    assert refusal("tiny.yaml", given_data="three") == [
        "got 2 images whose label is in no class (COVID: 2); expected each label in data.classes; name it there "
        "(negative, positive or ignore), or confirm with data.accept: [other_labels]."
    ]
    assert reaches_ray("tiny.yaml", "--set", "data.accept=[other_labels]", given_data="three")
    assert reaches_ray("tiny.yaml", "--set", "data.classes={ignore: [covid]}", given_data="three")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.csv", None, "which cannot be opened (.*); expected a table; give its path."),
        (
            "labels.csv",
            "file;label\na.png;0",
            "without the column 'path'. Expected one of: file, label. Set data.columns.path.",
        ),
        (
            "labels.csv",
            "path,label\na.png,0",
            "1 rows whose image is not there (a.png); expected .* data.accept: [missing_files].",
        ),
        (
            "labels.parquet",
            "text",
            "which is no table (.*); expected one row of names .*; save it as CSV (UTF-8) or Parquet.",
        ),
        ("gone.npz", None, "which cannot be read (.*); expected an .npz file with arrays .*; give its path."),
        ("arrays.npz", "text", "which cannot be read (.*); expected an .npz file with arrays .*; give its path."),
    ],
)
def test_tables_and_arrays_that_are_not_what_they_should_be(refusal, name, content, says):
    if content is not None:
        Path(name).write_text(content)
    (line,) = refusal("tiny.yaml", given_data=name)
    assert re.search(re.escape(says).replace(r"\.\*", ".*") + "$", line), line


def test_keys_of_the_data_that_its_source_does_not_read(refusal):
    (line,) = refusal("tiny.yaml", "--set", "data.images=scans")
    assert line == "data.images: got a value with data.source folder; expected source table; leave it out."
    Path("labels.csv").write_text("path,label\n")
    (line,) = refusal(
        "tiny.yaml", "--set", "data.patient=(a)", "--set", "data.columns={patient: p}", given_data="labels.csv"
    )
    assert line == "data.patient: got a value beside data.columns.patient; expected one of them; leave one out."


def test_a_class_without_images(refusal, tiny_folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "half" / split / "NORMAL").mkdir(parents=True)
        (tmp_path / "half" / split / "PNEUMONIA").symlink_to(tiny_folder / split / "PNEUMONIA")
    (line,) = refusal("tiny.yaml", given_data="half")
    assert line.startswith(f"got {tmp_path}/half with no NORMAL image for the test split; expected ")
    assert not Path("results/tiny/sweep.yaml").exists()


def test_images_that_have_a_header_and_no_pixels(refusal, tiny_folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "cut" / split).mkdir(parents=True)
        (tmp_path / "cut" / split / "PNEUMONIA").symlink_to(tiny_folder / split / "PNEUMONIA")
        for image in (tiny_folder / split / "NORMAL").iterdir():
            file = tmp_path / "cut" / split / "NORMAL" / image.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(image.read_bytes()[:60])
    (line,) = refusal("tiny.yaml", given_data="cut")
    assert line.startswith(f"{tmp_path}/cut: got a train split with no readable image of one class")


def test_mistakes_of_the_data_are_told_before_weights_are_fetched(refusal, monkeypatch):
    def fetched(weights):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(checkpoints, "pretrained_state", fetched)
    assert len(refusal("tiny.yaml", "--set", "model.weights=imagenet", given_data="nowhere")) == 1


# Weights and checkpoints


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("data.fit=squash", "data.fit: got 'squash'; expected 'pad', as model.safetensors was trained with; set that."),
        ("checkpoints.study.size=64", "checkpoints.study.size: got 64; expected 32, as model.safetensors says; leave"),
        ("checkpoints.study.preprocess=mask_border", "checkpoints.study.preprocess: got 'mask_border'; expected"),
    ],
)
def test_what_is_said_of_a_file_that_says_otherwise(refusal, said, line):
    model = networks.build("resnet18", ModelSpec("resnet18", 32, fit="pad"))
    Path("model.safetensors").write_bytes(checkpoints.to_bytes(model))
    asked = ["--set", "checkpoints={study: {path: model.safetensors}}", "--set", "data.fit=pad", "--set", said]
    assert refusal("tiny.yaml", *asked)[0].startswith(line)


def test_weights_that_cannot_be_downloaded(refusal, reaches_ray, monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    assert refusal("tiny.yaml", "--set", "model.weights=imagenet") == [
        "model.weights: got imagenet, which could not be downloaded (Temporary failure in name resolution); expected "
        "weights of resnet18; try again with network access, give a file (--set model.weights=path/to/resnet18.pth) or "
        "train from scratch (--set model.weights=none)."
    ]
    assert reaches_ray("tiny.yaml"), "the remedy works, with the same --out"


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), OSError(errno.ENOSPC, "No space left")])
def test_whatever_ends_a_download_is_one_sentence(refusal, monkeypatch, tmp_path, error):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "urlopen", broken)
    (line,) = refusal("tiny.yaml", "--set", "model.weights=imagenet")
    assert line.startswith("model.weights: got imagenet, which could not be downloaded (")


def test_weights_in_a_file(refusal, reaches_ray, tmp_path):
    (line,) = refusal("tiny.yaml", "--set", "model.weights=nowhere.pth")
    assert line == "got nowhere.pth, which is no file; expected a checkpoint; give a .pt or .safetensors file."
    torch.save(torchvision.models.resnet34(num_classes=2).state_dict(), "resnet34.pth")
    (line,) = refusal("tiny.yaml", "--set", "model.weights=resnet34.pth")
    assert re.fullmatch(
        r"got model\.weights=resnet34\.pth, of whose weights 0 are missing and \d+ are unknown or of another shape "
        r"\(such as layer\S+\); expected a state dict of resnet18; give one\.",
        line,
    )
    torch.save(torchvision.models.resnet18(num_classes=1000).state_dict(), "resnet18.pth")
    assert reaches_ray("tiny.yaml", "--set", "model.weights=resnet18.pth"), "with a head of any size"


class Attack:
    def __reduce__(self):
        return Path.mkdir, (Path("executed"),)


def state(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**torchvision.models.resnet18(num_classes=2).state_dict(), **changed}


BROKEN = {
    "missing": (None, "got {}, which is no file; expected a checkpoint; give a .pt or .safetensors file."),
    "a folder": ("folder", "got {}, which cannot be read ("),
    "empty": (b"", "got {}, which cannot be loaded safely (0 bytes); expected safetensors or a torch state"),
    "text": (b"these are no weights\n", "got {}, which cannot be loaded safely (21 bytes); expected safetensors or a"),
    "code": (lambda: {"state_dict": Attack()}, "got {}, which cannot be loaded safely"),
    "a module": (lambda: torchvision.models.resnet18(num_classes=2), "got {}, which cannot be loaded safely"),
    "a bare pickle": (lambda: pickle.dumps(Attack()), "got {}, which cannot be loaded safely"),
    "a list": (lambda: [1, 2], "got {} without a state dict; expected one; save it with torch.save("),
    "numbers as keys": (lambda: {0: torch.zeros(1)}, "got {} without a state dict; expected one;"),
    "another network": (
        lambda: {"weight": torch.zeros(2, 2)},
        "got {} without fc.weight; expected the state dict of resnet18 (it has weight); give one, or name the network",
    ),
    "three outputs": (
        lambda: torchvision.models.resnet18(num_classes=3).state_dict(),
        "got {} with a head of 3 outputs; expected 1 or 2 (NORMAL, PNEUMONIA), or to be told which are which; give a",
    ),
    "a head without shape": (lambda: state(**{"fc.weight": torch.tensor(1.0)}), "got {} with a head of 0 outputs;"),
    "a head of other features": (
        lambda: state(**{"fc.weight": torch.zeros(2, 2048)}),
        "got {}, whose fc.weight is 2 x 2048; expected 2 x 512, as in resnet18; give a file",
    ),
    "a bias of another shape": (
        lambda: state(**{"fc.bias": torch.zeros(1)}),
        "got {}, whose fc.bias is 1; expected 2, as in resnet18;",
    ),
    "a layer of another shape": (
        lambda: state(**{"conv1.weight": torch.zeros(64, 2, 7, 7)}),
        "got {}, of whose weights 0 are missing and 1 are unknown or of another shape (such as conv1.weight); expected",
    ),
    "a layer missing": (
        lambda: {k: v for k, v in state().items() if k != "layer1.0.conv1.weight"},
        "got {}, of whose weights 1 are missing and 0 are unknown or of another shape (such as layer1.0.conv1.weight);",
    ),
    "sparse weights": (
        lambda: state(**{"bn1.weight": torch.ones(64).to_sparse()}),
        "got {}, whose weights cannot be copied into resnet18 (sparse, quantized or the like); expected plain ones;",
    ),
    "not a number": (
        lambda: state(**{"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}),
        "got {}, which gives nan and nan for a constant image and for noise; expected finite scores; give weights,",
    ),
    "weights that overflow on what is not constant": (
        lambda: state(
            **{
                "conv1.weight": torch.full((64, 3, 7, 7), 3e37),
                "fc.weight": torch.zeros(2, 512),
                "fc.bias": torch.zeros(2),
            }
        ),
        "got {}, which gives 0 and nan for a constant image and for noise;",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_that_cannot_be_used(refusal, kind):
    content, sentence = BROKEN[kind]
    made = content() if callable(content) else content
    if made == "folder":
        Path("model.pt").mkdir()
    elif isinstance(made, bytes):
        Path("model.pt").write_bytes(made)
    elif made is not None:
        torch.save(made, "model.pt")
    (line,) = refusal("tiny.yaml", "--set", "checkpoints={study: {path: model.pt}}")
    assert line.startswith(sentence.format("model.pt")), line
    assert not Path("executed").exists()


def test_the_attack_would_work_without_care():
    torch.save({"state_dict": Attack()}, "model.pt")
    torch.load("model.pt", weights_only=False)
    assert Path("executed").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_safetensors_file_that_is_broken(refusal, content):
    Path("model.safetensors").write_bytes(content)
    (line,) = refusal("tiny.yaml", "--set", "checkpoints={study: {path: model.safetensors}}")
    assert line.startswith("got model.safetensors, which cannot be loaded safely")


def test_a_safetensors_file_of_another_architecture(refusal):
    spec = '{"arch": "resnet50", "size": 32}'
    safetensors.torch.save_file(state(), "model.safetensors", metadata={"cxr_ray": spec})
    (line,) = refusal("tiny.yaml", "--set", "checkpoints={study: {path: model.safetensors}}")
    assert line == (
        "got model.safetensors, which says it is a 'resnet50'. Did you mean 'resnet18'? Expected one of: resnet18, "
        "resnet18d, seresnet18, torchvision:NAME, timm:NAME, torchxrayvision:NAME, factory:MODULE:FUNCTION, onnx, "
        "torchscript."
    )


def test_a_safetensors_file_of_another_preprocessing(refusal):
    spec = '{"arch": "resnet18", "size": 32, "preprocess": "sharpen"}'
    safetensors.torch.save_file(state(), "model.safetensors", metadata={"cxr_ray": spec})
    (line,) = refusal("tiny.yaml", "--set", "checkpoints={study: {path: model.safetensors}}")
    assert line == (
        "got model.safetensors, whose images go through 'sharpen'. Expected one of: none, crop_border, mask_border, "
        "clahe."
    )


def test_a_checkpoint_at_a_uri_that_nothing_opens(refusal):
    (line,) = refusal("tiny.yaml", "--set", "checkpoints={study: {path: 'nosuch://bucket/model.pt'}}")
    assert line.startswith("got nosuch://bucket/model.pt, which cannot be read (")


# --out


def test_an_out_that_cannot_be_one(refusal):
    Path("file").write_text("text")
    assert refusal("tiny.yaml", "--out", "file") == [
        "--out: got file, a file; expected a folder; give another folder (--out PATH)."
    ]
    (line,) = refusal("tiny.yaml", "--out", "file/below")
    assert line.startswith("--out: got file/below, which cannot be written (")
    (line,) = refusal("tiny.yaml", "--out", "nosuch://bucket/run")
    assert line.startswith("--out: got nosuch://bucket/run, which cannot be written (")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    (line,) = refusal("tiny.yaml", "--out", "full")
    assert line == (
        "--out: got full, which is not empty; expected an empty folder; go on with the run in it (--resume), or give "
        "another folder (--out PATH)."
    )
    (line,) = refusal("tiny.yaml", "--out", "full", "--resume")
    assert line == (
        "--out: got full, which holds files but no run (no sweep.yaml); expected a run; give another folder (--out "
        "PATH)."
    )
    assert [f.name for f in Path("full").iterdir()] == ["notes.txt"]


def test_a_relative_out_in_a_ray_job(refusal, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    (line,) = refusal("tiny.yaml")
    assert line.startswith(
        "--out: got results/tiny, a relative path in a Ray job, where it would lie in a temporary copy"
    )


def test_a_folder_into_which_another_sweep_writes(refusal):
    with lock.held("results/tiny"):
        for more in ([], ["--resume"]):
            (line,) = refusal("tiny.yaml", *more)
            assert re.match(r"--out: got results/tiny, into which another sweep writes \(process \d+ on .*\); ", line)


# What is no mistake


def test_an_interrupt(monkeypatch, capsys, tiny_folder):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "load_manifest", interrupted)
    assert sweep.main(["tiny.yaml", "--data", str(tiny_folder)]) == 130
    assert capsys.readouterr().err == "cxr_ray: interrupted; the same command with --resume goes on.\n"


def test_a_full_disk_is_told_and_other_errors_are_not_hidden(monkeypatch, capsys, tiny_folder):
    failure = OSError(errno.ENOSPC, "No space left on device")

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(training_data, "training_splits", fail)
    assert sweep.main(["tiny.yaml", "--data", str(tiny_folder)]) == 1
    assert capsys.readouterr().err == (
        "cxr_ray: no space left ([Errno 28] No space left on device); make room, and the same command with --resume "
        "goes on.\n"
    )
    failure = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        sweep.main(["tiny.yaml", "--resume", "--data", str(tiny_folder)])


def test_lungs_that_cannot_be_had_are_told_before_training(refusal, monkeypatch):
    asked = ["tiny.yaml", "--set", "regions.names=[outside_lungs]", "--set"]
    (line,) = refusal(*asked, "regions.lungs=no/such/folder")
    assert re.match(
        r"regions\.lungs: got .*/no/such/folder, which is no folder; expected the folder of the lung masks, ", line
    )
    monkeypatch.setitem(sys.modules, "torchxrayvision.baseline_models.chestx_det", None)
    (line,) = refusal(*asked, "regions.lungs=torchxrayvision")
    assert "pip install 'cxr-ray[lungs]'" in line
    (line,) = refusal("tiny.yaml", "--set", "regions.names=[marker]")
    assert line.startswith("regions.names: got marker")


# Trackers


def test_a_package_that_a_sweep_needs_is_asked_for_before_anything_is_read(refusal, monkeypatch):
    for key, name in (("track.mlflow", "mlflow"), ("track.wandb", "wandb"), ("search.searcher", "optuna")):
        monkeypatch.setitem(sys.modules, name, None)
        for more in ((), ("--dry-run",)):
            space = ("--set", "train.lr={uniform: [0.001, 0.01]}") if name == "optuna" else ()
            (line,) = refusal("tiny.yaml", "--set", f"{key}=optuna", *space, *more, given_data="nowhere")
            assert (
                line
                == f"got no package {name}; expected it to be installed; install it: pip install 'cxr-ray[{name}]'."
            )
