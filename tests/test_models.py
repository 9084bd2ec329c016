import dataclasses

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from cxr_ray import models
from cxr_ray.models import BadCheckpoint, Meaning

SIZE = 64
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def network(outputs: int = 2, seed: int = 0) -> nn.Module:
    """A torchvision ResNet-18 whose logits differ from image to image."""
    torch.manual_seed(seed)
    made = torchvision.models.resnet18(num_classes=outputs).eval()
    nn.init.normal_(made.fc.weight, std=1.0)
    return made


@pytest.fixture(scope="module")
def two() -> nn.Module:
    return network(2)


@pytest.fixture(scope="module")
def one() -> nn.Module:
    return network(1)


@torch.no_grad()
def test_a_saved_model_comes_back_with_its_meaning(tmp_path, two):
    meaning = Meaning("resnet18", SIZE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), variant="balanced")
    saved = models.Classifier(two, meaning).eval()
    path = tmp_path / "model.safetensors"
    path.write_bytes(models.to_bytes(saved))
    loaded = models.load(str(path))
    assert loaded.meaning == meaning
    assert models.saved_meaning(str(path)) == meaning
    assert not loaded.training
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    torch.testing.assert_close(loaded.normalize(IMAGES), saved.normalize(IMAGES), rtol=0, atol=0)
    torch.testing.assert_close(loaded(IMAGES), saved(IMAGES), rtol=0, atol=0)


@torch.no_grad()
def test_normalisation_is_that_of_the_meaning():
    meaning = Meaning("resnet18", SIZE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.8))
    white = models.build("resnet18", meaning).normalize(torch.ones(1, 3, 2, 2))
    expected = torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.8])
    torch.testing.assert_close(white, expected.view(1, 3, 1, 1).expand(1, 3, 2, 2))


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_a_torchvision_state_dict_loads_bare_or_wrapped(tmp_path, two, wrap, prefix):
    state = {prefix + k: v for k, v in two.state_dict().items()}
    saved = state if wrap is None else {wrap: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(saved, tmp_path / "model.pt")
    loaded = models.load(str(tmp_path / "model.pt"), Meaning("resnet18", SIZE, variant="study"))
    assert loaded.meaning == Meaning("resnet18", SIZE, variant="study")
    torch.testing.assert_close(loaded(IMAGES), two(IMAGES), rtol=0, atol=0)


def test_files_as_older_torch_wrote_them_load(tmp_path, two):
    """Before torch 0.4.1 there were no counters of batches; torchvision's own weights still have none."""
    state = {k: v for k, v in two.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(two.state_dict())
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    loaded = models.load(str(tmp_path / "model.pt"), Meaning("resnet18", SIZE))
    torch.testing.assert_close(loaded.network.fc.weight, two.fc.weight, rtol=0, atol=0)


@torch.no_grad()
def test_log_odds_of_two_outputs_are_their_difference(two):
    classifier = models.Classifier(two, Meaning("resnet18", SIZE)).eval()
    z = two(IMAGES)
    torch.testing.assert_close(classifier(IMAGES), z, rtol=0, atol=0)
    torch.testing.assert_close(classifier.log_odds(IMAGES), z[:, 1] - z[:, 0], rtol=0, atol=0)
    probability = z.double().softmax(1)[:, 1]
    torch.testing.assert_close(classifier.log_odds(IMAGES), probability.logit().float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_output_is_the_log_odds_of_pneumonia(tmp_path, one):
    torch.save(one.state_dict(), tmp_path / "model.pt")
    loaded = models.load(str(tmp_path / "model.pt"), Meaning("resnet18", SIZE))
    assert loaded.meaning.outputs == 1
    z = one(IMAGES)
    assert z.abs().min() > 1e-3
    torch.testing.assert_close(loaded.log_odds(IMAGES), z[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(loaded(IMAGES), torch.cat([-z, z], 1), rtol=0, atol=0)
    (tmp_path / "again.safetensors").write_bytes(models.to_bytes(loaded))
    again = models.load(str(tmp_path / "again.safetensors"))
    assert again.meaning.outputs == 1
    torch.testing.assert_close(again.log_odds(IMAGES), z[:, 0], rtol=0, atol=0)


@torch.no_grad()
def test_log_odds_are_float32_whatever_the_network_computes_in(two):
    half = models.Classifier(network().bfloat16(), Meaning("resnet18", SIZE)).eval()
    assert half.log_odds(IMAGES.bfloat16()).dtype == torch.float32


def test_grad_cam_reads_the_last_block(two):
    assert models.Classifier(two, Meaning("resnet18", SIZE)).cam_layer is two.layer4[1]


def test_a_file_that_does_not_say_what_it_means_needs_a_meaning(tmp_path, two):
    torch.save(two.state_dict(), tmp_path / "model.pt")
    safetensors.torch.save_file(two.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        with pytest.raises(BadCheckpoint, match="does not say what its weights mean; name its arch and size"):
            models.load(str(tmp_path / name))
        assert models.load(str(tmp_path / name), Meaning("resnet18", SIZE)).meaning.size == SIZE


@pytest.mark.parametrize("meaning", ["null", "[]", "{}", '{"arch": "resnet18"}', '{"unheard": 1}', "no json"])
def test_a_meaning_that_cannot_be_read_is_none(tmp_path, two, meaning):
    path = str(tmp_path / "model.safetensors")
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, metadata={"cxr_ray": meaning})
    assert models.saved_meaning(path) is None


def test_training_starts_from_the_body_and_keeps_its_own_head(two):
    source = network(1000, seed=1).state_dict()
    classifier = models.build("resnet18", Meaning("resnet18", SIZE))
    head = classifier.network.fc.weight.clone()
    models.start_from(classifier, source, "here")
    torch.testing.assert_close(classifier.network.conv1.weight, source["conv1.weight"], rtol=0, atol=0)
    torch.testing.assert_close(classifier.network.layer4[1].bn2.bias, source["layer4.1.bn2.bias"], rtol=0, atol=0)
    torch.testing.assert_close(classifier.network.fc.weight, head, rtol=0, atol=0)
    models.start_from(classifier, two.state_dict(), "here")
    torch.testing.assert_close(classifier.network.fc.weight, two.fc.weight, rtol=0, atol=0)


def test_no_weights_are_none_and_a_file_is_read(tmp_path, two):
    assert models.pretrained_state("none") is None
    torch.save({"state_dict": two.state_dict()}, tmp_path / "w.pth")
    state = models.pretrained_state(str(tmp_path / "w.pth"))
    assert state.keys() == two.state_dict().keys()


def test_a_model_is_never_loaded_with_a_head_that_the_file_lacks(tmp_path):
    """A head of another width once stayed random, without a word."""
    state = {**network(2).state_dict(), "fc.weight": torch.zeros(2, 256)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(BadCheckpoint, match=r"fc\.weight is 2 x 256; in a resnet18 it is 2 x 512\."):
        models.load(str(tmp_path / "model.pt"), Meaning("resnet18", SIZE))


def test_a_meaning_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Meaning("resnet18", SIZE).size = 3


@torch.no_grad()
def test_the_shared_model_loads_and_tells_children_apart(shared_model, shared_data):
    from cxr_ray.images import decode

    model = models.load(str(shared_model), Meaning("resnet18", 224))
    means = {}
    for label in ("NORMAL", "PNEUMONIA"):
        files = sorted((shared_data / "chest_xray_224" / "test" / label).iterdir())[::80][:4]
        pixels = torch.stack([torch.from_numpy(decode(f.read_bytes(), 224)) for f in files])
        means[label] = model.log_odds(model.normalize(pixels.float() / 255)).mean().item()
    assert means["PNEUMONIA"] > 0
    assert means["PNEUMONIA"] > means["NORMAL"] + 1
