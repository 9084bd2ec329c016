"""Explainers against closed forms, captum and their axioms."""

import pytest
import torch
from captum import attr
from torch import nn

from cxr_ray import models, perturb
from cxr_ray.explainers import EXPLAINERS, IG_STEPS, Inputs, _head_weights
from cxr_ray.models import Classifier, Meaning

SIZE = 64


def classifier(outputs: int = 2) -> Classifier:
    torch.manual_seed(0)
    return models.build("resnet18", Meaning("resnet18", SIZE, outputs)).requires_grad_(False)


def linear(outputs: int = 2, size: int = 14) -> Classifier:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, outputs))
    return Classifier(network, Meaning("resnet18", size, outputs)).eval().requires_grad_(False)


def inputs(size: int = SIZE, n: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(n, 3, size, size, generator=generator)
    blurred = perturb.FILLS["blur"](images, torch.zeros(3, 1, 1), torch.zeros(n))
    targets = torch.tensor([0, 1, 1])[:n]
    return Inputs(images, blurred, torch.full((3, 1, 1), -2.0), targets, [f"{i:016x}" for i in range(n)], 0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradcam_equals_captum_and_needs_no_backward_pass(outputs):
    model, given = classifier(outputs), inputs()
    assert _head_weights(model, given.targets) is not None
    layer = attr.LayerGradCam(model, model.cam_layer)
    with torch.enable_grad():
        images = given.images.clone().requires_grad_()
        expected = layer.attribute(images, target=given.targets, relu_attributions=True)
    with torch.inference_mode():
        made = EXPLAINERS["gradcam"].explain(model, given)
    assert expected.abs().max() > 1e-4
    assert torch.allclose(made, expected[:, 0], atol=1e-6)


def test_gradcam_falls_back_to_captum_where_the_closed_form_does_not_hold():
    model, given = classifier(), inputs()
    expected = EXPLAINERS["gradcam"].explain(model, given)
    model.network.fc = nn.Sequential(model.network.fc)
    assert _head_weights(model, given.targets) is None
    assert torch.allclose(EXPLAINERS["gradcam"].explain(model, given), expected, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_explainers_on_a_linear_network_are_its_weights(outputs):
    size = 14
    model, given = linear(outputs, size), inputs(14)
    weight = model.network[1].weight
    rows = weight[given.targets] if outputs == 2 else weight[0] * (2 * given.targets[:, None] - 1)
    weight = rows.view(3, 3, size, size)
    difference = given.images - given.black
    for name, expected in {
        "saliency": weight.abs().sum(1),
        "input_x_gradient": (weight * given.images).sum(1),
        "integrated_gradients": (weight * difference).sum(1),
    }.items():
        assert torch.allclose(EXPLAINERS[name].explain(model, given), expected, atol=1e-5), name


def test_integrated_gradients_are_complete():
    model, given = classifier(), inputs()
    made = EXPLAINERS["integrated_gradients"].explain(model, given).flatten(1).sum(1)
    z = lambda x: model(x).gather(1, given.targets[:, None])[:, 0]  # noqa: E731
    expected = z(given.images) - z(given.black.expand_as(given.images))
    assert torch.allclose(made, expected, rtol=0.05, atol=0.05)


def test_occlusion_finds_the_only_place_that_matters():
    size = 56
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 2))
    with torch.no_grad():
        weight = torch.zeros(2, 3, size, size)
        weight[1, :, 40:44, 8:12] = 1.0
        network[1].weight.copy_(weight.flatten(1))
    model = Classifier(network, Meaning("resnet18", size)).requires_grad_(False)
    images = torch.zeros(1, 3, size, size)
    images[:, :, 40:44, 8:12] = 1.0
    given = Inputs(images, torch.zeros_like(images), torch.zeros(3, 1, 1), torch.tensor([1]), ["a"], 0)
    made = EXPLAINERS["occlusion"].explain(model, given)[0]
    assert made.max() == made[41, 9] > 0
    away = torch.ones(size, size, dtype=torch.bool)
    away[32:52, 0:20] = False
    assert made[away].abs().max() < 1e-6


@pytest.mark.parametrize("name", list(EXPLAINERS))
def test_explainers_cost_what_they_declare_and_leave_nothing_on_the_model(name):
    model, given = classifier(), inputs()
    forward, backward = [], []
    handles = [
        model.network.register_forward_pre_hook(lambda m, a: forward.append(len(a[0]))),
        model.network.conv1.register_full_backward_hook(lambda m, i, o: backward.append(len(o[0]))),
    ]
    made = EXPLAINERS[name].explain(model, given)
    for handle in handles:
        handle.remove()
    assert made.shape[0] == 3
    assert made.ndim == 3
    assert made.shape[1] == made.shape[2]
    assert torch.isfinite(made).all()
    # captum's occlusion evaluates the untouched batch once more
    assert (sum(forward) / 3, sum(backward) / 3) == EXPLAINERS[name].passes(SIZE)
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert IG_STEPS == 32


def test_maps_do_not_depend_on_the_other_images_of_the_batch():
    model, given = classifier(), inputs()
    alone = Inputs(given.images[1:2], given.blurred[1:2], given.black, given.targets[1:2], given.ids[1:2], 0)
    for name, entry in EXPLAINERS.items():
        together = entry.explain(model, given)[1]
        assert torch.allclose(entry.explain(model, alone)[0], together, atol=1e-4 * float(together.abs().max())), name
