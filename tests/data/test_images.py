import contextlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFile
from torchvision.transforms import v2

from cxr_ray.data import images
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import ImageError
from cxr_ray.measure import regions
from tests.builders.images import write


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(width: int, height: int, channels: int = 1, seed: int = 0) -> Image.Image:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pgm(width: int, height: int, data: bytes = b"") -> bytes:
    return b"P5\n%d %d\n255\n" % (width, height) + data


@pytest.mark.parametrize("format", ["PNG", "PPM", "TIFF", "BMP"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_an_image_of_the_right_size_comes_back_unchanged(format, channels, fit):
    image = noise(32, 32, channels)
    pixels = images.decode(encoded(image, format), 32, fit)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 32, 32)
    assert pixels.flags["C_CONTIGUOUS"]
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_jpeg_and_webp(format, options):
    pixels = images.decode(encoded(Image.new("RGB", (40, 40), (200, 100, 50)), format, **options), 16)
    assert np.abs(pixels.reshape(3, -1).astype(int) - np.array([[200], [100], [50]])).max() <= 2


def test_header_tells_size_and_mode_without_decoding():
    assert images.header(encoded(noise(7, 5))) == (7, 5, "L")
    assert images.header(encoded(noise(7, 5, 3), "JPEG")) == (7, 5, "RGB")
    assert images.header(pgm(30, 20)) == (30, 20, "L")  # no pixels in it


def test_squash_is_antialiased():
    checkers = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    pixels = images.decode(encoded(checkers), 16, "squash")
    assert abs(int(pixels.mean()) - 127) <= 2
    assert pixels.std() < 6  # without antialiasing, 0 and 255 remain


def test_pad_keeps_the_aspect_ratio_on_black():
    pixels = images.decode(encoded(Image.new("L", (80, 40), 200)), 40, "pad")[0]
    assert (pixels[:10] == 0).all()
    assert (pixels[30:] == 0).all()
    assert (pixels[10:30] == 200).all()


def test_crop_keeps_the_centre_square():
    wide = np.zeros((40, 80), np.uint8)
    wide[:, 20:60] = 200
    assert (images.decode(encoded(Image.fromarray(wide)), 20, "crop") == 200).all()


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 2)])
def test_odd_shapes(shape, fit):
    pixels = images.decode(encoded(Image.new("L", shape, 90)), 64, fit)
    assert pixels.shape == (3, 64, 64)
    assert pixels.max() == 90


def test_16_bit_grey_keeps_its_range():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 257).astype(np.uint8)
    big_endian = b"P5\n256 256\n65535\n" + ramp.astype(">u2").tobytes()
    for data in (encoded(Image.fromarray(ramp)), encoded(Image.fromarray(ramp), "TIFF"), big_endian):
        assert images.header(data)[2].startswith("I")
        np.testing.assert_array_equal(images.decode(data, 256)[0], expected)


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits: grey with opacity, RGB or RGBA, [H, W, 2 to 4]; Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    colour = {2: 4, 3: 2, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_files(values: np.ndarray) -> list[bytes]:
    """Grey values [H, W] of 16 bits, as they are also stored in colour or with opacity."""
    opaque = np.full_like(values, 65535)
    channels = ([values, opaque], [values] * 3, [values] * 3 + [opaque])
    files = [png16(np.stack(of, 2)) for of in channels]
    tiffs: list[dict[str, Any]] = [{"byteorder": "<"}, {"byteorder": ">"}, {"compression": "deflate"}]
    for options in tiffs:
        file = io.BytesIO()
        tifffile.imwrite(file, np.stack([values] * 3, 2), photometric="rgb", **options)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize("bits", [12, 16])
def test_values_of_16_bits_in_colour_are_read_as_those_in_grey(bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (24, 32)).astype(np.uint16)
    grey = encoded(Image.fromarray(values))
    for data in deep_files(values):
        assert images.header(data)[2] in ("RGB, 16 bits", "RGBA, 16 bits")
        assert images.depth(data) == images.depth(grey)
        np.testing.assert_array_equal(images.decode(data, 16, bits=bits), images.decode(grey, 16, bits=bits))
        if bits == 16:
            with pytest.raises(ImageError, match=r"beyond the 4095 of data.bits: 12"):
                images.decode(data, 16, bits=12)


def test_transparent_pixels_of_16_bits_lie_on_black_and_may_be_a_mask():
    values = np.full((8, 8), 40000, np.uint16)
    opacity = np.where(np.arange(8) < 4, 0, 65535).astype(np.uint16) * np.ones((8, 1), np.uint16)
    pixels = images.decode(png16(np.stack([values, opacity], 2)), 8)
    assert (pixels[..., :4] == 0).all()
    assert (pixels[..., 4:] == 156).all()
    for mask in (png16(np.stack([0 * values, opacity], 2)), png16(np.stack([opacity // 257] * 3, 2))):
        np.testing.assert_array_equal(images.decode_mask(mask), opacity > 0)


def test_images_of_16_bits_in_colour_that_end_early_stop_the_run(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (12, 16, 16)).astype(np.uint16)
    files = {f"{('NORMAL', 'PNEUMONIA')[i % 2]}/{i}.png": png16(np.stack([v] * 3, 2)) for i, v in enumerate(values)}
    write(tmp_path, files)
    assert [doubt.name for doubt in load_manifest(FolderSource(str(tmp_path))).doubts] == ["bit_depth"]
    assert load_manifest(FolderSource(str(tmp_path), bits=12)).doubts == []
    (doubt,) = load_manifest(FolderSource(str(tmp_path), bits=10)).doubts
    assert doubt.name == "bits_too_small"


def test_values_without_a_defined_range_are_refused():
    with pytest.raises(ImageError, match="0 to 65535"):
        images.decode(encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), 4)
    with pytest.raises(ImageError, match="floating point"):
        images.decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 4)


def test_colour_modes_give_the_same_picture():
    grey = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))
    expected = np.asarray(grey)
    opaque = Image.new("L", grey.size, 255)
    for data in (
        encoded(Image.merge("LA", (grey, opaque))),
        encoded(Image.merge("RGBA", (grey, grey, grey, opaque))),
        encoded(grey.convert("P")),
        encoded(grey.convert("RGB").convert("CMYK"), "TIFF"),
    ):
        assert np.abs(images.decode(data, 32).astype(int) - expected).max() <= 1
    one_bit = images.decode(encoded(grey.point(lambda v: 255 * (v > 127)).convert("1")), 32)
    np.testing.assert_array_equal(one_bit[0], 255 * (expected > 127))
    cmyk = images.decode(encoded(grey.convert("RGB").convert("CMYK"), "JPEG", quality=100), 32)
    assert np.abs(cmyk.astype(int) - expected).max() <= 6


def test_transparent_pixels_lie_on_black():
    hidden = Image.merge("LA", (Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (
            encoded(hidden),
            encoded(hidden.convert("RGBA")),
            encoded(palette, transparency=bytes([255, 0])),
            encoded(Image.new("L", (8, 8), 255), transparency=255),
        ):
            assert (images.decode(data, 8) == 0).all()


JPEG = encoded(noise(64, 64, 3), "JPEG")
PNG = encoded(noise(64, 64))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"Dear reader, this is a text.\n", "Not an image"),
        (b"\x00" * 1000, "Not an image"),
        (b"BMI table\n", "damaged header"),
        (b"P5 is a nice format", "damaged header"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "damaged header"),
        (JPEG[:20], "damaged header"),
        (PNG[:20], "damaged header"),
    ],
)
def test_what_is_no_image_is_refused_by_its_header(data, reason):
    for read in (images.header, lambda d: images.decode(d, 32)):
        with pytest.raises(ImageError, match=reason):
            read(data)


@pytest.mark.parametrize(
    "data",
    [
        JPEG[: len(JPEG) // 2],
        PNG[: len(PNG) // 2],
        PNG[:100] + bytes(100) + PNG[200:],
        encoded(noise(64, 64), "TIFF")[:2000],
        pgm(64, 64, b"abc"),
    ],
    ids=["jpeg", "png", "png with a hole", "tiff", "pgm"],
)
def test_truncated_and_damaged_images_are_refused_when_decoded(data):
    with pytest.raises(ImageError, match=r"^The image is truncated or damaged: .+\.$|damaged header"):
        images.decode(data, 32)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
def test_damage_anywhere_is_an_answer_or_a_bad_image():
    rng = np.random.default_rng(0)
    files = [JPEG, PNG, encoded(noise(16, 16), "TIFF"), encoded(noise(16, 16), "BMP"), encoded(noise(16, 16), "WEBP")]
    for data in files:
        for _ in range(60):
            damaged = bytearray(data)
            for position in rng.integers(0, min(len(data), 400), 4):
                damaged[position] = rng.integers(256)
            with contextlib.suppress(ImageError):  # anything else would be a stack trace in a sweep
                assert images.decode(bytes(damaged), 8).shape == (3, 8, 8)


def test_enormous_images_are_refused_before_decoding_and_large_ones_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.header(pgm(9_500, 10_000)) == (9_500, 10_000, "L")  # Pillow's own limit warns from 89 megapixels
        for data in (
            pgm(10_001, 10_000),
            pgm(60_000, 60_000),
            encoded(Image.new("1", (20_001, 5_000)), compress_level=1),
        ):
            for read in (images.header, lambda d: images.decode(d, 32)):
                with pytest.raises(ImageError, match="more than 100 megapixels"):
                    read(data)


def test_pillows_settings_stay_as_they_are():
    images.decode(JPEG, 32)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_an_unknown_fit_is_the_callers_mistake():
    with pytest.raises(ValueError, match="squash, pad, crop") as e:
        images.decode(JPEG, 32, "stretch")  # type: ignore[arg-type]
    assert not isinstance(e.value, ImageError)


# What a model's images go through after decoding


def rgb(size: int, seed: int = 0) -> np.ndarray:
    return np.repeat(np.random.default_rng(seed).integers(0, 256, (1, size, size), dtype=np.uint8), 3, 0)


@pytest.mark.parametrize("name", images.PREPROCESS)
def test_preprocessing_keeps_shape_type_grey_and_its_input(name):
    for pixels in (rgb(50), np.random.default_rng(1).integers(0, 256, (3, 33, 33), dtype=np.uint8)):
        kept = pixels.copy()
        done = images.preprocess(pixels, name)
        assert (done.dtype, done.shape, done.flags["C_CONTIGUOUS"]) == (np.uint8, pixels.shape, True)
        np.testing.assert_array_equal(pixels, kept)
        if (pixels == pixels[0]).all():
            np.testing.assert_array_equal(done, np.repeat(done[:1], 3, 0))
        assert np.array_equal(done, pixels) == (name == "none")


def test_the_border_is_that_of_the_regions():
    for size in range(32, 400):
        cut = images.border_width(size)
        inside = np.zeros((size, size), bool)
        inside[cut : size - cut, cut : size - cut] = True
        np.testing.assert_array_equal(~inside, regions.masks(size)["border"].numpy())


def test_a_masked_border_is_black_and_nothing_else_changes():
    pixels = np.maximum(rgb(60), 1)
    done = images.preprocess(pixels, "mask_border")
    np.testing.assert_array_equal(done[:, 6:54, 6:54], pixels[:, 6:54, 6:54])
    np.testing.assert_array_equal(done == 0, np.broadcast_to(regions.masks(60)["border"].numpy(), done.shape))


def test_a_cropped_border_is_gone_and_the_rest_fills_the_image():
    ramp = np.broadcast_to(np.arange(100.0), (100, 100))  # value x at pixel x, the border white
    pixels = np.full((3, 100, 100), 255, np.uint8)
    pixels[:, 10:90, 10:90] = ramp[10:90, 10:90]
    done = images.preprocess(pixels, "crop_border")
    # pixel x shows the place 10 + 0.8 (x + 1/2) of the ramp, whose value there is that less 1/2
    expected = np.clip(10 + 0.8 * (np.arange(100) + 0.5) - 0.5, 10, 89)
    assert np.abs(done - expected).max() <= 1
    tensor = torch.from_numpy(rgb(60)[:, 6:54, 6:54])
    oracle = v2.functional.resize(tensor, [60, 60], antialias=True).numpy()  # another implementation
    assert np.abs(images.preprocess(rgb(60), "crop_border").astype(int) - oracle).max() <= 1


def test_masks_are_cropped_as_images_are():
    y, x = np.indices((80, 80))
    disc = (y - 50) ** 2 + (x - 30) ** 2 < 15**2
    pixels = np.repeat(disc[None] * np.uint8(255), 3, 0)
    cropped = images.preprocess_mask(disc, "crop_border")
    assert cropped.dtype == bool
    bright = images.preprocess(pixels, "crop_border")[0]
    assert (cropped != (bright > 127)).mean() < 0.01
    assert cropped.sum() == pytest.approx(disc.sum() / 0.8**2, rel=0.02)
    assert not images.preprocess_mask(regions.masks(80)["border"].numpy(), "crop_border").any()
    for name in ("none", "mask_border", "clahe"):
        np.testing.assert_array_equal(images.preprocess_mask(disc, name), disc)


def test_clahe_evens_out_local_contrast_with_a_limit():
    y, x = np.indices((96, 96))
    faint = (100 + 60 * (x > 47) + 4 * ((x // 4 + y // 4) % 2)).astype(np.uint8)  # faint checks on two plateaus
    done = images.preprocess(np.repeat(faint[None], 3, 0), "clahe")[0].astype(float)

    def contrast(image: np.ndarray) -> float:
        return float(image[10:86, 10:38].std())

    assert contrast(done) > 2 * contrast(faint.astype(float))
    assert contrast(done) < 60, "the limit keeps checks of 4 grey values from becoming black and white"
    constant = np.full((3, 40, 40), 7, np.uint8)
    np.testing.assert_array_equal(images.preprocess(constant, "clahe"), constant)


@pytest.mark.parametrize(("bits", "deep"), [(16, 65535), (12, 4095)])
def test_a_tiff_in_which_0_is_white_is_inverted(bits, deep):
    values = np.array([[0, deep], [deep // 3, deep]], np.uint16)
    negative = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(images.decode(negative, 2, bits=bits)[0], [[255, 0], [170, 0]])


def test_a_tiff_of_16_bits_whose_channels_are_apart_is_refused():
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for read in (images.header, lambda data: images.decode(data, 8)):
        with pytest.raises(ImageError, match="16 bits a channel and its channels apart"):
            read(stream.getvalue())
