"""The form of a network that explainers hook: batch norms folded away, and the same maps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cxr_ray.measure.attribution import perturbation
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import backends
from cxr_ray.models.networks import Classifier, ModelSpec
from tests.builders.networks import Small, varied

SIZE = 56
OF_NETWORKS = [n for n, e in EXPLAINERS.items() if "attention" not in e.needs and not e.model_free]


def batch_norms(model: Classifier) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def stirred(network: nn.Module, **spec) -> Classifier:
    """Batch norms that do something, so that one that is lost is seen."""
    torch.manual_seed(0)
    model = Classifier(network, ModelSpec("resnet18", SIZE, **spec)).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    head = network.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight)
    return model


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_maps_are_those_of_the_eager_module(name, monkeypatch):
    monkeypatch.setattr(perturbation, "RISE_MASKS", 70)
    model = stirred(Small(2))
    folded = backends.for_explainers(model)
    assert (batch_norms(model), batch_norms(folded)) == (4, 0)
    assert [n for n, _ in folded.network.named_modules()] == [n for n, _ in model.network.named_modules()]
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    given = Inputs(images, images / 2, torch.full((3, 1, 1), -2.0), torch.tensor([0, 1]), ["a", "b"], 0)
    own, expected = (EXPLAINERS[name].explain(m, given).detach() for m in (folded, model))
    assert expected.abs().max() > 0
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("arch", ["resnet18d", "torchvision:mobilenet_v3_small", "torchvision:densenet121"])
def test_networks_of_other_packages_score_alike_and_are_read_at_the_same_layer(arch):
    model = varied(arch, 64).requires_grad_(False)
    folded = backends.for_explainers(model)
    assert batch_norms(folded) < batch_norms(model)
    assert folded.features.layer == model.features.layer
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(folded.log_odds(images), model.log_odds(images), rtol=1e-4, atol=1e-4)


class Twice(Small):
    """One convolution with one batch norm, used twice: folded once, it would be scaled twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return super().forward(self.relu(self.bn1(self.conv1(x[:, :3]))).repeat(1, 1, 4, 4)[:, :3])


class Branching(Small):
    """No trace can follow what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("network", [Twice(2), Branching(2)], ids=["twice", "branching"])
def test_a_network_that_cannot_be_folded_is_hooked_as_it_is(network):
    model = stirred(network)
    assert backends.for_explainers(model) is model


def test_a_convolution_whose_output_is_asked_for_stays():
    model = stirred(Small(2))
    model.spec = replace(model.spec, cam_layer="layer4.0.conv2")
    assert backends.for_explainers(model) is model
