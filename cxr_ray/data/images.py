"""Bytes of an image file to uint8 pixels.

Pillow's plugin classes are called directly, chosen by the first bytes of the file: ``Image.open`` warns about large
images through a process-wide setting, and threads cannot silence a warning safely.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pyarrow import fs as pafs

from cxr_ray.data import dicom
from cxr_ray.errors import ImageError, MissingPackageError
from cxr_ray.reading import TooLargeError, read_file
from cxr_ray.registry import Registry

Fit = Literal["squash", "pad", "crop"]

MAX_PIXELS = 100_000_000
MAX_BYTES = 4 * MAX_PIXELS
BORDER = 0.10  # of a side, as in regions
PARTS = 32  # values of a mask at most, to be those of parts
NOISE = 0.1  # of the greatest value: what a lossy compression leaves outside
CLIP_LIMIT = 0.01  # of CLAHE, as a share of a tile's pixels; tiles of 1/8 of a side
DEEP = ("RGB;16", "RGBX;16", "RGBA;16", "LA;16")  # Pillow's raw modes of 16 bits of which it keeps 8
_BITS_PER_SAMPLE = 258  # tag of TIFF
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"P2", PpmImageFile),
    (b"P3", PpmImageFile),
    (b"P5", PpmImageFile),
    (b"P6", PpmImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"BM", BmpImageFile),
    (b"RIFF", WebPImageFile),
)


def header(data: bytes) -> tuple[int, int, str]:
    """Width and height in pixels and Pillow's colour mode, as stored, without decoding the pixels.

    The mode of colours or opacity of 16 bits, of which Pillow keeps 8, says so: ``RGB, 16 bits``.

    Raises:
        ImageError: empty, not an image, a damaged header, or more than 100 megapixels.
    """
    if dicom.is_dicom(data):
        width, height, mode = dicom.header(data)
        _check_size(width, height)
        return width, height, mode
    image = _open(data)
    return image.width, image.height, f"{image.mode}, 16 bits" if _raw_mode(image) else image.mode


def decode(data: bytes, size: int, fit: Fit = "squash", bits: int = 16) -> NDArray[np.uint8]:
    """A file's bytes to uint8 RGB pixels [3, size, size], 0 to 255; grey images have three equal channels.

    Resampling is bilinear and antialiased, and left out where the sides fit already. Values of 16 bits, grey or in
    colour, are divided by 257 (by 16.06 where 12 of their bits are used), the same for every image, transparent pixels
    lie on black, and EXIF orientation is not applied. DICOM files are shown as ``dicom.pixels`` says.

    Args:
        data: the bytes of the file.
        size: side of the result, in pixels.
        fit: squash resizes both sides; pad keeps the aspect ratio, centred on black; crop keeps the centre square.
        bits: that a 16-bit image uses, 9 to 16.

    Raises:
        ImageError: empty, not an image, truncated or damaged, more than 100 megapixels, a pixel type without a
            defined range (32-bit, floating point), or a value beyond ``bits``.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"got the fit {fit!r}; expected one of: {', '.join(get_args(Fit))}")

    def fitted(image: Image.Image) -> Image.Image:
        deep = _sixteen_bit(data, image)
        shallow = _eight_bit(image, bits) if deep is None else Image.fromarray(_scaled(_on_black(deep), bits))
        return _fit(shallow, size, fit)

    array = np.asarray(_loaded(data, fitted, bits))
    if array.ndim == 2:
        return np.repeat(array[None], 3, axis=0)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """A mask's file to bool [H, W], as it lies in its file.

    Inside is what lies above 0 where a mask holds 0 and one other value, such as 1 or a colour; else what lies above
    127, of 65535 where it has 16 bits above 32767. Where pixels are transparent and the others black, the inside is
    what is not transparent.

    Raises:
        ImageError: as ``decode``; several values of which none is that high, such as numbers of parts; or parts of
            several values of which some would lie outside.
    """
    return _inside(np.asarray(_loaded(data, lambda image: _mask_values(image, _sixteen_bit(data, image)))))


def _mask_values(image: Image.Image, deep: NDArray[np.uint16] | None) -> Image.Image:
    """The opacity of a mask whose colours are black and which is transparent in part; else its colours on black.

    ``deep`` are its values where they have 16 bits, in colour or transparent.
    """
    if deep is not None:
        colours = _on_black(deep).max(2)
        return Image.fromarray(deep[..., -1] if deep.shape[2] in (2, 4) and not colours.any() else colours)
    if image.mode not in ("LA", "RGBA"):
        return image if image.mode.startswith("I") else _eight_bit(image)
    opaque, on_black = image.getchannel("A"), _eight_bit(image)
    varies = len(np.unique(np.asarray(opaque))) > 1
    return opaque if varies and not np.asarray(on_black).any() else on_black


def _inside(array: NDArray[Any]) -> NDArray[np.bool_]:
    """The inside of a mask's values, [H, W] or [H, W, 3]."""
    values = array if array.ndim == 2 else array.max(2)
    found, half = np.unique(values), 2 ** (15 if values.dtype.itemsize > 1 else 7) - 1
    if len(found) == 2 and found[0] == 0:
        half = 0
    if 0 < found[-1] <= half:
        raise ImageError(
            f"The mask holds {len(found)} values up to {found[-1]}, of which none is above {half}, the inside; save it "
            f"with 0 outside and one other value inside."
        )
    if (lost := _lost_part(values, found, half)) is not None:
        raise ImageError(
            f"The mask holds parts of {lost} beside those of {found[-1]}, of which what is above {half} alone would be "
            "inside; save it with 0 outside and one other value inside."
        )
    mask: NDArray[np.bool_] = values > half
    return mask


def _lost_part(values_HW: NDArray[Any], found: NDArray[Any], half: int) -> int | None:
    """A value of a whole area (3 x 3 pixels) that would lie outside, though it is not the least; None: there is none.

    Of many values they are shades, as of a blurred edge or a probability; small ones are the noise of a compression.
    """
    if len(found) > PARTS:
        return None
    for value in found[1:]:
        if found[-1] * NOISE < value <= half and _has_area(values_HW == value):
            return int(value)
    return None


def _has_area(mask: NDArray[np.bool_]) -> bool:
    rows = mask[:-2] & mask[1:-1] & mask[2:]
    return bool((rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]).any())


def same_proportions(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are those of one image, enlarged or reduced, within a pixel's rounding.

    >>> same_proportions((80, 120), (27, 40)), same_proportions((80, 120), (120, 80))
    (True, False)
    """
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def place_mask(mask: NDArray[np.bool_], own: tuple[int, int], size: int, fit: Fit = "squash") -> NDArray[np.bool_]:
    """A mask [H, W] as it lies in its file to bool [size, size], where ``decode`` puts the image's pixels.

    One of the image's proportions lies over the image, one of size x size over what ``fit`` makes of it, and any other
    is stretched over the image.

    Args:
        mask: the mask.
        own: width and height of the image's file.
        size, fit: as ``decode`` takes them.
    """
    if fit != "squash" and not same_proportions(mask.shape, own[::-1]):
        if mask.shape == (size, size):
            return mask
        mask = resized_mask(mask, own)
    return fit_mask(mask, size, fit)


def resized_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """To width and height, by the nearest pixel."""
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def fit_mask(mask: NDArray[np.bool_], size: int, fit: Fit = "squash") -> NDArray[np.bool_]:
    """A mask of any size to bool [size, size], by the nearest pixel."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(_fit(image, size, fit, Image.Resampling.NEAREST)) > 127


def depth(data: bytes, share: float = dicom.BULK) -> tuple[int, int] | None:
    """Where the values of an image of over 8 bits end, and the bits of the range that it is read with.

    ``share`` of the pixels are at most as bright: all but the brightest, as a marker burned in may use the whole range.
    None where there is no such range, as in images of 8 bits and DICOM files with a window.

    Raises:
        ImageError: as ``decode``.
    """
    if dicom.is_dicom(data):
        return dicom.depth(data, share)
    image = _open(data)
    if not image.mode.startswith("I") and _raw_mode(image) is None:
        return None
    try:
        image.load()
        deep = _sixteen_bit(data, image)
        values = np.asarray(image) if deep is None else _on_black(deep).max(2)
        return dicom.end_of(values, share), 16
    except Exception as e:  # as in decode
        raise ImageError(f"The image is truncated or damaged: {_reason(e)}.") from e


def grey_values(data: bytes) -> NDArray[np.generic]:
    """The values of a grey PNG of 8 or 16 bits as they are, [H, W]: a heat map, bright is high.

    Raises:
        ImageError: no PNG, truncated, damaged, enormous, or with pixels in colour or transparent.
    """
    image = _open(data)
    if not isinstance(image, PngImageFile):
        raise ImageError("The heat map is no PNG, which keeps values as they are; save it as PNG or .npy.")
    try:
        image.load()
        if "transparency" not in image.info and (image.mode in ("1", "L") or image.mode.startswith("I")):
            return np.asarray(image)
        pixels = np.asarray(image.convert("RGBA"))
    except Exception as e:  # as in decode
        raise ImageError(f"The heat map is truncated or damaged: {_reason(e)}.") from e
    deep = data[24] == 16  # bits of a channel, of which Pillow keeps 8
    if deep or (pixels[..., 3] < 255).any() or (pixels[..., :3] != pixels[..., :1]).any():
        raise ImageError(
            "The heat map is in colour or transparent, which has no order of values; save grey values, or numbers as "
            ".npy."
        )
    return pixels[..., 0]


def fit_map(map_HW: NDArray[np.float32], size: int, fit: Fit = "squash") -> NDArray[np.float32]:
    """A map over an image to one over the same image as ``decode`` gives it, [size, size]; what pads it is its least.

    Resampling is bilinear and antialiased; a constant map stays constant.
    """
    least = map_HW.min()
    if least == map_HW.max():
        return np.full((size, size), least, np.float32)
    height, width = map_HW.shape
    square = height == width or fit == "squash"  # nothing is padded, and no value is shifted and back
    fitted = _fit(Image.fromarray(map_HW if square else map_HW - least), size, "squash" if square else fit)
    return np.array(fitted, np.float32) + (0 if square else least)


def _loaded(data: bytes, work: Callable[[Image.Image], Image.Image], bits: int = 16) -> Image.Image:
    """What ``work`` makes of the image as it is stored; of a DICOM file as it is shown, with ``bits``."""
    try:
        if dicom.is_dicom(data):
            _check_size(*dicom.header(data)[:2])
            return work(Image.fromarray(dicom.pixels(data, bits)))
        image = _open(data)
        image.load()
        return work(image)
    except (ImageError, MissingPackageError):
        raise
    except Exception as e:  # hostile bytes raise almost anything: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"The image is truncated or damaged: {_reason(e)}.") from e


def preprocess(pixels_CSS: NDArray[np.uint8], name: str = "none") -> NDArray[np.uint8]:
    """The images of a model after decoding: uint8 RGB [3, S, S] to the same.

    Args:
        pixels_CSS: as ``decode`` gives them.
        name: key of PREPROCESS.

    Raises:
        UnknownNameError: no such preprocessing.
    """
    return PREPROCESS[name].pixels(pixels_CSS)


def preprocess_mask(mask_SS: NDArray[np.bool_], name: str = "none") -> NDArray[np.bool_]:
    """A bool mask [S, S] of decoded images to that of preprocessed ones; only a crop moves places."""
    moved: NDArray[np.bool_] = PREPROCESS[name].mask(mask_SS)
    return moved


def border_width(size: int) -> int:
    """Pixels on each side whose centre lies in the outer 10%.

    >>> border_width(224), border_width(100)
    (22, 10)
    """
    return int(((np.arange(size) + 0.5) / size < BORDER).sum())


def _crop_border(places: NDArray[Any]) -> NDArray[Any]:
    """Without the border, resized back: uint8 [3, S, S] as ``decode`` does it, bool [S, S] to the nearest."""
    size = places.shape[-1]
    cut = border_width(size)
    inner = places[..., cut : size - cut, cut : size - cut]
    if places.dtype == bool:
        return np.asarray(Image.fromarray(inner).resize((size, size), Image.Resampling.NEAREST))
    channels = [Image.fromarray(channel) for channel in inner]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BILINEAR)) for c in channels])


def _mask_border(pixels_CSS: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The border black."""
    size = pixels_CSS.shape[-1]
    cut = border_width(size)
    inner = (..., slice(cut, size - cut), slice(cut, size - cut))
    masked = np.zeros_like(pixels_CSS)
    masked[inner] = pixels_CSS[inner]
    return masked


def _clahe(pixels_CSS: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, 1994); of the HSV value where there is colour."""
    from skimage.exposure import equalize_adapthist

    grey = pixels_CSS[0]
    if grey.min() == grey.max():
        return pixels_CSS  # nothing to equalise
    if (pixels_CSS == grey).all():
        return np.repeat(np.rint(255 * equalize_adapthist(grey, clip_limit=CLIP_LIMIT)).astype(np.uint8)[None], 3, 0)
    equalized = equalize_adapthist(pixels_CSS.transpose(1, 2, 0), clip_limit=CLIP_LIMIT)
    return np.ascontiguousarray(np.rint(255 * equalized).astype(np.uint8).transpose(2, 0, 1))


def _unchanged(places: NDArray[Any]) -> NDArray[Any]:
    return places


@dataclass(frozen=True)
class Preprocessing:
    """One way to treat a model's images after decoding, and masks of their parts.

    Attributes:
        pixels: uint8 RGB [3, S, S] to the same.
        caption: what it does, in a sentence.
        mask: bool [S, S], or numbers [1, S, S], to the same, where the preprocessing moves places.
    """

    pixels: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    caption: str
    mask: Callable[[NDArray[Any]], NDArray[Any]] = _unchanged


PREPROCESS: Registry[Preprocessing] = Registry(
    "preprocessing",
    {
        "none": Preprocessing(_unchanged, "Nothing."),
        "crop_border": Preprocessing(
            _crop_border, "The outer 10% on each side are cut off and the rest is enlarged.", mask=_crop_border
        ),
        "mask_border": Preprocessing(_mask_border, "The outer 10% on each side are blackened."),
        "clahe": Preprocessing(
            _clahe, "Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994)."
        ),
    },
)


def _open(data: bytes) -> ImageFile:
    """The image with its header read and its pixels not."""
    if not data:
        raise ImageError("The file is empty.")
    plugin = _plugin(data)
    try:
        image = plugin(io.BytesIO(data))
    except Exception as e:  # as in decode
        raise ImageError(f"Not an image, or one with a damaged header: {_reason(e)}.") from e
    _check_size(image.width, image.height)
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(f"The file holds {pages} images; save the one that is meant as a file of its own.")
    if isinstance(image, TiffImageFile) and image.mode in ("RGB", "RGBA", "LA"):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
        if bits > 8 and _raw_mode(image) is None:  # Pillow reads one of two bytes, and not always the same
            raise ImageError(
                "The TIFF has 16 bits a channel and its channels apart, or its colours times their opacity; save it "
                "with a pixel's channels together, or as PNG."
            )
    return image


def _plugin(head: bytes) -> Callable[[io.BytesIO], ImageFile]:
    """What opens a file with these first bytes. Raises ImageError where they are those of no image."""
    plugin = next((plugin for magic, plugin in _FORMATS if head.startswith(magic)), None)
    if plugin is None:
        raise ImageError("Not an image: the content is neither JPEG, PNG, TIFF, BMP, WebP, DICOM nor PGM or PPM.")
    return plugin


def is_image(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a kind of image that is read."""
    return dicom.is_dicom(head) or any(head.startswith(magic) for magic, _ in _FORMATS)


def read(fs: pafs.FileSystem, path: str) -> bytes:
    """The bytes of an image's file, looked at before they are read whole.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ImageError: a large file that is no image, or more bytes than an image of MAX_PIXELS has.
    """
    try:
        return read_file(fs, path, MAX_BYTES, lambda head: dicom.is_dicom(head) or _plugin(head))
    except TooLargeError as e:
        raise ImageError(f"The file is too large: {e}.") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"The image has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels.")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:200] or type(error).__name__


def _raw_mode(image: ImageFile) -> str | None:
    """How a file that is not loaded yet stores colours or opacity of 16 bits (as Pillow names it), else None."""
    args = image.tile[0].args if image.tile else ""
    raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else ""
    return raw if isinstance(raw, str) and raw.startswith(DEEP) and "transparency" not in image.info else None


def _sixteen_bit(data: bytes, image: Image.Image) -> NDArray[np.uint16] | None:
    """The values of an image in colour or with opacity that has 16 bits a channel, [H, W, channels], else None.

    Pillow loads one of two bytes, chosen by the order of bytes that it is told: each order once gives both.

    Args:
        data: of the file.
        image: as Pillow loads it.
    """
    raw = _raw_mode(_open(data)) if isinstance(image, PngImageFile | TiffImageFile) else None
    if raw is None:
        return None
    if raw.startswith("LA"):
        every = _loaded_as(data, "RGBA")  # each of four bytes as a channel
        high, low = every[..., 0::2], every[..., 1::2]
    else:
        of = raw.partition(";")[0]
        first, second = _loaded_as(data, f"{of};16B"), _loaded_as(data, f"{of};16L")
        high, low = (first, second) if np.array_equal(first, np.asarray(image)) else (second, first)
    values = high.astype(np.uint16)
    values *= 256
    values += low
    return values


def _loaded_as(data: bytes, raw: str) -> NDArray[np.uint8]:
    """What Pillow makes of a file whose bytes it takes for those of another raw mode."""
    image = _open(data)
    image.tile = [t._replace(args=(raw, *t.args[1:]) if isinstance(t.args, tuple) else raw) for t in image.tile]
    image.load()
    return np.asarray(image)


def _on_black(deep: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The values of ``_sixteen_bit`` without the opacity, [H, W, 1 or 3]."""
    if deep.shape[2] == 3:
        return deep
    colours, opaque = deep[..., :-1], deep[..., -1:]
    return colours if (opaque == 65535).all() else np.rint(colours * (opaque / 65535)).astype(np.uint16)


def _scaled(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Values of ``bits`` to 8 of them; without an axis of one channel."""
    top = 2**bits - 1
    if values.max() > top:
        raise ImageError(f"Values reach {values.max()}, beyond the {top} of data.bits: {bits}.")
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _eight_bit(image: Image.Image, bits: int = 16) -> Image.Image:
    """Any colour mode to L or RGB."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("Grey values lie outside 0 to 65535; save the image with 8 or 16 bits.")
        if _is_negative(image) and values.max() < 2**bits:
            values = 2**bits - 1 - values
        return Image.fromarray(_scaled(values, bits))
    if image.mode == "F":
        raise ImageError("Grey values are floating point, with no defined range; save the image with 8 or 16 bits.")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        black = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, opaque).convert("RGB")
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF (PhotometricInterpretation); Pillow inverts those of 8 bits alone."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0


def _fit(
    image: Image.Image, size: int, fit: Fit, resampling: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """L or RGB of any size to size x size."""
    width, height = image.size
    if fit == "squash":
        return _resize(image, size, size, resampling)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return _resize(image.crop((left, top, left + side, top + side)), size, size, resampling)
    scale = size / max(width, height)
    inner = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)), resampling)
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return canvas


def _resize(image: Image.Image, width: int, height: int, resampling: Image.Resampling) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), resampling)
