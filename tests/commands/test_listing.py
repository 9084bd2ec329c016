"""cxr-ray list: every name of the registries, what it costs, and what a network cannot have."""

import pytest

from cxr_ray import sweep
from cxr_ray.commands import listing
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.models.networks import NETWORKS


@pytest.mark.parametrize(
    ("kind", "known"),
    [("explainers", EXPLAINERS), ("controls", CONTROLS), ("fills", FILLS), ("sweeps", sweep.shipped_names())],
)
def test_each_name_stands_there_once_with_its_cost_and_what_it_is(kind, known):
    entries = list(listing.KINDS[kind][0](224))
    assert [e.name for e in entries] == list(known)
    assert all(e.cost and e.caption for e in entries)


def test_networks_and_families_stand_there(monkeypatch):
    names = [e.name for e in listing.architectures(32)]
    assert names[: len(NETWORKS)] == list(NETWORKS)
    assert "timm:NAME" in names


def test_the_cost_of_a_map_is_that_of_its_registry():
    costs = {e.name: e.cost for e in listing.explainers(64)}
    assert costs["integrated_gradients"] == "32 forward, 32 backward"
    assert costs["rise"] == "1,000 forward, 0 backward"
    assert costs["centre"] == "none"


def test_the_first_sentence_of_a_sweep_is_its_question():
    asked = {e.name: e.caption for e in listing.sweeps(224)}
    assert asked["seeds"] == "How much of a finding is one training run's luck?"
    assert max(map(len, asked.values())) < 150


def test_kinds_are_printed_in_the_order_asked_for(capsys):
    assert listing.main(["fills", "explainers"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line and line[0] != " "] == ["fills", "explainers"]


@pytest.mark.slow
def test_a_network_is_told_what_it_cannot_have_and_why(capsys):
    assert listing.main(["--arch", "torchvision:vgg11", "--size", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"torchvision:vgg11 at 32 x 32 can have {len(EXPLAINERS) - 1} of {len(EXPLAINERS)} explainers:"
    assert lines[2].startswith("  not attention_rollout: the network has no attention")
    assert listing.main(["--arch", "torchvision:convnext_tiny", "--size", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "guided_gradcam" not in lines[1]
    assert lines[2].startswith("  not guided_gradcam: guided backpropagation is defined for ReLUs alone")


@pytest.mark.parametrize(("argv", "said"), [(["fils"], "Did you mean 'fills'?"), (["--arch", "resnet19"], "resnet18")])
def test_an_unknown_name_is_a_sentence(capsys, argv, said):
    assert listing.main(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("size", ["-3", "0", "5000"])
def test_a_size_of_no_image_is_refused(capsys, size):
    assert listing.main(["--arch", "resnet18", "--size", size]) == 2
    assert f"--size: got {size}; expected 32 to 1024 pixels" in capsys.readouterr().err
