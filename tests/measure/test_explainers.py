"""Explainers against closed forms, captum, plain loops and their axioms."""

import dataclasses

import numpy as np
import pytest
import torch
from captum import attr
from scipy import ndimage
from skimage.transform import resize
from torch import Tensor, nn

from cxr_ray.measure import cost, fills, rankings
from cxr_ray.measure.attribution import gradients, perturbation
from cxr_ray.measure.attribution.cam import head_weights
from cxr_ray.measure.attribution.inputs import MOST, PASS, Inputs, combine, images_in_a_pass
from cxr_ray.measure.attribution.relus import ReluMaxPool, with_separate_relus
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier, ModelSpec
from tests.builders.networks import CHANNELS, small

SIZE = 56
OF_ANY = [name for name, entry in EXPLAINERS.items() if "attention" not in entry.needs]  # of convolutional networks
CAMS = [name for name, entry in EXPLAINERS.items() if entry.cam]
MODEL_FREE = ["random", "centre", "edges", "intensity"]
SAMPLED = ["smoothgrad", "gradient_shap", "rise", "kernel_shap", "random"]


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    """Fewer masks do."""
    monkeypatch.setattr(perturbation, "RISE_MASKS", 70)


def linear(outputs: int = 2, size: int = 14) -> Classifier:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, outputs))
    return Classifier(network, ModelSpec("resnet18", size, outputs)).eval().requires_grad_(False)


def inputs(size: int = SIZE, n: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(n, 3, size, size, generator=generator)
    blurred = fills.FILLS["blur"].make(images, torch.zeros(3, 1, 1), torch.zeros(n))
    targets = torch.tensor([0, 1, 1])[:n]
    return Inputs(images, blurred, torch.full((3, 1, 1), -2.0), targets, [f"{i:016x}" for i in range(n)], 0)


def explain(name: str, model: Classifier, given: Inputs) -> Tensor:
    return EXPLAINERS[name].explain(model, given)


def score(model: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    return model(images).gather(1, targets[:, None])[:, 0]


def close(made: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether both agree, by the largest value, which is not zero."""
    top = float(expected.abs().max())
    assert top > 0
    return made.shape == expected.shape and float((made - expected).abs().max()) <= tolerance * top


# Class activation maps


def cam_parts(name: str, model: Classifier, given: Inputs) -> tuple[Tensor, Tensor]:
    """Weights and activations, of which a class activation map is made."""
    cam = EXPLAINERS[name].cam
    assert cam is not None
    return cam(model, given)


def captums_gradcam(model: Classifier, given: Inputs) -> Tensor:
    leaf = given.images.clone().requires_grad_()
    layer = attr.LayerGradCam(model, model.cam_layer)
    return layer.attribute(leaf, target=given.targets, relu_attributions=True)[:, 0].detach()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("arch", ["small", "resnet18", "resnet18d", "seresnet18"])
def test_gradcam_equals_captum_and_needs_no_backward_pass(arch, outputs):
    if arch in ("resnet18d", "seresnet18"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    spec = ModelSpec(arch, 64, outputs)
    model = small(outputs) if arch == "small" else networks.build(arch, spec).requires_grad_(False)
    given = inputs(64, 2)
    assert head_weights(model, given.targets) is not None
    expected = captums_gradcam(model, given)
    with torch.inference_mode():
        assert close(explain("gradcam", model, given), expected)


def test_gradcam_falls_back_to_autograd_where_the_closed_form_does_not_hold():
    model, given = small(), inputs()
    expected = {name: explain(name, model, given) for name in CAMS}
    same = nn.Linear(2, 2).requires_grad_(False)
    same.weight.copy_(torch.eye(2))
    same.bias.zero_()
    model.network.fc = nn.Sequential(model.network.fc, same)
    assert head_weights(model, given.targets) is None
    for name in CAMS:
        with torch.no_grad():
            assert close(explain(name, model, given), expected[name]), name


def pooled_by_quarters() -> Classifier:
    """A network whose gradient at the last shard differs from place to place."""
    model = small()
    model.network.avgpool = nn.AdaptiveAvgPool2d(2)
    model.network.fc = nn.Linear(4 * CHANNELS, 2).requires_grad_(False)
    return model


def test_the_head_of_a_network_that_pools_to_more_than_one_place_is_not_taken_for_a_closed_form():
    model, given = pooled_by_quarters(), inputs()
    assert head_weights(model, given.targets) is None
    assert close(explain("gradcam", model, given), captums_gradcam(model, given))


@pytest.mark.parametrize("make", [small, pooled_by_quarters])
def test_gradcam_plus_plus_and_layercam_are_the_papers_formulas(make):
    """Each channel in turn, from autograd's gradients in float64, with equation 19 of Grad-CAM++ as it stands."""
    model, given = make().double(), inputs()
    given = dataclasses.replace(given, images=given.images.double())
    body, head = (
        nn.Sequential(*list(model.network.children())[:-2]),
        nn.Sequential(*list(model.network.children())[-2:]),
    )
    for i, image in enumerate(given.images):
        activations = body(image[None]).requires_grad_()
        z = head[1](head[0](activations).flatten(1))[0, given.targets[i]]
        (gradients,) = torch.autograd.grad(z, activations)
        plus_plus, layer = torch.zeros(7, 7).double(), torch.zeros(7, 7).double()
        for a, g in zip(activations[0].detach(), gradients[0], strict=True):
            alpha = torch.where(g == 0, 0.0, g**2 / (2 * g**2 + a.sum() * g**3))
            plus_plus += (alpha * g.clamp(min=0)).sum() * a
            layer += g.clamp(min=0) * a
        assert close(explain("gradcam_plus_plus", model, given)[i], plus_plus.clamp(min=0))
        assert close(explain("layercam", model, given)[i], layer.clamp(min=0))


def test_scorecam_equals_a_loop_over_images_and_channels():
    model, given = small(), inputs()
    weights, activations = cam_parts("scorecam", model, given)
    for i, image in enumerate(given.images):
        z = []
        for k in range(CHANNELS):
            mask = nn.functional.interpolate(activations[i, k][None, None], SIZE, mode="bilinear")[0]
            shown = mask - mask.min()
            shown = shown / shown.max() if shown.max() > 0 else shown
            z.append(model((image * shown)[None])[0, given.targets[i]])
        expected = torch.stack(z).exp() / torch.stack(z).exp().sum()
        assert close(weights[i], expected)
        loop = sum(w * a for w, a in zip(expected, activations[i], strict=True))
        assert close(explain("scorecam", model, given)[i], loop.clamp(min=0))


def test_scorecam_masks_everything_where_a_channel_is_constant():
    model, given = small(), inputs()
    model.network.layer4[0].bn2.weight[3] = 0.0
    model.network.layer4[0].downsample[1].weight[3] = 0.0
    model.network.layer4[0].bn2.bias[3] = 2.0
    weights, activations = cam_parts("scorecam", model, given)
    assert (activations[:, 3] == 2).all()
    others = [k for k in range(CHANNELS) if (activations[:, k].amax((1, 2)) > activations[:, k].amin((1, 2))).all()]
    nothing = score(model, torch.zeros_like(given.images), given.targets)
    mask = rankings.upsample(activations[:, others[0]], SIZE)
    mask = (mask - mask.amin((1, 2), keepdim=True)) / (mask.amax((1, 2)) - mask.amin((1, 2)))[:, None, None]
    seen = score(model, given.images * mask[:, None], given.targets)
    assert torch.allclose(weights[:, 3] / weights[:, others[0]], (nothing - seen).exp(), atol=1e-5)


@pytest.mark.parametrize("name", CAMS)
def test_a_class_activation_map_is_its_parts_combined(name):
    model, given = small(), inputs()
    weights, activations = cam_parts(name, model, given)
    assert activations.shape == (3, CHANNELS, 7, 7)
    assert weights.shape in ((3, CHANNELS), (3, CHANNELS, 7, 7))
    loop = torch.zeros(3, 7, 7)
    for k in range(CHANNELS):
        weight = weights[:, k] if weights.ndim == 4 else weights[:, k, None, None]
        loop += weight * activations[:, k]
    assert close(combine(weights, activations), loop.clamp(min=0))
    assert torch.equal(explain(name, model, given), combine(weights, activations))
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(0))
    assert close(combine(weights[:, order], activations[:, order]), loop.clamp(min=0))
    assert not close(combine(weights[:, order], activations), loop.clamp(min=0), 1e-2)


def test_the_class_activation_maps_are_these():
    assert CAMS == ["gradcam", "gradcam_plus_plus", "layercam", "scorecam"]
    assert [name for name, entry in EXPLAINERS.items() if entry.model_free] == MODEL_FREE


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.clamp(min=0) * (x > 0)


class Guided(nn.Module):
    def forward(self, x):
        return GuidedReLU.apply(x)


def test_guided_gradcam_equals_captum_and_a_relu_of_its_own():
    model, given = small(), inputs()
    made = explain("guided_gradcam", model, given)
    copied = with_separate_relus(model)
    layer = attr.GuidedGradCam(copied, copied.cam_layer)
    leaf = given.images.clone().requires_grad_()
    with pytest.warns(UserWarning, match="backward hooks"):
        theirs = layer.attribute(leaf, target=given.targets, interpolate_mode="bilinear").sum(1)
    assert close(made, theirs.detach())
    cams = rankings.upsample(captums_gradcam(model, given), SIZE)
    model.network.relu = model.network.layer4[0].relu = Guided()  # has no state, so one serves all calls
    (guided,) = torch.autograd.grad(score(model, leaf, given.targets).sum(), leaf)
    assert close(made, guided.sum(1) * cams)


# Gradients


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_explainers_on_a_linear_network_are_its_weights(outputs):
    size = 14
    model, given = linear(outputs, size), inputs(14)
    weight = model.network[1].weight
    rows = weight[given.targets] if outputs == 2 else weight[0] * (2 * given.targets[:, None] - 1)
    weight = rows.view(3, 3, size, size)
    difference = given.images - given.black
    levels, _ = gradients.grey_levels(given)
    baseline = model.normalize(levels.mean(1)[:, None, None, None])
    for name, expected in {
        "saliency": weight.abs().sum(1),
        "input_x_gradient": (weight * given.images).sum(1),
        "integrated_gradients": (weight * difference).sum(1),
        "smoothgrad": weight.abs().sum(1),
        "gradient_shap": (weight * (given.images - baseline)).sum(1),
        "deeplift": (weight * difference).sum(1),
    }.items():
        assert torch.allclose(EXPLAINERS[name].explain(model, given), expected, atol=1e-5), name


class Squares(nn.Module):
    """z_1 = sum x^2 / 2, so that the gradient is the image."""

    def forward(self, x):
        z = (x**2).sum((1, 2, 3)) / 2
        return torch.stack([-z, z], 1)


def squares(size: int) -> Classifier:
    return Classifier(Squares(), ModelSpec("resnet18", size)).eval()


def test_integrated_gradients_are_complete():
    model, given = small(), inputs()
    made = explain("integrated_gradients", model, given).flatten(1).sum(1)
    expected = score(model, given.images, given.targets) - score(
        model, given.black.expand_as(given.images), given.targets
    )
    assert torch.allclose(made, expected, rtol=0.05, atol=0.05)


def test_smoothgrad_without_noise_is_the_gradient(monkeypatch):
    model, given = small(), inputs()
    monkeypatch.setattr(gradients, "SMOOTHGRAD_NOISE", 0.0)
    assert close(explain("smoothgrad", model, given), explain("saliency", model, given))


def test_smoothgrad_adds_gaussian_noise_of_15_percent_of_the_range_equal_in_all_channels():
    """Where the gradient is the image, the mean gradient is the image plus the mean of 16 fields."""
    size = 112
    model = squares(size)
    pixels = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    pixels = 10 + pixels * torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)  # far from zero: |mean| is the mean
    images = model.normalize(pixels)
    given = Inputs(images, images, model.normalize(torch.zeros(3, 1, 1)), torch.tensor([1, 1]), ["a", "b"], 0)
    noise = (explain("smoothgrad", model, given) - images.sum(1)) / (1 / model.std).sum()
    ranges = (pixels.flatten(1).amax(1) - pixels.flatten(1).amin(1)).numpy()
    z = noise.flatten(1).numpy() / ranges[:, None] / 0.15 * 16**0.5
    assert np.abs(z.mean(1)).max() < 4 / size
    assert np.abs(z.std(1) - 1).max() < 4 / size / 2**0.5
    assert abs(np.corrcoef(z)[0, 1]) < 4 / size
    assert np.abs(z).max() > 3


def test_gradient_shap_is_the_mean_over_baselines_of_difference_times_gradient():
    model, given = small(), inputs()
    levels, ways = gradients.grey_levels(given)
    assert levels.shape == ways.shape == (3, 16)
    assert len(torch.cat([levels, ways]).unique()) == 3 * 16 * 2
    for i, image in enumerate(given.images):
        total = torch.zeros_like(image)
        for level, way in zip(levels[i], ways[i], strict=True):
            baseline = model.normalize(level.expand(3, SIZE, SIZE))
            point = (baseline + way * (image - baseline)).requires_grad_()
            (gradient,) = torch.autograd.grad(model(point[None])[0, given.targets[i]], point)
            total += (image - baseline) * gradient / 16
        assert close(explain("gradient_shap", model, given)[i], total.sum(0))


@pytest.mark.parametrize("outputs", [1, 2])
def test_deeplift_is_complete(outputs):
    model, given = small(outputs), inputs()
    made = explain("deeplift", model, given).flatten(1).sum(1)
    black = given.black.expand_as(given.images)
    expected = score(model, given.images, given.targets) - score(model, black, given.targets)
    assert expected.abs().min() > 1e-3
    assert torch.allclose(made, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", ["resnet18", "resnet18d"])
def test_deeplift_is_complete_on_the_networks_of_a_sweep(arch):
    if arch != "resnet18":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = networks.build(arch, ModelSpec(arch, 64)).requires_grad_(False)
    given = inputs(64, 2)
    made = explain("deeplift", model, given).flatten(1).sum(1)
    black = given.black.expand_as(given.images)
    expected = score(model, given.images, given.targets) - score(model, black, given.targets)
    assert expected.abs().min() > 1e-3
    assert torch.allclose(made, expected, rtol=1e-3, atol=1e-5)


def test_deeplift_of_one_hidden_layer_is_its_closed_form():
    size, hidden = 8, 5
    torch.manual_seed(3)
    first, last = nn.Linear(3 * size * size, hidden), nn.Linear(hidden, 2)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    model = Classifier(network, ModelSpec("resnet18", size)).eval().requires_grad_(False)
    given = inputs(size)
    difference = (given.images - given.black).flatten(1)
    at, black = first(given.images.flatten(1)), first(given.black.expand_as(given.images).flatten(1))
    slope = (at.relu() - black.relu()) / (at - black)
    assert ((slope > 0) & (slope < 1)).any()
    expected = (last.weight[given.targets] * slope) @ first.weight * difference
    assert close(explain("deeplift", model, given), expected.view(3, 3, size, size).sum(1))


@pytest.mark.parametrize("size", [13, 14])
@pytest.mark.parametrize("arguments", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 1, 1)])
def test_max_pooling_out_of_relus_is_max_pooling(arguments, size):
    pool = nn.MaxPool2d(*arguments)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ReluMaxPool(pool)(x), pool(x), atol=1e-6)


def test_the_copy_with_separate_relus_scores_alike_shares_the_weights_and_leaves_the_model_alone():
    model, given = small(), inputs()
    before = {name: type(m) for name, m in model.named_modules()}
    expected = model(given.images)
    copied = with_separate_relus(model)
    assert torch.equal(copied(given.images), expected)
    assert copied.network.fc.weight is model.network.fc.weight
    calls = []
    relus = [m for m in copied.modules() if isinstance(m, nn.ReLU)]
    for relu in relus:
        assert not relu.inplace
        relu.register_forward_hook(lambda m, a, o: calls.append(m))
    copied(given.images)
    assert sorted(map(id, calls)) == sorted(map(id, relus))
    assert {name: type(m) for name, m in model.named_modules()} == before
    assert model.network.relu.inplace


# Masks


def test_occlusion_finds_the_only_place_that_matters():
    size = 56
    head = nn.Linear(3 * size * size, 2)
    network = nn.Sequential(nn.Flatten(), head)
    with torch.no_grad():
        weight = torch.zeros(2, 3, size, size)
        weight[1, :, 40:44, 8:12] = 1.0
        head.weight.copy_(weight.flatten(1))
    model = Classifier(network, ModelSpec("resnet18", size)).requires_grad_(False)
    images = torch.zeros(1, 3, size, size)
    images[:, :, 40:44, 8:12] = 1.0
    given = Inputs(images, torch.zeros_like(images), torch.zeros(3, 1, 1), torch.tensor([1]), ["a"], 0)
    made = EXPLAINERS["occlusion"].explain(model, given)[0]
    assert made.max() == made[41, 9] > 0
    away = torch.ones(size, size, dtype=torch.bool)
    away[32:52, 0:20] = False
    assert made[away].abs().max() < 1e-6


@pytest.mark.parametrize("size", [64, 96, 112, 128, 150, 192, 224, 256, 299, 320, 384, 512])
def test_occlusion_is_flat_where_every_place_matters_alike(size):
    """The score is the mean of all pixels."""

    class Mean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            z = images.mean((1, 2, 3))
            return torch.stack([-z, z], 1)

    images = torch.ones(1, 3, size, size)
    given = Inputs(images, torch.zeros_like(images), torch.zeros(3, 1, 1), torch.tensor([1]), ["a"], 0)
    made = EXPLAINERS["occlusion"].explain(Classifier(Mean(), ModelSpec("resnet18", size)), given)[0]
    assert torch.allclose(made, torch.tensor((size // 7) ** 2 / size**2), rtol=1e-3)


@pytest.mark.parametrize("size", [112, 224])
def test_occlusion_is_captums_where_strides_leave_no_rest(size):
    model, given = small(size=size), inputs(size, 1)
    window, stride = size // 7, size // 14
    captums = attr.Occlusion(model).attribute(
        given.images, (3, window, window), (3, stride, stride), baselines=given.blurred, target=given.targets
    )
    expected = captums.mean(1)  # captum gives every channel the whole fall
    made = EXPLAINERS["occlusion"].explain(model, given)
    assert torch.allclose(made, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [32, 60, 101, 320])
def test_occlusion_windows_are_whole_and_cover_every_pixel(size):
    inside = perturbation.occlusion_windows(size)
    assert (inside.sum(1) == size // 7).all()
    assert inside.any(0).all()
    assert inside[0, 0]
    assert inside[-1, -1]


@pytest.mark.parametrize("size", [56, 60])
def test_rise_masks_are_the_papers(size, monkeypatch):
    """Cells stretched over (7 + 1) ceil(size / 7) pixels as RISE's code does it, with scikit-image, and cut out.

    But for the rim: there RISE's mode, reflect, blends the two outermost cells; ours keeps the outermost.
    """
    monkeypatch.setattr(perturbation, "RISE_MASKS", 50)
    cells, offsets = perturbation.rise_masks(inputs(size))
    assert cells.shape == (3, 50, 7, 7)
    assert cells.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / (3 * 50 * 49) ** 0.5)
    step = -(-size // 7)
    assert set(offsets.flatten().tolist()) == set(range(step))
    made = perturbation.cut_out(cells[0].float(), offsets[0], size)
    for mask, cell, (y, x) in zip(made, cells[0], offsets[0], strict=True):
        large = resize(cell.double().numpy(), (8 * step, 8 * step), order=1, mode="edge", anti_aliasing=False)
        assert np.abs(mask.numpy() - large[y : y + size, x : x + size]).max() < 1e-5


def test_rise_equals_a_loop_over_its_masks_in_float64():
    model, given = small(), inputs()
    made = explain("rise", model, given)
    cells, offsets = perturbation.rise_masks(given)
    for i, image in enumerate(given.images):
        masks = perturbation.cut_out(cells[i].float(), offsets[i], SIZE)
        z = [float(model((image * m)[None])[0, given.targets[i]]) for m in masks]
        expected = np.zeros((SIZE, SIZE))
        for score_, mask in zip(z, masks.double().numpy(), strict=True):
            expected += score_ * mask
        expected /= masks.double().sum(0).numpy()
        assert np.abs(made[i].numpy() - expected).max() < 1e-5


def test_a_constant_added_to_the_score_adds_itself_to_rise_alone():
    model, given = small(), inputs()
    before = explain("rise", model, given)
    model.network.fc.bias += 100.0
    assert torch.allclose(explain("rise", model, given) - 100, before, atol=2e-5)
    assert before.std() > 1e-3


def test_rise_tends_to_its_expectation_on_a_linear_network(monkeypatch):
    """z reads one pixel p: the map is x_p E[M_p M] / E[M], highest at p, half of that where nothing is shared."""
    monkeypatch.setattr(perturbation, "RISE_MASKS", 3000)
    model = linear(size=SIZE)
    model.network[1].weight.zero_()
    model.network[1].bias.zero_()
    model.network[1].weight.view(2, 3, SIZE, SIZE)[1, :, 40, 12] = 1.0
    images = torch.ones(1, 3, SIZE, SIZE)
    given = Inputs(images, images, torch.zeros(3, 1, 1), torch.tensor([1]), ["a"], 0)
    made = explain("rise", model, given)[0] / 3
    noise = 4 / 3000**0.5
    away = torch.ones(SIZE, SIZE, dtype=torch.bool)
    away[40 - 20 : 40 + 20, : 12 + 20] = False
    assert (made[away] - 0.5).abs().max() < noise
    cells, offsets = perturbation.rise_masks(dataclasses.replace(given, ids=["another"]))
    masks = perturbation.cut_out(cells[0].float(), offsets[0], SIZE)
    expected = (masks * masks[:, 40:41, 12:13]).mean(0) / masks.mean(0)
    assert expected.max() > 0.7
    assert (made - expected).abs().max() < 2 * noise
    assert made.max() - made[40, 12] < noise


class Cells(nn.Module):
    """Scores of the means of the 7 x 7 cells."""

    def __init__(self, function, size: int):
        super().__init__()
        self.function, self.pool = function, nn.AvgPool2d(size // 7)

    def forward(self, x):
        z = self.function(self.pool(x).mean(1).flatten(1))
        return torch.stack([-z, z], 1)


def test_kernel_shap_is_exact_where_cells_add_up():
    size = 28
    weight = torch.randn(49, generator=torch.Generator().manual_seed(5))
    model = Classifier(Cells(lambda c: c @ weight + 3, size), ModelSpec("resnet18", size))
    given = inputs(size)
    means = nn.functional.avg_pool2d(given.images - given.black, size // 7).mean(1).flatten(1)
    expected = means * weight * torch.tensor([-1.0, 1.0, 1.0])[:, None]
    assert close(explain("kernel_shap", model, given).flatten(1), expected)


def test_kernel_shap_halves_what_two_cells_do_together_and_adds_up_exactly():
    """Shapley values of a product of two cells' presence: one half each, nothing for the others."""
    size = 28
    model = Classifier(Cells(lambda c: 8 * c[:, 10] * c[:, 40], size), ModelSpec("resnet18", size))
    images = torch.ones(4, 3, size, size)
    given = Inputs(images, images, torch.zeros(3, 1, 1), torch.ones(4).long(), list("abcd"), 0)
    made = explain("kernel_shap", model, given).flatten(1)
    assert torch.allclose(made.sum(1), torch.full((4,), 8.0), atol=1e-5)
    expected = torch.zeros(49)
    expected[[10, 40]] = 4.0
    assert (made.mean(0) - expected).abs().max() < 0.6
    assert (made.argsort(1, descending=True)[:, :2].sort(1).values == torch.tensor([10, 40])).all()


def test_kernel_shap_draws_sizes_by_the_shapley_kernel_and_complements():
    ids = [f"{i:016x}" for i in range(60)]
    given = Inputs(torch.zeros(60, 3, 7, 7), torch.zeros(60), torch.zeros(3, 1, 1), torch.zeros(60).long(), ids, 0)
    present = perturbation.coalitions(given)
    assert present.shape == (60, 258, 49)
    assert not present[:, -2].any()
    assert present[:, -1].all()
    assert torch.equal(present[:, :128], ~present[:, 128:256])
    sizes = present[:, :128].sum(2).flatten().numpy()
    s = np.arange(1, 49)
    share = 1 / (s * (49 - s))
    share /= share.sum()
    counted = np.bincount(sizes, minlength=49)[1:] / len(sizes)
    assert (np.abs(counted - share) < 4 * np.sqrt(share / len(sizes))).all()
    members = present[:, :128].float().mean((0, 1)).numpy()
    assert np.abs(members - 0.5).max() < 4 * 0.5 / len(sizes) ** 0.5


# Model-independent explainers


def grey_inputs(size: int = SIZE) -> tuple[Classifier, Inputs, np.ndarray]:
    model = small(size=size)
    grey = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(4))
    images = model.normalize(grey.expand(-1, 3, -1, -1))
    return model, dataclasses.replace(inputs(size), images=images), grey[:, 0].double().numpy()


def test_edges_are_scipys_sobel_magnitude():
    model, given, grey = grey_inputs()
    expected = np.stack([np.hypot(ndimage.sobel(image, axis=0), ndimage.sobel(image, axis=1)) for image in grey])
    assert np.abs(explain("edges", model, given).numpy() - expected).max() < 1e-5


def test_intensity_is_the_grey_image():
    model, given, grey = grey_inputs()
    assert np.abs(explain("intensity", model, given).numpy() - grey).max() < 1e-6


@pytest.mark.parametrize(("size", "corner"), [(56, -((27.5**2 + 27.5**2) ** 0.5)), (57, -((28**2 + 28**2) ** 0.5))])
def test_centre_is_minus_the_distance_from_the_centre(size, corner):
    model, given, _ = grey_inputs(size)
    made = explain("centre", model, given)
    assert torch.equal(made[0], made[2])
    assert torch.equal(made, made.flip(1))
    assert torch.equal(made, made.transpose(1, 2))
    assert float(made[0, 0, 0]) == pytest.approx(corner, rel=1e-6)
    assert float(made[0].max()) == pytest.approx(-(0.5**0.5) if size % 2 == 0 else 0.0)


@pytest.mark.parametrize("name", MODEL_FREE)
def test_explainers_that_know_nothing_of_the_model_do_not_run_it(name):
    model, given = small(), inputs()
    expected = explain(name, model, given)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(explain(name, model, given), expected)


# All of them


@pytest.mark.parametrize(
    "name",
    ["occlusion", "integrated_gradients", "smoothgrad", "gradient_shap", "rise", "kernel_shap", "scorecam", "deeplift"],
)
def test_larger_passes_give_the_same_maps_and_are_filled(name):
    model, given, sizes = small(), inputs(), []
    expected = explain(name, model, given)
    handle = model.network.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    made = explain(name, model, dataclasses.replace(given, in_a_pass=96))
    handle.remove()
    assert torch.allclose(made, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    most = {"smoothgrad": 48, "gradient_shap": 48, "scorecam": 48, "deeplift": 6}  # all that there are
    assert max(sizes) == most.get(name, 96)


def test_a_pass_fills_a_gpu_as_far_as_its_memory_goes(monkeypatch):
    gpu = torch.device("cuda")
    assert images_in_a_pass(torch.device("cpu"), 224) == PASS
    for gigabytes, images in ((80, MOST), (12, 96), (1, PASS)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=gigabytes: (free * 2**30, 80 * 2**30))
        assert images_in_a_pass(gpu, 224) == images


@pytest.mark.parametrize("name", OF_ANY)
def test_explainers_cost_what_they_declare_and_leave_nothing_on_the_model(name):
    model, given = small(), inputs()
    assert model.structure.features, "which is found once, not for every map"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
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
    assert made.dtype == torch.float32
    assert not made.requires_grad
    assert torch.isfinite(made).all()
    assert (sum(forward) / 3, sum(backward) / 3) == EXPLAINERS[name].cost(SIZE, CHANNELS)
    assert max([*forward, *backward, 0]) <= 2 * PASS
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert given.images.grad is None
    assert not given.images.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_declared_costs_at_224_pixels(monkeypatch):
    monkeypatch.undo()
    assert {name: entry.cost(224, cost.CHANNELS) for name, entry in EXPLAINERS.items()} == {
        "gradcam": (1, 0),
        "gradcam_plus_plus": (1, 0),
        "guided_gradcam": (2, 1),
        "layercam": (1, 0),
        "scorecam": (513, 0),
        "saliency": (1, 1),
        "input_x_gradient": (1, 1),
        "smoothgrad": (16, 16),
        "integrated_gradients": (32, 32),
        "gradient_shap": (16, 16),
        "deeplift": (2, 2),
        "attention_rollout": (1, 0),
        "occlusion": (170, 0),
        "rise": (1000, 0),
        "kernel_shap": (258, 0),
        "random": (0, 0),
        "centre": (0, 0),
        "edges": (0, 0),
        "intensity": (0, 0),
    }
    assert networks.build("resnet18", ModelSpec("resnet18", 224)).network.fc.in_features == cost.CHANNELS


def test_maps_do_not_depend_on_the_other_images_of_the_batch():
    model, given = small(), inputs()
    alone = Inputs(given.images[1:2], given.blurred[1:2], given.black, given.targets[1:2], given.ids[1:2], 0)
    for name in OF_ANY:
        together = explain(name, model, given)[1]
        assert torch.allclose(explain(name, model, alone)[0], together, atol=1e-4 * float(together.abs().max())), name


@pytest.mark.parametrize("name", SAMPLED)
def test_random_numbers_are_functions_of_seed_and_image(name):
    model, given = small(), inputs()
    torch.manual_seed(5)
    first = explain(name, model, given)
    torch.manual_seed(6)
    assert torch.equal(explain(name, model, given), first)
    assert not torch.allclose(explain(name, model, dataclasses.replace(given, seed=1)), first)
    same = dataclasses.replace(given, images=given.images[:1].expand(3, -1, -1, -1), targets=torch.ones(3).long())
    maps = explain(name, model, same)
    assert not torch.allclose(maps[0], maps[1])
    again = explain(name, model, dataclasses.replace(same, ids=["a", "a", "b"]))
    assert torch.equal(again[0], again[1])


@pytest.mark.parametrize("name", [n for n in OF_ANY if n not in MODEL_FREE])
def test_weights_that_are_not_finite_show_in_the_map(name):
    model, given = small(), inputs()
    model.network.fc.weight.fill_(torch.nan)
    assert not torch.isfinite(explain(name, model, given)).flatten(1).all(1).any()


@pytest.mark.parametrize("name", [n for n in OF_ANY if n not in (*MODEL_FREE, "scorecam")])
def test_a_network_that_always_says_the_same_gives_constant_maps(name):
    """All but Score-CAM, which then shows the mean activation."""
    model, given = small(), inputs()
    model.network.fc.weight.zero_()
    model.network.fc.bias.fill_(0.3)
    maps = explain(name, model, given).flatten(1)
    assert torch.equal(maps.amax(1), maps.amin(1))
