"""The networks: building, loading and saving them with their meaning; the layer that Grad-CAM reads.

Shapes: B images, C channels, H rows, W columns. Networks read images in model space (normalised RGB).
"""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import safetensors.torch
import torch
import torchvision
from pyarrow import ArrowException
from pydantic import TypeAdapter
from torch import Tensor, nn

from cxr_ray.data.images import PREPROCESS
from cxr_ray.errors import CheckpointError, MissingPackageError, WeightsError
from cxr_ray.results import filesystem
from cxr_ray.schemas import CLASSES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _timm(arch: str) -> Any:
    """The package timm, imported only where a network of its is asked for."""
    try:
        import timm
    except ImportError:
        raise MissingPackageError(
            f"{arch} is a network of timm, which is not installed: pip install 'cxr-ray[timm]'."
        ) from None
    return timm


def _resnet18(outputs: int) -> nn.Module:
    return torchvision.models.resnet18(weights=None, num_classes=outputs)


def _resnet18d(outputs: int) -> nn.Module:
    """A stem of three convolutions, and pooling in the shortcuts (He et al., CVPR 2019)."""
    return _timm("resnet18d").create_model("resnet18d", num_classes=outputs)


def _seresnet18(outputs: int) -> nn.Module:
    """Channels gated by what the whole image holds (Hu et al., CVPR 2018)."""
    return _timm("seresnet18").create_model("seresnet18", num_classes=outputs)


# Each has layer1 to layer4, global average pooling and one linear layer called fc.
ARCHS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": _resnet18,
    "resnet18d": _resnet18d,
    "seresnet18": _seresnet18,
}


@dataclass(frozen=True)
class ModelSpec:
    """What a checkpoint's weights mean; saved beside them.

    Attributes:
        arch: key of ARCHS.
        size: side of the input in pixels.
        outputs: 2 (logits of NORMAL, PNEUMONIA) or 1 (log-odds of PNEUMONIA).
        mean, std: normalisation of RGB in [0, 1].
        preprocess: what its images go through after decoding; key of images.PREPROCESS.
    """

    arch: str
    size: int
    outputs: int = 2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    classes: tuple[str, str] = CLASSES
    variant: str = ""
    preprocess: str = "none"


class Classifier(nn.Module):
    """A network with the meaning of its outputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec):
        super().__init__()
        self.network, self.spec = network, spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixel space, [0, 1], to model space."""
        return (pixels_BCHW - self.mean) / self.std

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Model-space images to logits [B, 2]; the target's column is z_target. One output z becomes (-z, z)."""
        z = self.network(images_BCHW)
        return z if self.spec.outputs == 2 else torch.cat([-z, z], dim=1)

    def log_odds(self, images_BCHW: Tensor) -> Tensor:
        """Model-space images to the log-odds of PNEUMONIA, float32 [B]."""
        z = self.network(images_BCHW).float()
        return z[:, 1] - z[:, 0] if self.spec.outputs == 2 else z[:, 0].clone()  # a CUDA graph reuses its output

    @property
    def cam_layer(self) -> nn.Module:
        """The last convolutional block, whose activations class activation maps read."""
        return self.network.layer4[-1]  # type: ignore[index, return-value]


def build(arch: str, spec: ModelSpec) -> Classifier:
    """A network with random weights, in eval mode."""
    return Classifier(ARCHS[arch](spec.outputs), spec).eval()


def pretrained_state(weights: str, arch: str = "resnet18") -> dict[str, Tensor] | None:
    """The state dict that training of an ``arch`` starts from: ``imagenet``, a file, or ``none`` (None).

    Raises:
        WeightsError: the download failed, or nobody has published any.
        CheckpointError: the file is no state dict.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        return _read_state(weights)
    try:
        if arch == "resnet18":
            published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
            return dict(published.get_state_dict(progress=False, check_hash=True))
        timm = _timm(arch)
        if not timm.models.is_model_pretrained(arch):
            raise WeightsError(
                f"model.weights: timm has no imagenet weights for {arch}. Give a file "
                f"(--set model.weights=path/to/{arch}.pth) or train from scratch (--set model.weights=none)."
            )
        # without the hub's id timm takes the file's address, and fails at once where there is no network
        network = timm.create_model(arch, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": None})
        return dict(network.state_dict())
    except (OSError, RuntimeError, http.client.HTTPException) as e:
        reason = _first_line(getattr(e, "reason", e))
        raise WeightsError(
            f"model.weights: imagenet could not be downloaded ({reason}). With network access try again; without, "
            f"give a file (--set model.weights=path/to/{arch}.pth) or train from scratch (--set model.weights=none)."
        ) from None


def start_from(classifier: Classifier, state: Mapping[str, Tensor], origin: str) -> None:
    """Loads a pretrained state dict in place; a head of another shape is left as it is.

    Counters of batches may be missing, as in older files: nothing reads them.

    Raises:
        CheckpointError: other weights are missing or of another shape.
    """
    own = classifier.network.state_dict()
    body = {k: v for k, v in state.items() if not k.startswith("fc.") or (k in own and own[k].shape == v.shape)}
    missing = [k for k in own if k not in body and not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    wrong = [k for k, v in body.items() if k not in own or own[k].shape != v.shape]
    if missing or wrong:
        raise CheckpointError(
            f"{origin} does not fit {classifier.spec.arch}: {len(missing)} weights are missing and {len(wrong)} are "
            f"unknown or of another shape (such as {(missing + wrong)[0]}). Give a state dict of that network."
        )
    try:
        classifier.network.load_state_dict(body, strict=False)
    except RuntimeError:
        raise CheckpointError(
            f"{origin} holds weights that cannot be copied into {classifier.spec.arch} (sparse, quantized or the "
            "like). Save plain ones with torch.save(model.state_dict(), path)."
        ) from None


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_state(path: str) -> dict[str, Tensor]:
    try:
        fs, inside = filesystem(path)
        with fs.open_input_stream(inside) as f:
            data = f.read()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}. Give the path of a .pt or .safetensors file.") from None
    except (OSError, ArrowException) as e:
        raise CheckpointError(f"{path} cannot be read: {_first_line(e)}. Give a .pt or .safetensors file.") from None
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        # weights_only: a checkpoint must never run code
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch and safetensors raise whatever their parser meets in a broken file
        raise CheckpointError(
            f"{path} is no checkpoint that can be loaded safely ({len(data)} bytes). Allowed are safetensors and torch "
            "state dicts (tensors only); save one with torch.save(model.state_dict(), path)."
        ) from None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    items = state.items() if isinstance(state, dict) else []
    if not items or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items):
        raise CheckpointError(f"{path} holds no state dict. Save one with torch.save(model.state_dict(), path).")
    return {k.removeprefix("module."): v for k, v in items}


def load(path: str, spec: ModelSpec | None = None) -> Classifier:
    """A checkpoint to a classifier in eval mode, on the CPU, with one forward pass tried.

    Args:
        path: local or a URI; ``.safetensors`` files that we saved carry their meaning.
        spec: needed for other files; its ``outputs`` is replaced by what the file has (1 or 2).

    Raises:
        CheckpointError: not a checkpoint, or of another shape.
    """
    state = _read_state(path)
    if spec is None:
        spec = saved_spec(path)
    if spec is None:
        raise CheckpointError(f"{path} does not say what its weights mean; name its arch and size under checkpoints.")
    if spec.arch not in ARCHS:
        raise CheckpointError(f"{path} says it is a {spec.arch!r}; allowed are {', '.join(ARCHS)}.")
    if spec.preprocess not in PREPROCESS:
        raise CheckpointError(
            f"{path} says that its images go through {spec.preprocess!r}; allowed are {', '.join(PREPROCESS)}."
        )
    if "fc.weight" not in state or "fc.bias" not in state:
        raise CheckpointError(f"{path} has no fc.weight and fc.bias; give the state dict of a {spec.arch}.")
    head = tuple(state["fc.weight"].shape)
    outputs = head[0] if head else 0
    if outputs not in (1, 2):
        raise CheckpointError(f"{path} has a head of {outputs} outputs; 1 or 2 are allowed (NORMAL, PNEUMONIA).")
    classifier = build(spec.arch, replace(spec, outputs=outputs))
    own = classifier.network.state_dict()
    for name in ("fc.weight", "fc.bias"):  # start_from would leave such a head random
        if state[name].shape != own[name].shape:
            came, wanted = (" x ".join(map(str, t.shape)) or "a number" for t in (state[name], own[name]))
            raise CheckpointError(
                f"{path}: {name} is {came}; in a {spec.arch} it is {wanted}. Give a file of that network."
            )
    start_from(classifier, state, path)
    with torch.inference_mode():
        noise = torch.rand(1, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
        probe = classifier.log_odds(torch.cat([torch.zeros_like(noise), classifier.normalize(noise)]))
    if not torch.isfinite(probe).all():
        told = " and ".join(f"{v:g}" for v in probe.tolist())
        raise CheckpointError(
            f"{path} gives {told} for a blank image and for noise; its weights, mean or std are not finite or too "
            "large."
        )
    return classifier


def to_bytes(classifier: Classifier) -> bytes:
    """The weights as safetensors, with their meaning in the file's metadata."""
    state = {k: v.detach().cpu().contiguous() for k, v in classifier.network.state_dict().items()}
    return safetensors.torch.save(state, metadata={"cxr_ray": json.dumps(asdict(classifier.spec))})


def saved_spec(path: str) -> ModelSpec | None:
    """What a safetensors file says of itself, where we saved it; None for any other file."""
    if not path.endswith(".safetensors"):
        return None
    try:
        fs, inside = filesystem(path)
        with fs.open_input_file(inside) as f:
            length = int.from_bytes(f.read(8), "little")
            header = f.read(length) if 0 < length < 2**24 else b""
    except (OSError, ArrowException):  # load says why
        return None
    try:
        saved = json.loads(json.loads(header)["__metadata__"]["cxr_ray"])
        return TypeAdapter(ModelSpec).validate_python(asdict(ModelSpec(**saved)))  # unknown fields are refused
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
