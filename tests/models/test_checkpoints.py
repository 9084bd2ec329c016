import dataclasses
import json
import urllib.error

import pytest
import safetensors.torch
import torch
from torch import nn

from cxr_ray.errors import CheckpointError, WeightsError
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from tests.builders.networks import varied, varied_resnet18

SIZE = 64
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def two() -> nn.Module:
    return varied_resnet18(2)


@pytest.fixture(scope="module")
def one() -> nn.Module:
    return varied_resnet18(1)


def test_a_file_of_ours_is_tried_with_few_images_and_one_of_others_in_full(tmp_path, monkeypatch, two):
    path, seen = tmp_path / "model.safetensors", []
    path.write_bytes(checkpoints.to_bytes(networks.Classifier(two, ModelSpec("resnet18", SIZE))))
    torch.save(two.state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr(checkpoints.ends, "require_steady", lambda what, *_: seen.append(what))
    checkpoints.load(str(path))
    assert not seen
    checkpoints.load(str(tmp_path / "model.pt"), ModelSpec("resnet18", SIZE))
    assert seen == [str(tmp_path / "model.pt")]


@torch.no_grad()
def test_a_saved_model_comes_back_with_its_meaning(tmp_path, two):
    spec = ModelSpec(
        "resnet18", SIZE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), variant="balanced", preprocess="clahe"
    )
    saved = networks.Classifier(two, spec).eval()
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.to_bytes(saved))
    loaded = checkpoints.load(str(path))
    assert loaded.spec == spec
    assert checkpoints.saved_spec(str(path)) == spec
    assert not loaded.training
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    torch.testing.assert_close(loaded.normalize(IMAGES), saved.normalize(IMAGES), rtol=0, atol=0)
    torch.testing.assert_close(loaded(IMAGES), saved(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [{"size": "big"}, {"mean": [0.1, 0.2]}, {"outputs": None}, {"colour": "red"}])
def test_a_model_spec_of_wrong_types_is_none(tmp_path, two, wrong):
    path = tmp_path / "model.safetensors"
    spec = {"arch": "resnet18", "size": SIZE, **wrong}
    path.write_bytes(safetensors.torch.save(two.state_dict(), metadata={"cxr_ray": json.dumps(spec)}))
    assert checkpoints.saved_spec(str(path)) is None
    with pytest.raises(CheckpointError, match="does not say what its weights mean"):
        checkpoints.load(str(path))


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_a_torchvision_state_dict_loads_bare_or_wrapped(tmp_path, two, wrap, prefix):
    state = {prefix + k: v for k, v in two.state_dict().items()}
    saved = state if wrap is None else {wrap: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(saved, tmp_path / "model.pt")
    loaded = checkpoints.load(str(tmp_path / "model.pt"), ModelSpec("resnet18", SIZE, variant="study"))
    assert loaded.spec == ModelSpec("resnet18", SIZE, variant="study")
    torch.testing.assert_close(loaded(IMAGES), two(IMAGES), rtol=0, atol=0)


def test_files_as_older_torch_wrote_them_load(tmp_path, two):
    """Before torch 0.4.1 there were no counters of batches; torchvision's own weights still have none."""
    state = {k: v for k, v in two.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(two.state_dict())
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    loaded = checkpoints.load(str(tmp_path / "model.pt"), ModelSpec("resnet18", SIZE))
    torch.testing.assert_close(loaded.network.fc.weight, two.fc.weight, rtol=0, atol=0)


@torch.no_grad()
def test_one_output_is_the_log_odds_of_pneumonia(tmp_path, one):
    torch.save(one.state_dict(), tmp_path / "model.pt")
    loaded = checkpoints.load(str(tmp_path / "model.pt"), ModelSpec("resnet18", SIZE))
    assert loaded.spec.outputs == 1
    z = one(IMAGES)
    assert z.abs().min() > 1e-3
    torch.testing.assert_close(loaded.log_odds(IMAGES), z[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(loaded(IMAGES), torch.cat([-z, z], 1), rtol=0, atol=0)
    (tmp_path / "again.safetensors").write_bytes(checkpoints.to_bytes(loaded))
    again = checkpoints.load(str(tmp_path / "again.safetensors"))
    assert again.spec.outputs == 1
    torch.testing.assert_close(again.log_odds(IMAGES), z[:, 0], rtol=0, atol=0)


def test_a_file_saved_before_there_was_preprocessing_has_none(tmp_path, two):
    path = str(tmp_path / "model.safetensors")
    fields = dataclasses.asdict(ModelSpec("resnet18", SIZE, preprocess="clahe"))
    del fields["preprocess"]
    safetensors.torch.save_file(two.state_dict(), path, metadata={"cxr_ray": json.dumps(fields)})
    assert checkpoints.load(path).spec == ModelSpec("resnet18", SIZE)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("arch", ["resnet18d", "seresnet18"])
@torch.no_grad()
def test_checkpoints_of_timms_networks_come_back(tmp_path, arch, outputs):
    saved, path = varied(arch, SIZE, outputs), tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.to_bytes(saved))
    torch.save(saved.network.state_dict(), tmp_path / "model.pt")
    for loaded in (checkpoints.load(str(path)), checkpoints.load(str(tmp_path / "model.pt"), ModelSpec(arch, SIZE))):
        assert (loaded.spec.arch, loaded.spec.outputs) == (arch, outputs)
        torch.testing.assert_close(loaded(IMAGES), saved(IMAGES), rtol=0, atol=0)
    with pytest.raises(
        CheckpointError, match=r"are missing and \d+ are unknown or of .*; expected a state dict of resnet18; give one"
    ):
        checkpoints.load(str(tmp_path / "model.pt"), ModelSpec("resnet18", SIZE))


def test_imagenet_weights_of_timms_networks(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = timm.create_model("resnet18d").state_dict()  # a stand-in for the file, in the cache of downloads
    file = tmp_path / "hub" / "checkpoints" / timm.get_pretrained_cfg("resnet18d").url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    torch.save(published, file)
    state = checkpoints.pretrained_state("imagenet", "resnet18d")
    assert state is not None
    assert state.keys() == published.keys()
    assert all(torch.equal(state[k], published[k]) for k in state)
    started = varied("resnet18d", SIZE)
    checkpoints.start_from(started, state, "imagenet")
    assert torch.equal(started.network.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    assert started.network.fc.weight.shape == (2, 512)


def test_imagenet_weights_that_cannot_be_had(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(WeightsError, match=r"could not be downloaded \(no network\).*path/to/resnet18d\.pth"):
        checkpoints.pretrained_state("imagenet", "resnet18d")
    with pytest.raises(
        WeightsError, match=r"^model\.weights: got imagenet, which timm does not have for seresnet18; exp"
    ):
        checkpoints.pretrained_state("imagenet", "seresnet18")


def test_a_file_that_does_not_say_what_it_means_needs_a_spec(tmp_path, two):
    torch.save(two.state_dict(), tmp_path / "model.pt")
    safetensors.torch.save_file(two.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        with pytest.raises(
            CheckpointError, match="does not say what its weights mean; expected its arch and size; name"
        ):
            checkpoints.load(str(tmp_path / name))
        assert checkpoints.load(str(tmp_path / name), ModelSpec("resnet18", SIZE)).spec.size == SIZE


@pytest.mark.parametrize("spec", ["null", "[]", "{}", '{"arch": "resnet18"}', '{"unheard": 1}', "no json"])
def test_a_model_spec_that_cannot_be_read_is_none(tmp_path, two, spec):
    path = str(tmp_path / "model.safetensors")
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, metadata={"cxr_ray": spec})
    assert checkpoints.saved_spec(path) is None


def test_training_starts_from_the_body_and_keeps_its_own_head(two):
    source = varied_resnet18(1000, seed=1).state_dict()
    classifier = networks.build("resnet18", ModelSpec("resnet18", SIZE))
    head = classifier.network.fc.weight.clone()
    checkpoints.start_from(classifier, source, "here")
    torch.testing.assert_close(classifier.network.conv1.weight, source["conv1.weight"], rtol=0, atol=0)
    torch.testing.assert_close(classifier.network.layer4[1].bn2.bias, source["layer4.1.bn2.bias"], rtol=0, atol=0)
    torch.testing.assert_close(classifier.network.fc.weight, head, rtol=0, atol=0)
    checkpoints.start_from(classifier, two.state_dict(), "here")
    torch.testing.assert_close(classifier.network.fc.weight, two.fc.weight, rtol=0, atol=0)


def test_no_weights_are_none_and_a_file_is_read(tmp_path, two):
    assert checkpoints.pretrained_state("none") is None
    torch.save({"state_dict": two.state_dict()}, tmp_path / "w.pth")
    state = checkpoints.pretrained_state(str(tmp_path / "w.pth"))
    assert state.keys() == two.state_dict().keys()


def test_a_model_is_never_loaded_with_a_head_that_the_file_lacks(tmp_path):
    """A head of another width once stayed random, without a word."""
    state = {**varied_resnet18(2).state_dict(), "fc.weight": torch.zeros(2, 256)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"fc\.weight is 2 x 256; expected 2 x 512, as in resnet18;"):
        checkpoints.load(str(tmp_path / "model.pt"), ModelSpec("resnet18", SIZE))


@torch.no_grad()
def test_the_shared_model_loads_and_tells_children_apart(shared_model, shared_data):
    from cxr_ray.data.images import decode

    model = checkpoints.load(str(shared_model), ModelSpec("resnet18", 224))
    means = {}
    for label in ("NORMAL", "PNEUMONIA"):
        files = sorted((shared_data / "chest_xray_224" / "test" / label).iterdir())[::80][:4]
        pixels = torch.stack([torch.from_numpy(decode(f.read_bytes(), 224)) for f in files])
        means[label] = model.log_odds(model.normalize(pixels.float() / 255)).mean().item()
    assert means["PNEUMONIA"] > 0
    assert means["PNEUMONIA"] > means["NORMAL"] + 1


def test_where_a_networks_own_normalisation_is_another_it_is_told(tmp_path):
    pytest.importorskip("timm")
    arch, path = "timm:test_vit", str(tmp_path / "model.pt")
    network = networks.build(arch, ModelSpec(arch, 160)).network
    torch.save(network.state_dict(), path)
    own = [tuple(network.pretrained_cfg[key]) for key in ("mean", "std")]
    (told,) = checkpoints.load(path, ModelSpec(arch, 160, mean=(0.4, 0.4, 0.4))).notes
    assert told.startswith(
        "its images are normalised with mean 0.4 0.4 0.4 and std 0.229 0.224 0.225, where timm has mean"
    )
    assert checkpoints.load(path, ModelSpec(arch, 160, mean=own[0], std=own[1])).notes == ()


def test_transform_input_of_torchvisions_networks_is_told():
    half = ModelSpec("torchvision:googlenet", SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    for spec, n in ((dataclasses.replace(half, mean=(0.4,) * 3), 1), (half, 0)):
        assert len(checkpoints._normalisation_notes(networks.Classifier(nn.Identity(), spec))) == n


def test_an_exported_program_is_said_to_be_one(tmp_path):
    path = str(tmp_path / "model.pt2")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    with pytest.raises(CheckpointError, match=r"which is a program of torch\.export; expected a state dict"):
        checkpoints.load(path, ModelSpec("resnet18", SIZE))
