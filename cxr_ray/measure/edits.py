"""Edits: changes of the whole image that are scored once each. A new one is a function and an entry in EDITS.

Shapes: B images, S side of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cxr_ray.data import markers
from cxr_ray.registry import Registry


def _whole(size: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Edit:
    """A change of images, and what others need to know of it.

    Attributes:
        edit: uint8 [B, 3, S, S] to changed images in pixel space [0, 1].
        caption: what it does, in a sentence.
        share: the image's size to the share of its pixels that it may change.
    """

    edit: Callable[[Tensor], Tensor]
    caption: str
    share: Callable[[int], float] = _whole


def paste_marker(pixels: Tensor) -> Tensor:
    """A marker, as the phantoms have it, pasted into a corner."""
    images = pixels.float() / 255
    ink, (rows, columns) = markers.pasted_marker(pixels.shape[-1])
    plate = images[..., rows, columns]
    plate.copy_(torch.maximum(plate * markers.PLATE, torch.from_numpy(ink).to(plate)))
    return images


def marker_share(size: int) -> float:
    """Share of the image that a pasted marker covers."""
    return float(markers.pasted_marker(size)[0].size / size**2)


def lower_contrast(pixels: Tensor) -> Tensor:
    """Contrast times 0.7, about the image's mean."""
    return _with_contrast(pixels, 0.7)


def raise_contrast(pixels: Tensor) -> Tensor:
    """Contrast times 1.4, about the image's mean."""
    return _with_contrast(pixels, 1.4)


def _with_contrast(pixels: Tensor, factor: float) -> Tensor:
    images = pixels.float() / 255
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def equalize(pixels: Tensor) -> Tensor:
    """Histogram equalised."""
    from torchvision.transforms.v2 import functional

    return functional.equalize(pixels).float() / 255


EDITS = Registry(
    "edit",
    {
        "paste_marker": Edit(paste_marker, "A marker, as the phantoms have it, pasted into a corner.", marker_share),
        "lower_contrast": Edit(lower_contrast, "Contrast times 0.7, about the image's mean."),
        "raise_contrast": Edit(raise_contrast, "Contrast times 1.4, about the image's mean."),
        "equalize": Edit(equalize, "Histogram equalised."),
    },
)
