import dataclasses
import sys

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from cxr_ray.errors import MissingPackageError, UserError
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import networks
from cxr_ray.models.networks import ModelSpec
from tests.builders.networks import varied, varied_resnet18

SIZE = 64
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def two() -> nn.Module:
    return varied_resnet18(2)


@torch.no_grad()
def test_normalisation_is_that_of_the_spec():
    spec = ModelSpec("resnet18", SIZE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.8))
    white = networks.build("resnet18", spec).normalize(torch.ones(1, 3, 2, 2))
    expected = torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.8])
    torch.testing.assert_close(white, expected.view(1, 3, 1, 1).expand(1, 3, 2, 2))


@torch.no_grad()
def test_log_odds_of_two_outputs_are_their_difference(two):
    classifier = networks.Classifier(two, ModelSpec("resnet18", SIZE)).eval()
    z = two(IMAGES)
    torch.testing.assert_close(classifier(IMAGES), z, rtol=0, atol=0)
    torch.testing.assert_close(classifier.log_odds(IMAGES), z[:, 1] - z[:, 0], rtol=0, atol=0)
    probability = z.double().softmax(1)[:, 1]
    torch.testing.assert_close(classifier.log_odds(IMAGES), probability.logit().float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_output_may_be_the_log_odds_of_either_class():
    network = varied_resnet18(1)
    z = network(IMAGES)[:, 0]
    for columns, sign in ((None, 1), (((), (0,)), 1), (((0,), ()), -1)):
        classifier = networks.Classifier(network, ModelSpec("resnet18", SIZE, outputs=1, columns=columns)).eval()
        torch.testing.assert_close(classifier.log_odds(IMAGES), sign * z, rtol=0, atol=0)
        torch.testing.assert_close(classifier(IMAGES), sign * torch.stack([-z, z], 1), rtol=0, atol=0)


@torch.no_grad()
def test_log_odds_are_float32_whatever_the_network_computes_in(two):
    half = networks.Classifier(varied_resnet18().bfloat16(), ModelSpec("resnet18", SIZE)).eval()
    assert half.log_odds(IMAGES.bfloat16()).dtype == torch.float32


def test_grad_cam_reads_the_last_block(two):
    assert networks.Classifier(two, ModelSpec("resnet18", SIZE)).cam_layer is two.layer4[1]


@pytest.mark.parametrize("arch", networks.NETWORKS)
def test_grad_cam_of_every_network_is_that_of_captum_at_its_last_block(arch):
    made = varied(arch, SIZE)
    inputs = Inputs(IMAGES, IMAGES, torch.zeros(3, 1, 1), torch.tensor([0, 1, 1]), ["a", "b", "c"], 0)
    cam = LayerGradCam(made, made.network.layer4[1])
    oracle = cam.attribute(IMAGES.clone().requires_grad_(), target=inputs.targets, relu_attributions=True)[:, 0]
    assert oracle.shape == (3, 2, 2)
    assert oracle.max() > 0
    torch.testing.assert_close(EXPLAINERS["gradcam"].explain(made, inputs), oracle.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", networks.NETWORKS)
def test_the_head_is_one_linear_layer_called_fc_after_average_pooling(arch):
    """What freezing, cascading randomisation and the class activation maps rely on."""
    made, kept = varied(arch, SIZE), []
    assert {n.split(".")[0] for n in made.network.state_dict()} == {
        "conv1",
        "bn1",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "fc",
    }
    handle = made.cam_layer.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        z = made(IMAGES)
    handle.remove()
    torch.testing.assert_close(made.network.fc(kept[0].mean((2, 3))), z)


def test_without_timm_its_networks_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError) as caught:
        networks.build("seresnet18", ModelSpec("seresnet18", SIZE))
    assert str(caught.value) == (
        "got seresnet18, a network of timm; expected timm to be installed; install it: pip install 'cxr-ray[timm]'."
    )


def test_a_model_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelSpec("resnet18", SIZE).size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, "got the mean .* divide by 255"),
        ({"mean": (0.5,)}, "expected three numbers, one a channel"),
        ({"std": 0.5}, "got the std 0.5 in a ModelSpec; expected three numbers"),
        ({"std": (0.2, 0, 0.2)}, "got the std .* expected numbers above 0"),
        ({"std": (0.2, -1, float("nan"))}, "got the std"),
        ({"columns": ((0,), (0,))}, "got the columns .* each once"),
        ({"columns": ((0, 1), (1,))}, "got the columns"),
        ({"columns": ((0,), (-1,))}, "got the columns"),
        ({"columns": {"NORMAL": [0], "PNEUMONIA": [1]}}, r"got the columns .* give such as columns=\(\(0,\), \(1,\)\)"),
        ({"columns": ((), ())}, "got the columns"),
        ({"classes": ("PNEUMONIA", "NORMAL")}, r"got the classes PNEUMONIA, NORMAL .* columns=\(\(1,\), \(0,\)\)"),
        ({"size": 0}, "got the size 0"),
        ({"outputs": None}, "got the outputs None"),
    ],
)
def test_a_model_spec_of_other_values_is_refused(values, what):
    with pytest.raises(UserError, match=what):
        ModelSpec(**{"arch": "resnet18", "size": SIZE, **values})


def test_a_model_spec_takes_lists_as_json_has_them():
    given = ModelSpec("resnet18", SIZE, mean=[0.5] * 3, std=[1, 1, 1], columns=[[0], [1, 2]])  # type: ignore[arg-type]
    assert given == ModelSpec("resnet18", SIZE, mean=(0.5, 0.5, 0.5), std=(1, 1, 1), columns=((0,), (1, 2)))
    assert hash(given)
