"""Pixels of the browser's cards as texts: X-rays, maps and masks, small enough to hold hundreds in a few megabytes.

Shapes: S side of an image in pixels, T side of a thumbnail, V side of a map.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features

from cxr_ray import randomness
from cxr_ray.measure.fills import FILLS
from cxr_ray.report.browser.masks import Mask, Values

THUMBNAIL = 224  # pixels
SHOWN_MAP = 28  # a larger map is pooled to it
COARSE_MASK = 112  # of masks that are approximate
QUALITY = 65

Grey = NDArray[np.uint8]


@lru_cache(maxsize=1)
def _webp() -> bool:
    return bool(features.check("webp"))


def photo(pixels: Grey) -> str:
    """Grey pixels as a data URI: WebP, or JPEG where Pillow lacks it."""
    if _webp():
        return _uri(Image.fromarray(pixels), "WEBP", quality=QUALITY, method=2)
    return _uri(Image.fromarray(pixels), "JPEG", quality=QUALITY)


def _uri(picture: Image.Image, kind: str, **how: object) -> str:
    sink = io.BytesIO()
    picture.save(sink, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"


def thumbnail(grey: Grey) -> Grey:
    """At most THUMBNAIL wide."""
    side = min(THUMBNAIL, len(grey))
    if side == len(grey):
        return grey
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR))


def mask(inside: Mask, coarse: bool) -> str:
    """A mask, white inside."""
    side = min(COARSE_MASK if coarse else THUMBNAIL, len(inside))
    picture = Image.fromarray(inside)
    if side < len(inside):
        picture = picture.resize((side, side), Image.Resampling.NEAREST)
    return _uri(picture, "PNG")


def heat(values: Values) -> str:
    """A map as grey: 128 is zero, 255 and 1 are the 99th percentile of its absolute values, as galleries scale it."""
    if len(values) > SHOWN_MAP:
        values = np.asarray(Image.fromarray(values).resize((SHOWN_MAP, SHOWN_MAP), Image.Resampling.BOX))
    scaled = np.clip(values / (np.quantile(np.abs(values), 0.99) or 1.0), -1, 1)
    return _uri(Image.fromarray((128 + 127 * scaled).round().astype(np.uint8)), "PNG")


def filled(grey: Grey, fill: str, image_id: str, seed: int, grey_level: float) -> int | Grey:
    """What a fill puts in place of pixels: one value from 0 to 255, or pixels [S, S].

    Args:
        grey: the image, [S, S].
        fill: its name.
        image_id, seed: of its random numbers.
        grey_level: the mean of the model's normalisation, 0 to 1.
    """
    entry = FILLS[fill]
    pixels = torch.from_numpy(grey.astype(np.float32) / 255)[None, None]
    keys = torch.tensor([randomness.key(seed, image_id, entry.purpose)])
    made = entry.make(pixels, torch.full((1, 1, 1), grey_level), keys)[0, 0].numpy()
    as_bytes = (255 * made).round().clip(0, 255).astype(np.uint8)
    return int(as_bytes[0, 0]) if (as_bytes == as_bytes[0, 0]).all() else as_bytes


def noise_key(image_id: str, seed: int) -> list[int]:
    """The key of an image's noise, its upper and lower 32 bits: the page makes the numbers of ``randomness.bits``."""
    whole = randomness.key(seed, image_id, FILLS["noise"].purpose) % 2**64
    return [whole >> 32, whole % 2**32]


def depends_on_mask(fill: str) -> bool:
    """Whether a fill is made anew for each mask."""
    return FILLS[fill].for_masks is not None


def deleted(grey: Grey, fill: str, image_id: str, seed: int, inside: Mask) -> Grey:
    """An image with a mask under a fill that depends on it."""
    entry = FILLS[fill]
    assert entry.for_masks is not None
    pixels = torch.from_numpy(grey.astype(np.float32) / 255)[None, None]
    keys = torch.tensor([randomness.key(seed, image_id, entry.purpose)])
    where = torch.from_numpy(inside)[None].flatten(1)
    made = entry.for_masks(pixels, keys, lambda x: x)(torch.tensor([0]), where).view(pixels.shape)[0, 0].numpy()
    shown = np.where(inside, made, pixels[0, 0].numpy())
    return np.asarray((255 * shown).round().clip(0, 255).astype(np.uint8))
