"""Fills: what replaces the pixels that are perturbed. A new one is a function and an entry in FILLS.

Shapes: B images, J jobs (one masked image each), S side of an image, U its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.measure import imputation
from cxr_ray.registry import Registry

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # RISE's
LINEAR_NOISE = 0.01  # ROAD's, in pixel space

Normalize = Callable[[Tensor], Tensor]  # pixel space [b, C, S, S] to model space; of one channel, as it is
MaskedFill = Callable[[Tensor, Tensor], Tensor]
"""(images int64 [J], filled pixels bool [J, U]) to what replaces them, normalised, [J, C, U]."""


@dataclass(frozen=True)
class Fill:
    """What replaces pixels, and what others need to know of it.

    Attributes:
        make: pixel-space images [B, 3, S, S] in [0, 1], the normalisation's mean [3, 1, 1] and a key for each image, to
            what replaces perturbed pixels, [B, 3, S, S]; of a fill that depends on the mask, where all are perturbed.
        caption: what it is, in a sentence.
        for_masks: for a fill that depends on the mask: (images as above, a key for each, normalize) to how it is made.
        purpose: of its random numbers.
        keeps_grey: whether equal channels stay equal, so that it can be made of one channel [B, 1, S, S] alone.
    """

    make: Callable[[Tensor, Tensor, Tensor], Tensor]
    caption: str
    for_masks: Callable[[Tensor, Tensor, Normalize], MaskedFill] | None = None
    purpose: str = "noise fill"
    keeps_grey: bool = True


def black(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    """Zero."""
    return torch.zeros_like(images)


def grey_level(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    """The normalisation's mean: zero in model space."""
    return grey.expand_as(images)


def image_mean(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    """Each channel's mean over the image."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def blur(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    """The image blurred: Gaussian, kernel 11, sigma 5 (RISE's)."""
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(images, [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])


def noise(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    """Uniform noise in (0, 1), one field an image, equal in all channels."""
    size = images.shape[-1]
    return randomness.uniform(keys_B, size * size).view(-1, 1, size, size).expand_as(images)


@dataclass(frozen=True)
class Linear:
    """Noisy linear imputation (Rong et al., ROAD, ICML 2022), made anew for each mask.

    A perturbed pixel is the weighted mean of its neighbours (``imputation``) plus noise, not clipped to [0, 1], as in
    ROAD's published code. Unlike there, an image's noise is one field, the same for all channels, masks and levels:
    draws are paired with it, and the channels of an X-ray stay equal. Where nothing is left, it is the image's mean
    without noise.

    Attributes:
        planes: pixel space, [B, 1, S, S] if the channels of every image are equal, else [B, 3, S, S].
        noise: [B, 1, S, S], standard deviation 0.01 in pixel space.
        normalize: pixel space [b, C, S, S] to what is asked for.
        channels: C of the images.
    """

    planes: Tensor
    noise: Tensor
    normalize: Callable[[Tensor], Tensor]
    channels: int = 3

    @classmethod
    def of(cls, images_BCSS: Tensor, keys_B: Tensor, normalize: Callable[[Tensor], Tensor]) -> Linear:
        """From pixel-space images [B, C, S, S] and one key an image for its noise."""
        channels, size = images_BCSS.shape[1], images_BCSS.shape[-1]
        grey = channels > 1 and bool((images_BCSS == images_BCSS[:, :1]).all())
        noise = randomness.normal(keys_B, size * size).view(-1, 1, size, size) * LINEAR_NOISE
        return cls(images_BCSS[:, :1] if grey else images_BCSS, noise, normalize, channels)

    def __call__(self, image_J: Tensor, filled_JU: Tensor) -> Tensor:
        """[J, C, S * S], normalised, what replaces the filled pixels (bool [J, S * S]) of each job's image."""
        planes = self.planes.index_select(0, image_J)
        missing = filled_JU.view(-1, 1, *planes.shape[-2:])
        made = imputation.linear(planes.flatten(0, 1), missing.expand_as(planes).flatten(0, 1)).view_as(planes)
        made = made + self.noise.index_select(0, image_J) * ~missing.all(3).all(2)[:, :, None, None]
        return self.normalize(made.expand(-1, self.channels, -1, -1)).flatten(2)


FILLS = Registry(
    "fill",
    {
        "black": Fill(black, "Black: 0."),
        "grey": Fill(grey_level, "The normalisation's mean, which is zero to the model.", keeps_grey=False),
        "mean": Fill(image_mean, "The image's own mean."),
        "blur": Fill(blur, "The image blurred: Gaussian, kernel 11, sigma 5, as in RISE (Petsiuk et al., BMVC 2018)."),
        "noise": Fill(noise, "Uniform noise, one field for each image."),
        "linear": Fill(
            image_mean,
            "Noisy linear imputation from the pixels that are left (Rong et al., ROAD, ICML 2022).",
            for_masks=Linear.of,
            purpose="linear fill",
        ),
    },
)
