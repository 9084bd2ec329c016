"""Networks of torchxrayvision: their range, their outputs, and their weights."""

import numpy as np
import pytest
import torch

import cxr_ray
from cxr_ray.errors import CheckpointError, UserError, WeightsError
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec

xrv = pytest.importorskip("torchxrayvision")
SIZE, ARCH = 32, "torchxrayvision:densenet121-res224-all"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8)


def scaled(network):
    """Batch norms are untrained, so features are as large as the range of grey values: a head to match."""
    network.classifier.weight.data *= 0.01
    return network


@pytest.fixture(scope="module")
def theirs():
    """A small network of theirs, untrained, with all that the published ones apply to outputs."""
    torch.manual_seed(0)
    network = xrv.models.DenseNet(block_config=(1, 1, 1, 1), num_init_features=8, growth_rate=8, apply_sigmoid=True)
    network.op_threshs = torch.linspace(0.1, 0.5, 18)
    return scaled(network).eval().requires_grad_(False)


def as_they_do(network, pixels) -> torch.Tensor:
    """Logits of pneumonia: their normalisation, their network, its op_norm and sigmoid undone."""
    images = xrv.datasets.normalize(pixels.astype(np.float32), 255)[:, None]
    threshold = network.op_threshs[8]
    shares = network(torch.from_numpy(images).float())[:, 8]
    p = torch.where(shares < 0.5, shares * 2 * threshold, 1 - (1 - shares) * 2 * (1 - threshold))
    return p.logit()


def test_a_network_in_memory_is_scored_as_in_its_package(theirs):
    measured = cxr_ray.measure(theirs, PIXELS, "occlusion", levels=[0.5], controls={"cell_random": 1}, grids=["7"])
    expected = as_they_do(theirs, PIXELS)
    np.testing.assert_allclose(measured.predictions.logit_pneumonia, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(theirs.op_threshs, torch.linspace(0.1, 0.5, 18)), "the caller's stays as it is"
    assert theirs.apply_sigmoid
    gradients = cxr_ray.explain(theirs, PIXELS, "input_x_gradient")
    assert np.abs(gradients).max() > 0


def test_another_normalisation_is_refused(theirs):
    spec = ModelSpec("given", SIZE, mean=(0.1, 0.1, 0.1))
    with pytest.raises(UserError, match=r"^got mean \(0\.1, .*; expected 0\.5 for each channel"):
        cxr_ray.explain(theirs, PIXELS, "saliency", spec=spec)


def test_a_network_without_pneumonia_is_refused():
    network = xrv.models.DenseNet(block_config=(1, 1, 1, 1), num_classes=2).eval()
    with pytest.raises(CheckpointError, match=r"2 outputs for 18 labels .* expected one of them to be Pneumonia"):
        cxr_ray.explain(network, PIXELS, "saliency")


def test_a_state_dict_of_theirs_is_the_same_network(tmp_path):
    torch.manual_seed(0)
    network = scaled(xrv.models.DenseNet()).eval().requires_grad_(False)
    torch.save({**network.state_dict(), "op_threshs": torch.linspace(0.1, 0.5, 18)}, tmp_path / "xrv.pt")
    model = checkpoints.load(str(tmp_path / "xrv.pt"), ModelSpec(ARCH, SIZE))
    network.op_threshs = torch.linspace(0.1, 0.5, 18)
    images = model.normalize(torch.from_numpy(PIXELS)[:, None].expand(-1, 3, -1, -1) / 255)
    torch.testing.assert_close(model.log_odds(images), as_they_do(network, PIXELS), rtol=1e-3, atol=1e-4)
    assert model.spec.mean == model.spec.std == (0.5, 0.5, 0.5)
    assert any("output 8 of 18 is Pneumonia" in note for note in model.notes)
    assert any("op_threshs" in note for note in model.notes)


def test_weights_that_would_be_unpickled_are_not_downloaded():
    with pytest.raises(WeightsError, match="which may run code; expected a file or none"):
        checkpoints.pretrained_state("imagenet", ARCH)
    assert networks.build(ARCH, ModelSpec(ARCH, SIZE)).spec.std == (0.5, 0.5, 0.5)
