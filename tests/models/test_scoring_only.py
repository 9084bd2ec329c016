"""ONNX and TorchScript files: scored as the network that they were exported from, and nothing else."""

import warnings
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

import cxr_ray
from cxr_ray.config import Classes
from cxr_ray.errors import CheckpointError, UserError
from cxr_ray.measure import needs
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import Classifier, ModelSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE = 32
IMAGES = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def network(outputs: int = 2, channels: int = 3, *end: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Linear(8, outputs)
    nn.init.normal_(head.weight)
    body = [nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, head, *end).eval()


def as_onnx(module: nn.Module, path, batch: int | None = None, channels: int = 3) -> str:
    axes: dict[str, Any] = {} if batch else {"dynamic_axes": {"images": {0: "n"}, "logits": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(batch or 1, channels, SIZE, SIZE),),
            path,
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            **axes,
        )
    return str(path)


def as_torchscript(module: nn.Module, path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3, SIZE, SIZE)), path)
    return str(path)


def loaded(path: str, arch: str, **spec: Any) -> Classifier:
    return checkpoints.load(path, ModelSpec(arch, SIZE, **spec))


def saved(arch: str, module: nn.Module, folder) -> str:
    return as_onnx(module, folder / "m.onnx") if arch == "onnx" else as_torchscript(module, folder / "m.ts")


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(IMAGES)


@pytest.fixture(params=["onnx", "torchscript"])
def arch(request) -> str:
    return request.param


def test_a_file_scores_as_the_network_that_it_was_made_from(arch, tmp_path):
    model = loaded(saved(arch, network(), tmp_path), arch)
    torch.testing.assert_close(model(IMAGES), logits(network()), rtol=1e-5, atol=1e-6)
    assert model.spec.outputs == 2
    assert model.notes == ()


def test_one_output_and_several_are_read_as_of_a_state_dict(arch, tmp_path):
    one = loaded(saved(arch, network(1), tmp_path), arch)
    torch.testing.assert_close(one.log_odds(IMAGES), logits(network(1))[:, 0], rtol=1e-5, atol=1e-6)
    three = saved(arch, network(3), tmp_path)
    with pytest.raises(CheckpointError, match="a head of 3 outputs"):
        loaded(three, arch)
    known = loaded(three, arch, columns=((0,), (1, 2)))
    z = logits(network(3))
    torch.testing.assert_close(known.log_odds(IMAGES), z[:, 1:].logsumexp(1) - z[:, 0], rtol=1e-5, atol=1e-6)
    classes = Classes(several={"a": ["x"], "b": ["y"], "c": ["z"]}, target="b")
    against = checkpoints.load(three, ModelSpec(arch, SIZE), classes)
    expected = z[:, 1] - z[:, [0, 2]].logsumexp(1)
    torch.testing.assert_close(against.log_odds(IMAGES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "end", [(1, nn.Sigmoid()), (2, nn.Softmax(1)), (1, nn.Sequential(nn.Sigmoid(), nn.Flatten(0)))]
)
def test_what_makes_probabilities_at_the_end_is_undone(arch, end, tmp_path):
    outputs, last = end
    model = loaded(saved(arch, network(outputs, 3, last), tmp_path), arch)
    z = logits(network(outputs))
    expected = z[:, 0] if outputs == 1 else z[:, 1] - z[:, 0]
    torch.testing.assert_close(model.log_odds(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert "log-odds" in model.notes[0]


@pytest.mark.parametrize(("end", "outputs"), [(nn.Sigmoid(), 1), (nn.Softmax(1), 2)])
def test_the_most_confident_scores_are_finite(arch, end, outputs, tmp_path, monkeypatch):
    body = network(outputs)
    body[-1].bias.data = torch.tensor([40.0]) if outputs == 1 else torch.tensor([0.0, 200.0])
    expected = logits(body)[:, -1] - (0 if outputs == 1 else logits(body)[:, 0])
    path = saved(arch, nn.Sequential(body, end).eval(), tmp_path)
    torch.testing.assert_close(loaded(path, arch).log_odds(IMAGES), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.delattr(torch._C, "_create_function_from_graph")
    if arch == "torchscript":
        undone = loaded(path, arch)
        most = {1: 16.6, 2: 87.3}[outputs]
        torch.testing.assert_close(undone.log_odds(IMAGES), torch.full((5,), most), rtol=0, atol=0.1)
        assert "scores are log-odds, and none is told beyond" in undone.notes[0]


class Shares(nn.Module):
    """Probabilities, made so that no name says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp() / x.exp().sum(1, keepdim=True)


def test_other_probabilities_are_refused(arch, tmp_path):
    with pytest.raises(CheckpointError, match=r"whose outputs are probabilities .*; expected logits"):
        loaded(saved(arch, network(2, 3, Shares()), tmp_path), arch)


def test_log_probabilities_are_logits(arch, tmp_path):
    model = loaded(saved(arch, network(2, 3, nn.LogSoftmax(1)), tmp_path), arch)
    z = logits(network())
    torch.testing.assert_close(model.log_odds(IMAGES), z[:, 1] - z[:, 0], rtol=1e-4, atol=1e-5)


class Second(nn.Module):
    """One class of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_one_class_of_a_softmax_is_refused(arch, end, tmp_path):
    """Its log is no log-odds: that of the other class is missing."""
    with pytest.raises(CheckpointError, match="the log-softmax of one class alone; expected log-odds"):
        loaded(saved(arch, network(2, 3, end, Second()), tmp_path), arch)


def test_one_output_of_a_sigmoid_is_undone(arch, tmp_path):
    model = loaded(saved(arch, network(2, 3, nn.Sigmoid(), Second()), tmp_path), arch)
    torch.testing.assert_close(model.log_odds(IMAGES), logits(network())[:, 1], rtol=1e-4, atol=1e-5)


def test_an_onnx_file_of_fixed_batches_or_one_channel_takes_any_images(tmp_path):
    fixed = loaded(as_onnx(network(), tmp_path / "fixed.onnx", batch=2), "onnx")
    torch.testing.assert_close(fixed(IMAGES), logits(network()), rtol=1e-5, atol=1e-6)
    grey = network(2, 1)
    model = loaded(as_onnx(grey, tmp_path / "grey.onnx", channels=1), "onnx")
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), grey(IMAGES.mean(1, keepdim=True)), rtol=1e-5, atol=1e-6)
    assert "one channel" in model.notes[0]


def test_weights_beside_an_onnx_file_are_read_and_none_outside_its_folder(tmp_path):
    path = as_onnx(network(), tmp_path / "m.onnx")
    (tmp_path / "inside").mkdir()
    beside = str(tmp_path / "inside" / "m.onnx")
    onnx.save(onnx.load(path), beside, save_as_external_data=True, location="m.data", size_threshold=0)
    torch.testing.assert_close(loaded(beside, "onnx")(IMAGES), logits(network()), rtol=1e-5, atol=1e-6)
    (tmp_path / "inside" / "m.data").rename(tmp_path / "m.data")
    graph = onnx.load(beside, load_external_data=False)
    for weights in graph.graph.initializer:
        for entry in weights.external_data:
            entry.value = "../m.data" if entry.key == "location" else entry.value
    onnx.save(graph, beside)
    with pytest.raises(CheckpointError, match=r"^got .*m\.onnx, which cannot be read \("):
        loaded(beside, "onnx")


def test_explainers_that_read_a_network_are_refused_with_the_reason(arch, tmp_path):
    model = loaded(saved(arch, network(), tmp_path), arch)
    refused = dict(needs.missing(model, list(EXPLAINERS)))
    assert set(refused) == {name for name, entry in EXPLAINERS.items() if entry.needs}
    assert {"occlusion", "rise", "kernel_shap", "random"}.isdisjoint(refused)
    kind = {"onnx": "an ONNX file", "torchscript": "a TorchScript file"}[arch]
    assert set(refused.values()) == {f"{kind} scores images and shows neither layers nor gradients"}


def test_a_program_is_read_only_where_the_user_names_it(arch, tmp_path):
    path = saved(arch, network(), tmp_path)
    with pytest.raises(CheckpointError, match=rf"expected a state dict; name it so \(arch: {arch}\)"):
        loaded(path, "resnet18")
    named = tmp_path / "m.safetensors"  # a file that says of itself that it is a program
    spec = f'{{"arch": "{arch}", "size": {SIZE}}}'
    safetensors.numpy.save_file({"w": np.zeros(1)}, named, metadata={"cxr_ray": spec})
    with pytest.raises(CheckpointError, match="code that a file must not choose"):
        checkpoints.load(str(named))


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"\x08\x07 nothing at all"])
def test_what_is_no_such_file_is_refused_in_a_sentence(arch, content, tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^got .*broken, which cannot be read") as caught:
        loaded(str(path), arch)
    assert "\n" not in str(caught.value)


def test_another_size_of_images_is_refused_in_a_sentence(tmp_path):
    path = as_onnx(network(), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"cannot score images of 48 x 48 \(.*; give the size that it was made for"):
        checkpoints.load(path, ModelSpec("onnx", 48))


def test_such_a_network_is_not_trained(arch):
    with pytest.raises(UserError, match="name its file under checkpoints"):
        networks.build(arch, ModelSpec(arch, SIZE))


def test_a_torchscript_module_in_memory_is_scored_and_its_layers_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(as_torchscript(network(), tmp_path / "m.ts"))
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    maps = cxr_ray.explain(module, pixels, "occlusion")
    np.testing.assert_allclose(maps, cxr_ray.explain(network(), pixels, "occlusion"), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="gradcam for a model that cannot have it: a TorchScript file scores images"):
        cxr_ray.explain(module, pixels, "gradcam")
