"""Explainers on a dozen kinds of networks, against captum, autograd and patched ReLUs."""

import pytest
import torch
from captum import attr
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_ray.errors import UserError
from cxr_ray.measure import needs
from cxr_ray.measure.attribution.cam import head_weights
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.attribution.relus import with_separate_relus
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier, ModelSpec
from tests.builders.architectures import FACTORY, SIZE, images, varied

# name: layer of class activation maps, layout, whether pooling and one linear layer follow, has guided, has DeepLIFT
KNOWN = {
    f"{FACTORY}:densenet": ("features.norm5", "BCHW", False, True, True),
    f"{FACTORY}:vgg_small": ("features.7", "BCHW", False, True, True),
    f"{FACTORY}:vit": ("encoder.layers.encoder_layer_1.ln_1", "BTC", False, False, False),
    f"{FACTORY}:swin": ("permute", "BCHW", True, False, False),
    f"{FACTORY}:convnext": ("features.3.0", "BCHW", False, False, False),
    f"{FACTORY}:Reused": ("four", "BCHW", False, True, True),
    "torchvision:mobilenet_v3_small": ("features.12", "BCHW", False, False, False),
    "torchvision:shufflenet_v2_x0_5": ("conv5.2", "BCHW", True, True, True),
    "torchvision:mnasnet0_5": ("layers.16", "BCHW", True, True, True),
    "torchvision:squeezenet1_1": ("features.12", "BCHW", False, True, True),
    "timm:test_vit": ("blocks.5.norm1", "BTC", False, False, False),
    "timm:test_efficientnet": ("bn2", "BCHW", True, False, False),
    "resnet18": ("layer4.1", "BCHW", True, True, True),
}
SIZES = {"timm:test_vit": 160, "timm:test_efficientnet": 64, "resnet18": 64}
SIZES |= {arch: 64 for arch in KNOWN if arch.startswith("torchvision:")}


def made(arch: str, cam_layer: str | None = None) -> Classifier:
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = networks.build(arch, ModelSpec(arch, SIZES.get(arch, SIZE), cam_layer=cam_layer))
    varied(model.network, model.spec.size)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.fixture
def model(request, models) -> Classifier:
    """One of KNOWN; each is built once."""
    if request.param not in models:
        models[request.param] = made(request.param)
    return models[request.param]


def inputs(model: Classifier) -> Inputs:
    given = images(size=model.spec.size)
    return Inputs(given, given, torch.full((3, 1, 1), -2.0), torch.tensor([1, 0]), ["a", "b"], 0)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-30)


def of_each(*archs: str):
    return pytest.mark.parametrize("model", archs or KNOWN, indirect=True)


def score(model: Classifier, given: Inputs, x: Tensor) -> Tensor:
    return model(x).gather(1, given.targets[:, None])[:, 0]


@of_each()
def test_the_layer_of_class_activation_maps_is_found(model):
    layer, layout, is_linear, *_ = KNOWN[model.spec.arch]
    assert (model.features.layer, model.features.layout) == (layer, layout)
    assert (head_weights(model, torch.tensor([0, 1])) is not None) == is_linear


@of_each()
def test_gradcam_is_captums_or_on_tokens_autograds(model):
    given = inputs(model)
    maps = EXPLAINERS["gradcam"].explain(model, given)
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    if model.features.layout == "BCHW":
        layer = attr.LayerGradCam(model, model.cam_layer)
        oracle = layer.attribute(given.images.clone().requires_grad_(), given.targets, relu_attributions=True)[:, 0]
    else:  # the last tokens, row by row; the first are the class token
        with model.cam_layer.register_forward_hook(keep):
            z = score(model, given, given.images.clone().requires_grad_())
        (gradient,) = torch.autograd.grad(z.sum(), kept[0])
        side = model.features.side
        tokens, slopes = (t[:, -(side**2) :] for t in (kept[0], gradient))
        oracle = (tokens * slopes.mean(1, keepdim=True)).sum(2).view(-1, side, side).relu()
    assert oracle.max() > 0
    assert close(maps, oracle.detach())
    assert not any(m._forward_hooks for m in model.modules())


@of_each()
def test_passes_are_those_declared(model):
    given, forward = inputs(model), []
    assert model.features
    with model.network.register_forward_pre_hook(lambda m, a: forward.append(len(a[0]))):
        for name in ("gradcam", "layercam", "saliency"):
            EXPLAINERS[name].explain(model, given)
            assert sum(forward) / 2 == EXPLAINERS[name].passes(model.spec.size)[0]
            forward.clear()


@of_each()
def test_what_a_network_can_have_is_declared(model):
    *_, guided, deeplift = KNOWN[model.spec.arch]
    refused = dict(needs.missing(model, list(EXPLAINERS)))
    has = {"guided_gradcam": guided, "deeplift": deeplift, "attention_rollout": "vit" in model.spec.arch}
    assert set(refused) == {name for name in has if not has[name]}, refused


@of_each(f"{FACTORY}:densenet", f"{FACTORY}:vgg_small", f"{FACTORY}:Reused", "torchvision:shufflenet_v2_x0_5")
def test_deeplift_adds_up_to_the_difference_of_the_scores(model):
    given = inputs(model)
    total = EXPLAINERS["deeplift"].explain(model, given).flatten(1).sum(1)
    expected = score(model, given, given.images) - score(model, given, given.black.expand_as(given.images))
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(min=0) * (ctx.saved_tensors[0] > 0)


@of_each(f"{FACTORY}:densenet", f"{FACTORY}:vgg_small", f"{FACTORY}:Reused", "resnet18")
def test_guided_backpropagation_reaches_every_relu(model, monkeypatch):
    """Against the network as it is, with every ReLU of torch patched."""
    given = inputs(model)
    maps = EXPLAINERS["guided_gradcam"].explain(model, given)
    cams = EXPLAINERS["gradcam"].explain(model, given)
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: GuidedReLU.apply(x))
    leaf = given.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(model, given, leaf).sum(), leaf)
    size = [model.spec.size] * 2
    large = F.interpolate(cams[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    assert close(maps, gradient.sum(1) * large)


def test_what_hides_a_relu_is_refused_with_the_reason():
    refused = dict(needs.missing(made(f"{FACTORY}:clamped"), ["guided_gradcam", "deeplift"]))
    assert refused["guided_gradcam"].endswith("and the network has the method clamp")
    assert refused["deeplift"].startswith("a layer has no rescale rule: ")
    with pytest.raises(UserError, match="scores change once its ReLUs no longer work in place"):
        with_separate_relus(made(f"{FACTORY}:InPlace"))


def test_the_layer_of_class_activation_maps_may_be_named():
    model = made(f"{FACTORY}:densenet", cam_layer="features.transition1")
    assert (model.features.channels, model.features.side) == (8, 4)
    with pytest.raises(UserError, match=r"^cam_layer: got 'features.norm6', which is no module; .* such as features"):
        _ = made(f"{FACTORY}:densenet", cam_layer="features.norm6").features
    with pytest.raises(UserError, match=r"^cam_layer: got 'classifier', whose output is not spatial"):
        _ = made(f"{FACTORY}:densenet", cam_layer="classifier").features


def test_a_network_that_cannot_have_an_explainer_is_refused_in_a_line():
    with pytest.raises(UserError) as caught:
        needs.check("mine", made(f"{FACTORY}:convnext"), ["gradcam", "guided_gradcam", "deeplift", "occlusion"])
    guided, deeplift = str(caught.value).splitlines()
    assert guided == (
        f"explain.explainers: got guided_gradcam for mine ({FACTORY}:convnext); guided backpropagation is defined for "
        "ReLUs alone, and the network has GELU (features.1.0.block.4); leave it out, or give another network."
    )
    assert deeplift.startswith(f"explain.explainers: got deeplift for mine ({FACTORY}:convnext); a layer has no ")
    assert needs.check("mine", made(f"{FACTORY}:convnext"), ["gradcam"]) == [
        f"mine ({FACTORY}:convnext): class activation maps read features.3.0 (16 channels of 4 x 4 places)."
    ]


def test_a_network_that_is_only_called_resnet18_is_asked_all_the_same():
    model = Classifier(made(f"{FACTORY}:clamped").network, ModelSpec("resnet18", SIZE))
    refused = dict(needs.missing(model, ["guided_gradcam", "deeplift"]))
    assert set(refused) == {"guided_gradcam", "deeplift"}
    with pytest.raises(UserError, match="deeplift"):
        needs.require(model, ["deeplift"])


class Moved(nn.Module):
    """A network that moves its images inside."""

    def __init__(self, move):
        super().__init__()
        self.body, self.fc, self.move = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 2), move

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.body(self.move(x))).mean((2, 3)))


MOVES = {
    "reach none of them": [lambda x: x[..., 8:56, 8:56], lambda x: x[..., :48, 16:]],
    "looks at": [lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.mT, lambda x: F.pad(x, (16, 16, 16, 16))],
}


@pytest.mark.parametrize(("what", "move"), [(what, move) for what, moves in MOVES.items() for move in moves])
def test_class_activation_maps_of_cells_that_lie_elsewhere_are_refused(what, move):
    torch.manual_seed(0)
    model = Classifier(Moved(move), ModelSpec("mine", 64)).eval()
    refused = dict(needs.missing(model, ["gradcam", "saliency", "occlusion"]))
    assert list(refused) == ["gradcam"]
    assert what in refused["gradcam"]
    with pytest.raises(UserError, match=what):
        _ = model.features


KEPT = [lambda x: x, lambda x: F.interpolate(x, (32, 32)), lambda x: x - x.mean(), lambda x: x[..., 2:, 2:]]


@pytest.mark.parametrize("move", KEPT)
def test_cells_that_lie_where_they_look_are_read(move):
    torch.manual_seed(0)
    assert Classifier(Moved(move), ModelSpec("mine", 64)).eval().features.layer == "body"
