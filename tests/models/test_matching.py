"""Checkpoints as people have them, each against the network that it was saved from."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from cxr_ray.errors import CheckpointError
from cxr_ray.models import checkpoints, matching
from cxr_ray.models.matching import ConcatPool
from cxr_ray.models.networks import Classifier, ModelSpec, build
from cxr_ray.run.context import untrained_models
from cxr_ray.run.trial_plans import plan_trials
from cxr_ray.sweepfile import resolve
from tests.builders.networks import varied_resnet18

SIZE = 64
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def two() -> nn.Module:
    return varied_resnet18(2)


def loaded(folder: Path, content: Any, **spec: Any) -> Classifier:
    torch.save(content, folder / "model.pt")
    return checkpoints.load(str(folder / "model.pt"), ModelSpec("resnet18", SIZE, **spec))


@torch.no_grad()
def same(model: Classifier, expected: Tensor) -> bool:
    assert expected.std() > 1e-3, "else any weights would do"
    return torch.allclose(model(IMAGES), expected, atol=1e-5)


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED: dict[str, Any] = {
    "prefix": lambda s: with_prefix("backbone.", s),
    "parallel and compiled": lambda s: with_prefix("module._orig_mod.", s),
    "lightning": lambda s: {
        "state_dict": {**with_prefix("model.", s), "loss_fn.weight": torch.ones(2)},
        "hyper_parameters": argparse.Namespace(lr=1e-3),
    },
    "numpy beside": lambda s: {"net": s, "best_acc": np.float64(0.9), "history": np.zeros(3)},
    "average": lambda s: {"n_averaged": torch.tensor(3), **with_prefix("module.", s)},
}


@pytest.mark.parametrize("kind", WRAPPED)
@torch.no_grad()
def test_wrappers_around_the_weights_are_taken_off(tmp_path, two, kind):
    assert same(loaded(tmp_path, WRAPPED[kind](two.state_dict())), two(IMAGES))


def test_what_is_left_out_is_told(tmp_path, two):
    told = loaded(tmp_path, WRAPPED["lightning"](two.state_dict())).notes
    assert told == (
        "the names of its layers begin with 'model.', which was taken off",
        "it also holds loss_fn.weight, of no layer of resnet18: left out",
    )


@pytest.mark.parametrize(
    ("key", "other"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "discriminator")]
)
def test_of_two_sets_of_weights_it_is_told_which_was_taken(tmp_path, two, key, other):
    averaged = {name: value * 0 for name, value in two.state_dict().items()}
    model = loaded(tmp_path, {other: averaged, key: two.state_dict(), "metrics": {"loss": torch.ones(())}})
    with torch.no_grad():
        assert same(model, two(IMAGES))
    assert model.notes == (f"it holds several sets of weights: {key} is taken, and {other} left out",)


def test_weights_that_stand_twice_are_refused(tmp_path, two):
    both = {**with_prefix("model.", two.state_dict()), **with_prefix("ema.", two.state_dict())}
    with pytest.raises(CheckpointError, match=r"resnet18 2 times, under 'ema\.', 'model\.'; expected them once"):
        loaded(tmp_path, both)


HEADS: dict[str, Any] = {
    "dropout": lambda: nn.Sequential(nn.Dropout(), nn.Linear(512, 2)),
    "hidden": lambda: nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)),
    "norm": lambda: nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
    "no bias": lambda: nn.Linear(512, 2, bias=False),
}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_heads_of_several_layers_give_the_same_scores(tmp_path, kind):
    source = varied_resnet18(2)
    source.fc = HEADS[kind]().eval()
    model = loaded(tmp_path, source.state_dict())
    assert same(model, source(IMAGES))
    assert any("is taken for a ReLU" in note for note in model.notes) == (kind in ("hidden", "norm"))


@torch.no_grad()
def test_a_file_of_fastais_gives_the_same_scores(tmp_path, two):
    body = nn.Sequential(*list(two.children())[:-2])
    head = nn.Sequential(
        *(ConcatPool(), nn.Flatten(), nn.BatchNorm1d(1024), nn.Dropout(), nn.Linear(1024, 512, bias=False)),
        *(nn.ReLU(), nn.BatchNorm1d(512), nn.Dropout(), nn.Linear(512, 2, bias=False)),
    )
    network = nn.Sequential(body, head).eval()
    nn.init.normal_(head[8].weight)  # type: ignore[arg-type]
    assert same(loaded(tmp_path, {"model": network.state_dict(), "opt": {}}), network(IMAGES))


def test_layers_that_do_not_fit_each_other_are_one_sentence(tmp_path, two):
    body = with_prefix("0.", nn.Sequential(*list(two.children())[:-2]).state_dict())
    content = {**body, "1.2.weight": torch.ones(1024), "1.2.bias": torch.ones(1024), "1.8.weight": torch.zeros(2, 512)}
    with pytest.raises(CheckpointError, match=r"expected layers that fit|are missing"):
        loaded(tmp_path, content)


@torch.no_grad()
def test_a_first_layer_of_one_channel_reads_the_mean_of_three(tmp_path):
    grey = varied_resnet18(2)
    grey.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    one = IMAGES[:, :1]
    model = loaded(tmp_path, grey.state_dict())
    torch.testing.assert_close(model(one.expand(-1, 3, -1, -1)), grey(one), rtol=1e-4, atol=1e-5)
    assert "give mean and std as it was trained with" in model.notes[0]


@torch.no_grad()
def test_probabilities_of_several_outputs_add_up(tmp_path):
    three = varied_resnet18(3)
    p = three(IMAGES).softmax(1)
    assert not loaded(tmp_path, three.state_dict(), columns=((1,), (0, 2))).training
    for model in (
        loaded(tmp_path, {"state_dict": three.state_dict(), "class_to_idx": {"BACTERIA": 0, "NORMAL": 1, "VIRUS": 2}}),
        loaded(tmp_path, three.state_dict(), columns=((1,), (0, 2))),
    ):
        torch.testing.assert_close(model.log_odds(IMAGES).sigmoid(), p[:, 0] + p[:, 2], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model(IMAGES).softmax(1)[:, 1], p[:, 0] + p[:, 2], rtol=1e-4, atol=1e-6)
    alone = loaded(tmp_path, three.state_dict(), columns=((), (2,)))
    torch.testing.assert_close(alone.log_odds(IMAGES), three(IMAGES)[:, 2])
    with pytest.raises(CheckpointError, match=r"head of 3 outputs; expected 1 or 2 .* or the key outputs"):
        loaded(tmp_path, three.state_dict())
    with pytest.raises(CheckpointError, match=r"got outputs 3 for .* whose head has 3; expected numbers from 0 to 2"):
        loaded(tmp_path, three.state_dict(), columns=((0,), (3,)))


@pytest.mark.parametrize(
    "said",
    [
        {"class_to_idx": {"PNEUMONIA": 0, "NORMAL": 1}},
        {"class_to_idx": {"PNEUMONIA": torch.tensor(0), "NORMAL": np.int64(1)}},
        {"idx_to_class": {0: "PNEUMONIA", 1: "NORMAL"}},
        {"idx_to_class": {"1": "NORMAL", "0": "PNEUMONIA"}},
        {"classes": ["PNEUMONIA", "NORMAL"]},
        {"classes": np.array(["PNEUMONIA", "NORMAL"])},
        {"hyper_parameters": {"classes": ("PNEUMONIA", "NORMAL"), "lr": 0.1}},
        {"class_names": ["PNEUMONIA", "NORMAL"], "classes": 2},
        {"config": {"label2id": {"PNEUMONIA": 0, "NORMAL": 1}}},
        {"args": argparse.Namespace(id2label={0: "PNEUMONIA", 1: "NORMAL"})},
        {"label_map": {"pneumonia": 0, "normal": 1}, "counts": {"PNEUMONIA": 3875, "NORMAL": 1341}},
        {"vocab": ["PNEUMONIA", "NORMAL"], "folds": ["1", "0"], "layers": ["conv", "fc"]},
        {"classes": "PNEUMONIA, NORMAL"},
        {"idx2label": '{"0": "PNEUMONIA", "1": "NORMAL"}'},
        {"class2idx": {"PNEUMONIA": 0.0, "NORMAL": 1.0}},
        {"datamodule_hyper_parameters": {"data": {"target_names": ["PNEUMONIA", "NORMAL"]}}},
        {"optimizer": {"names": {"opt": argparse.Namespace(labels=("PNEUMONIA", "NORMAL"))}}},
    ],
)
def test_an_order_of_classes_that_the_file_gives_is_kept_and_told(tmp_path, two, said):
    model = loaded(tmp_path, {"state_dict": two.state_dict(), **said})
    with torch.no_grad():
        assert same(model, two(IMAGES)[:, [1, 0]])
    said = "(PNEUMONIA 0, NORMAL 1), output 1 is NORMAL and 0 is PNEUMONIA"
    assert [note.casefold() for note in model.notes] == [f"as the file says {said}".casefold()]


def test_names_of_classes_inside_a_wrapper_or_in_metadata_are_kept(tmp_path, two):
    state = two.state_dict()
    wrapped = loaded(tmp_path, {"model": {"state_dict": state, "classes": ["PNEUMONIA", "NORMAL"]}, "epoch": 3})
    assert wrapped.spec.columns == ((1,), (0,))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, metadata={"class_to_idx": '{"PNEUMONIA": 0, "NORMAL": 1}', "format": "pt"})
    assert checkpoints.load(str(path), ModelSpec("resnet18", SIZE)).spec.columns == ((1,), (0,))
    safetensors.torch.save_file(state, path, metadata={"format": "pt", "labels": "a text, with a comma"})
    assert checkpoints.load(str(path), ModelSpec("resnet18", SIZE)).spec.columns is None


def test_names_of_classes_that_differ_are_refused_and_outputs_settle_it(tmp_path, two):
    said = {"class_to_idx": {"PNEUMONIA": 0, "NORMAL": 1}, "hparams": {"labels": ["normal", "pneumonia"]}}
    what = r"class_to_idx says PNEUMONIA 0, NORMAL 1, and whose hparams.labels says normal 0, pneumonia 1; .* outputs"
    with pytest.raises(CheckpointError, match=what):
        loaded(tmp_path, {"state_dict": two.state_dict(), **said})
    settled = loaded(tmp_path, {"state_dict": two.state_dict(), **said}, columns=((1,), (0,)))
    assert settled.spec.columns == ((1,), (0,))
    same_order = {"class_to_idx": {"PNEUMONIA": 0, "NORMAL": 1}, "names": {0: "Pneumonia", 1: "normal"}}
    assert loaded(tmp_path, {"state_dict": two.state_dict(), **same_order}).spec.columns == ((1,), (0,))


def test_one_class_of_several_outputs_is_told(tmp_path, two):
    told = loaded(tmp_path, two.state_dict(), columns=((), (0,))).notes
    assert told == (
        "output 0 alone is PNEUMONIA, and its log-odds are taken for those of a sigmoid of its own; if the 2 outputs "
        "are one softmax, name those of NORMAL too",
    )
    assert loaded(tmp_path, two.state_dict(), columns=((0,), (1,))).notes == ()


def test_the_usual_order_is_not_told_and_what_is_not_understood_is(tmp_path, two):
    usual = {"state_dict": two.state_dict(), "class_to_idx": {"NORMAL": 0, "PNEUMONIA": 1}}
    assert loaded(tmp_path, usual).notes == ()
    assert loaded(tmp_path, {**usual, "classes": np.array(2)}).notes == ()
    told = loaded(tmp_path, {**usual, "idx_to_class": {"first": "NORMAL"}}).notes
    assert told == ("its idx_to_class is not understood, and is left out",)
    told = loaded(tmp_path, {**usual, "classes": {"PNEUMONIA", "NORMAL"}}).notes
    assert told == ("its classes has no order, and is left out",)


class Trainer:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def linear(outputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, outputs))


def test_a_network_that_is_all_head_is_loaded(tmp_path):
    network = linear(2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    spec = ModelSpec(f"factory:{__name__}:linear", SIZE)
    assert same(checkpoints.load(str(tmp_path / "model.pt"), spec), network(IMAGES))


def test_the_entry_that_cannot_be_loaded_safely_is_named_and_not_run(tmp_path, two, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"\('extra\.trainer' is a \w+\.mkdir\)"):
        loaded(tmp_path, {"state_dict": two.state_dict(), "extra": {"trainer": Trainer()}})
    assert not Path("executed").exists()


def test_a_file_never_chooses_code_to_import(tmp_path, two):
    spec = ModelSpec("factory:os:system", SIZE)
    (tmp_path / "model.safetensors").write_bytes(checkpoints.to_bytes(Classifier(two, spec)))
    with pytest.raises(CheckpointError, match="code that a file must not choose"):
        checkpoints.load(str(tmp_path / "model.safetensors"))


def test_a_densenet_of_before_pytorch_0_4_is_read_under_its_new_names():
    with torch.device("meta"):
        state = torchvision.models.densenet121(num_classes=14).state_dict()
    renamed = [re.sub(r"(denselayer\d+\.(?:norm|conv))(?=[12]\.)", r"\1.", name) for name in state]
    assert sum(old != name for old, name in zip(renamed, state, strict=True)) > 300
    old = {f"module.densenet121.{name}": value for name, value in zip(renamed, state.values(), strict=True)}
    found, notes = matching.body("chexnet.pth.tar", old, "torchvision:densenet121")
    assert found.keys() == state.keys()
    assert all(found[name] is value for name, value in state.items())
    assert "its dense layers have the names of PyTorch before 0.4 (norm.1)" in notes[0]


def test_what_becomes_of_a_file_that_training_starts_from_is_told(tmp_path):
    torch.save({"model": with_prefix("net.", varied_resnet18(5).state_dict())}, tmp_path / "start.pt")
    model = build("resnet18", ModelSpec("resnet18", SIZE))
    assert checkpoints.starting_notes(str(tmp_path / "start.pt"), model) == [
        "the names of its layers begin with 'net.', which was taken off",
        "its head is left out: that of resnet18 begins with random weights",
    ]
    assert checkpoints.starting_notes("imagenet", model) == []
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pt")
    sweep = resolve({"model": {"weights": str(tmp_path / "other.pt")}})
    with pytest.raises(CheckpointError, match=r"of whose weights \d+ are missing"):
        untrained_models(sweep, plan_trials(sweep))
