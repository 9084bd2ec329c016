"""The networks: what their weights mean, how each kind is built, and the layer that Grad-CAM reads.

Shapes: B images, C channels, H rows, W columns. Networks read images in model space (normalised RGB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from cxr_ray.config import IMAGENET_MEAN, IMAGENET_STD, Fit
from cxr_ray.errors import UserError
from cxr_ray.models import structure
from cxr_ray.models.families import Network, Networks, of_timm
from cxr_ray.models.structure import FeatureMaps, Structure
from cxr_ray.schemas import CLASSES

Columns = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ModelSpec:
    """The meaning of a network's weights; saved with them.

    Attributes:
        arch: key of NETWORKS.
        size: side of the input in pixels.
        outputs: how many numbers the network gives: 2 (logits of NORMAL, PNEUMONIA), 1 (log-odds of PNEUMONIA), or
            more where ``columns`` says what they are.
        mean, std: normalisation of RGB in [0, 1].
        preprocess: what its images go through after decoding; key of images.PREPROCESS.
        columns: for each class, the outputs that stand for it, whose probabilities add up; without any for NORMAL,
            those of PNEUMONIA are log-odds of their own, and the other way round. None: the usual order.
        cam_layer: dotted name of the module that class activation maps read; None: it is found.
        names: the class of each output, where there are more than two.
        fit: how its images were made square, as ``data.fit``; None: not known.

    Raises:
        UserError: a value is not that.
    """

    arch: str
    size: int
    outputs: int = 2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    classes: tuple[str, str] = CLASSES
    variant: str = ""
    preprocess: str = "none"
    cam_layer: str | None = None
    columns: Columns | None = None
    names: tuple[str, ...] = ()
    fit: Fit | None = None

    def __post_init__(self) -> None:
        for name, lowest, highest in (("mean", 0, 1), ("std", 1e-6, 1)):
            object.__setattr__(self, name, _of_channels(name, getattr(self, name), lowest, highest))
        if self.columns is not None:
            object.__setattr__(self, "columns", _as_columns(self.columns))
        for name in ("size", "outputs"):
            if not isinstance(value := getattr(self, name), Integral) or value < 1:
                raise UserError(
                    f"got the {name} {value!r} in a ModelSpec; expected a whole number from 1 on; give one."
                )
        if tuple(self.classes) != CLASSES:
            raise UserError(
                f"got the classes {', '.join(map(str, self.classes))} in a ModelSpec; expected {', '.join(CLASSES)}, "
                "as they are called everywhere; leave classes out, and say with columns which outputs are theirs, such "
                "as columns=((1,), (0,)) where PNEUMONIA is the first."
            )
        object.__setattr__(self, "classes", CLASSES)

    @property
    def target(self) -> str | None:
        """The one of ``names`` that is PNEUMONIA; None without names."""
        return self.names[self.columns[1][0]] if self.names and self.columns else None

    def against_the_rest(self, names: Sequence[str], target: str) -> ModelSpec:
        """The spec of a network with an output for each of several classes, one of which is measured."""
        (place,) = (n for n, name in enumerate(names) if name == target)
        rest = tuple(n for n in range(len(names)) if n != place)
        return replace(self, outputs=len(names), columns=(rest, (place,)), names=tuple(names))


def _of_channels(name: str, values: Any, lowest: float, highest: float) -> tuple[float, float, float]:
    """Mean or std as three numbers. Raises UserError where they are not those of pixels in [0, 1]."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(
            f"got the {name} {values!r} in a ModelSpec; expected three numbers, one a channel; give such as "
            f"{name}=(0.5, 0.5, 0.5)."
        ) from None
    if not all(lowest <= value <= highest for value in (red, green, blue)):
        raise UserError(
            f"got the {name} {(red, green, blue)} in a ModelSpec; expected numbers {'above' if lowest else 'from'} 0 "
            f"{'and up to' if lowest else 'to'} 1, as of pixels in [0, 1]; divide by 255 where they are of bytes."
        )
    return red, green, blue


def _as_columns(columns: Any) -> Columns:
    """The outputs of both classes as tuples. Raises UserError where they are not that."""
    pair = list(columns) if isinstance(columns, list | tuple) else []
    groups = [tuple(group) if isinstance(group, list | tuple) else None for group in pair]
    numbers = [n for group in groups for n in group or ()]
    is_well = len(groups) == 2 and None not in groups and all(type(n) is int and n >= 0 for n in numbers)
    if not is_well or not numbers or len(set(numbers)) < len(numbers):
        raise UserError(
            f"got the columns {columns!r} in a ModelSpec; expected the outputs of {' and of '.join(CLASSES)}, numbers "
            "from 0 on, each once; give such as columns=((0,), (1,)), or ((), (1,)) of one class alone."
        )
    negative, positive = (tuple(group or ()) for group in groups)
    return negative, positive


class Classifier(nn.Module):
    """A network with its spec: logits, log-odds and normalisation."""

    network: Any  # one of NETWORKS: its layers are attributes that nn.Module does not declare
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec):
        super().__init__()
        self.network, self.spec = network, spec
        self.notes: tuple[str, ...] = ()  # on how its weights were read
        self._structure: tuple[Any, Structure] | None = None
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixel space, [0, 1], to model space."""
        return (pixels_BCHW - self.mean) / self.std

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Model-space images to logits [B, 2]; the target's column is z_target. One output z becomes (-z, z)."""
        return self.logits(self.network(images_BCHW))

    def logits(self, outputs: Tensor) -> Tensor:
        """The network's outputs to logits [B, 2]."""
        columns = self.spec.columns
        if columns is None:
            return outputs if self.spec.outputs == 2 else torch.cat([-outputs, outputs], dim=1)
        if not all(columns):  # log-odds of one class
            z = _together(outputs[:, [*columns[0], *columns[1]]])
            z = z if columns[1] else -z
            return torch.stack([-z, z], dim=1)
        return torch.stack([_together(outputs[:, list(c)]) for c in columns], dim=1)

    def log_odds(self, images_BCHW: Tensor) -> Tensor:
        """Model-space images to the log-odds of PNEUMONIA, float32 [B]."""
        z: Tensor = self.network(images_BCHW).float()
        columns = self.spec.columns
        if columns is not None:
            z = self.logits(z)
        is_pair = self.spec.outputs == 2 if columns is None else all(columns)
        return z[:, 1] - z[:, 0] if is_pair else z[:, -1].clone()  # a CUDA graph reuses its output

    @property
    def structure(self) -> Structure:
        """The parts that explainers read, found by a traced forward pass and kept until a module is replaced.

        Raises:
            UserError: the spec names a ``cam_layer`` that is none.
        """
        modules = tuple((name, type(module)) for name, module in self.network.named_modules())
        if self._structure is None or self._structure[0] != modules:
            self._structure = modules, structure.read(self.network, self.spec.size, self.spec.cam_layer)
        return self._structure[1]

    @property
    def features(self) -> FeatureMaps:
        """The feature maps that class activation maps read.

        Raises:
            UserError: nothing in the network is spatial.
        """
        features = self.structure.features
        if features is None:
            raise UserError(
                f"got {self.spec.arch}, which can have no class activation maps: {self.structure.why_none}; expected "
                "cells that lie where they look; leave class activation maps out, or crop and pad images outside."
            )
        return features

    @property
    def cam_layer(self) -> nn.Module:
        """The module whose output class activation maps read. Raises UserError where there is none."""
        return self.network.get_submodule(self.features.layer)


def _together(logits_BC: Tensor) -> Tensor:
    """The logit of several outputs whose probabilities add up, [B]."""
    return logits_BC[:, 0] if logits_BC.shape[1] == 1 else logits_BC.logsumexp(1)


def build(arch: str, spec: ModelSpec) -> Classifier:
    """A network with random weights, in eval mode.

    Raises:
        UnknownNameError: no network of that name.
        MissingPackageError: it is of a package that is not installed.
        UserError: the spec's normalisation is not the network's.
    """
    network = NETWORKS[arch]
    return Classifier(network.build(spec.outputs), normalized(spec, network.normalization)).eval()


def normalized(spec: ModelSpec, asked: float | None) -> ModelSpec:
    """The spec with the normalisation that its network asks for. Raises UserError where the spec has another."""
    if asked is None:
        return spec
    own = (asked, asked, asked)
    if (spec.mean, spec.std) not in ((own, own), (IMAGENET_MEAN, IMAGENET_STD)):
        raise UserError(
            f"got mean {spec.mean} and std {spec.std} for {spec.arch}; expected {asked} for each channel, which its "
            "range of grey values asks for; leave mean and std out."
        )
    return replace(spec, mean=own, std=own)


def _resnet18(outputs: int) -> nn.Module:
    from torchvision.models import resnet18  # more than a second, which a mistake need not wait for

    return resnet18(weights=None, num_classes=outputs)


def _imagenet_resnet18() -> dict[str, Tensor]:
    from torchvision.models import ResNet18_Weights

    return dict(ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))


NETWORKS = Networks(
    "network",
    {
        "resnet18": Network(_resnet18, _imagenet_resnet18, "ResNet-18 of torchvision (He et al., CVPR 2016)."),
        "resnet18d": of_timm(
            "resnet18d",
            "ResNet-18 of timm with a stem of three convolutions and pooled shortcuts (He et al., CVPR 2019).",
        ),
        "seresnet18": of_timm(
            "seresnet18",
            "ResNet-18 of timm with channels gated by what the whole image holds (squeeze and excitation, Hu et al., "
            "CVPR 2018).",
        ),
    },
)
