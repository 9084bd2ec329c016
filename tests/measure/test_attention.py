"""Attention rollout against a closed form, and against networks as they run, with their fused attention patched."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_ray.errors import UserError
from cxr_ray.measure import needs
from cxr_ray.measure.attribution.attention import tokens_of, why_none
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models.networks import Classifier, ModelSpec
from tests.builders.architectures import SIZE, images, vit


def classifier(network: nn.Module, size: int = SIZE) -> Classifier:
    return Classifier(network, ModelSpec("mine", size)).eval()


def timms(**arguments: object) -> Classifier:
    """A vision transformer of timm with random weights."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    small = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 2}
    network = timm.models.VisionTransformer(**{**small, **arguments})
    for weights in network.parameters():  # LayerScale and heads begin near zero
        nn.init.normal_(weights, std=0.3)
    return classifier(network)


def torchs() -> Classifier:
    torch.manual_seed(0)
    network = vit(2)
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.3)
    return classifier(network)


def rollout(model: Classifier) -> Tensor:
    given = images()
    return EXPLAINERS["attention_rollout"].explain(
        model, Inputs(given, given, torch.zeros(3, 1, 1), torch.tensor([1, 0]), ["a", "b"], 0)
    )


def as_it_runs(model: Classifier, monkeypatch) -> list[Tensor]:
    """The attention of each block, [B, T, T], computed where the network calls the fused kernel."""
    found: list[Tensor] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest, **more) -> Tensor:
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
        found.append(weights.detach().mean(1))
        return weights @ value

    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", attention)
        model(images())  # with gradients, for torch's MultiheadAttention has a fast path without
    return found


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (torchs, slice(0, 1)),
        (timms, slice(0, 1)),
        (lambda: timms(reg_tokens=2), slice(0, 1)),
        (lambda: timms(global_pool="avg"), slice(1, 17)),
        (lambda: timms(global_pool="avg", class_token=False, qk_norm=True, init_values=0.1), slice(0, 16)),
    ],
    ids=["torchvision", "timm", "registers", "mean", "no class token"],
)
def test_rollout_is_the_product_of_the_attention_with_which_the_network_runs(make, read, monkeypatch):
    model = make()
    blocks = as_it_runs(model, monkeypatch)
    assert len(blocks) == len(tokens_of(model).layers) > 1
    expected = torch.eye(blocks[0].shape[-1]).expand_as(blocks[0])
    for block in blocks:
        expected = (block + torch.eye(block.shape[-1])) @ expected / 2
    maps = rollout(model)
    torch.testing.assert_close(maps, expected[:, read].mean(1)[:, -16:].view(-1, 4, 4), rtol=1e-4, atol=1e-6)
    assert maps.flatten(1).std(1).min() > 1e-4


def test_uniform_attention_rolls_out_to_a_known_share():
    """A = (1 / T + I) / 2, of which the L-th power has (1 - 2^-L) / T beside the diagonal."""
    model = timms(depth=3)
    for name, weights in model.network.named_parameters():
        if name.endswith("attn.qkv.weight") or name.endswith("attn.qkv.bias"):
            weights.data[:32] = 0  # of queries and keys
    torch.testing.assert_close(rollout(model), torch.full((2, 4, 4), (1 - 2**-3) / 17))


def test_the_network_is_left_as_it_was():
    model = timms()
    with torch.no_grad():
        before = model(images())
        rollout(model)
        assert torch.equal(model(images()), before)
    assert all(block.attn.fused_attn for block in model.network.blocks)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Hidden(nn.Module):
    """Attention of its own behind timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timms().network

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body.forward_features(x)
        tokens = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        return self.body.head(tokens[:, 0])


class Convolved(Hidden):
    """A convolution over the tokens' grid behind the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body.head(self.conv(self.body.forward_features(x).transpose(1, 2))[:, :, 0])


class Parallel(Hidden):
    """Two attention modules that read the same tokens."""

    def forward(self, x: Tensor) -> Tensor:
        one, two, _ = self.body.blocks
        tokens = self.body._pos_embed(self.body.patch_embed(x))
        tokens = tokens + one.attn(tokens) + two.attn(tokens)
        return self.body.head(tokens[:, 0])


class Distilled(Hidden):
    """Scores from two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body.forward_features(x)
        return self.body.head(tokens[:, 0]) + self.second(tokens[:, 1])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), "no atten"),
        (Hidden, "in a form whose matrices cannot be read"),
        (Convolved, "tokens also mix outside of attention, in conv"),
        (Parallel, "called more than once, or never"),
        (Distilled, r"the scores come from several heads \(body.head, second\)"),
        (lambda: timms(global_pool="map").network, "in a form whose matrices cannot be read"),
    ],
)
def test_a_network_whose_tokens_mix_otherwise_is_refused_with_the_reason(make, reason):
    model = classifier(make())
    with pytest.raises(UserError, match=reason):
        rollout(model)
    assert dict(needs.missing(model, ["attention_rollout"]))["attention_rollout"] == why_none(model)


def test_parallel_attention_is_refused():
    timm = pytest.importorskip("timm")
    block = timm.models.vision_transformer.ParallelThingsBlock
    assert "they are parallel" in str(why_none(timms(block_fn=block)))


def test_windows_are_refused():
    timm = pytest.importorskip("timm")
    network = timm.models.SwinTransformer(32, 2, num_classes=2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4)
    assert "is not that of all tokens of an image to all" in str(why_none(classifier(network)))


def test_a_resnet18_is_refused_rollout_in_a_line():
    from cxr_ray.models import networks

    model = networks.build("resnet18", ModelSpec("resnet18", 64))
    with pytest.raises(
        UserError, match=r"^explain\.explainers: got attention_rollout for mine \(resnet18\); the netwo"
    ):
        needs.check("mine", model, ["gradcam", "attention_rollout"])
