"""The networks: what their weights mean, how each kind is built, and the layer that Grad-CAM reads.

Shapes: B images, C channels, H rows, W columns. Networks read images in model space (normalised RGB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cxr_ray.config import IMAGENET_MEAN, IMAGENET_STD
from cxr_ray.errors import MissingPackageError, WeightsError
from cxr_ray.registry import Registry
from cxr_ray.schemas import CLASSES


@dataclass(frozen=True)
class ModelSpec:
    """The meaning of a network's weights; saved with them.

    Attributes:
        arch: key of NETWORKS.
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
    """A network with its spec: logits, log-odds and normalisation."""

    network: Any  # one of NETWORKS: its layers are attributes that nn.Module does not declare
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
        z: Tensor = self.network(images_BCHW)
        return z if self.spec.outputs == 2 else torch.cat([-z, z], dim=1)

    def log_odds(self, images_BCHW: Tensor) -> Tensor:
        """Model-space images to the log-odds of PNEUMONIA, float32 [B]."""
        z: Tensor = self.network(images_BCHW).float()
        return z[:, 1] - z[:, 0] if self.spec.outputs == 2 else z[:, 0].clone()  # a CUDA graph reuses its output

    @property
    def cam_layer(self) -> nn.Module:
        """The last convolutional block, whose activations class activation maps read."""
        block: nn.Module = self.network.layer4[-1]
        return block


@dataclass(frozen=True)
class Network:
    """One kind of network: layer1 to layer4, global average pooling and one linear layer called fc.

    Attributes:
        build: the number of outputs to the network with random weights. Raises MissingPackageError.
        imagenet: the state dict that was published for ImageNet. Raises WeightsError where nobody has published one,
            and what the download raises.
        caption: what it is, in a sentence.
    """

    build: Callable[[int], nn.Module]
    imagenet: Callable[[], dict[str, Tensor]]
    caption: str


def build(arch: str, spec: ModelSpec) -> Classifier:
    """A network with random weights, in eval mode.

    Raises:
        UnknownNameError: no network of that name.
        MissingPackageError: it is of a package that is not installed.
    """
    return Classifier(NETWORKS[arch].build(spec.outputs), spec).eval()


def _resnet18(outputs: int) -> nn.Module:
    from torchvision.models import resnet18  # more than a second, which a mistake need not wait for

    return resnet18(weights=None, num_classes=outputs)


def _imagenet_resnet18() -> dict[str, Tensor]:
    from torchvision.models import ResNet18_Weights

    return dict(ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))


def _timm(arch: str) -> Any:
    """The package timm, imported only where a network of its is asked for."""
    try:
        import timm
    except ImportError:
        raise MissingPackageError(
            f"got {arch}, a network of timm; expected timm to be installed; install it: pip install 'cxr-ray[timm]'."
        ) from None
    return timm


def _of_timm(arch: str, caption: str) -> Network:
    def build(outputs: int) -> nn.Module:
        network: nn.Module = _timm(arch).create_model(arch, num_classes=outputs)
        return network

    def imagenet() -> dict[str, Tensor]:
        timm = _timm(arch)
        if not timm.models.is_model_pretrained(arch):
            raise WeightsError(
                f"model.weights: got imagenet, which timm does not have for {arch}; expected a file or none; give a "
                f"file (--set model.weights=path/to/{arch}.pth) or train from scratch (--set model.weights=none)."
            )
        # without the hub's id timm takes the file's address, and fails at once where there is no network
        network = timm.create_model(arch, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": None})
        return dict(network.state_dict())

    return Network(build, imagenet, caption)


NETWORKS: Registry[Network] = Registry(
    "network",
    {
        "resnet18": Network(_resnet18, _imagenet_resnet18, "ResNet-18 of torchvision (He et al., CVPR 2016)."),
        "resnet18d": _of_timm(
            "resnet18d",
            "ResNet-18 of timm with a stem of three convolutions and pooled shortcuts (He et al., CVPR 2019).",
        ),
        "seresnet18": _of_timm(
            "seresnet18",
            "ResNet-18 of timm with channels gated by what the whole image holds (squeeze and excitation, Hu et al., "
            "CVPR 2018).",
        ),
    },
)
