"""DICOM files against closed forms of the standard's steps, and 16-bit images by the bits that they use."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_ray.data import dicom, images
from cxr_ray.data.doubts import settle
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.errors import DataError, ImageError, MissingPackageError
from tests.builders.images import write

pydicom = pytest.importorskip("pydicom")
RAMP = (np.arange(64 * 64, dtype=np.uint16) % 4096).reshape(64, 64)  # every value of 12 bits


def dicom_file(stored=RAMP, bits=12, photometric="MONOCHROME2", **tags) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    d.Rows, d.Columns = stored.shape[-2:]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, photometric
    d.BitsAllocated, d.BitsStored, d.HighBit = 8 * stored.itemsize, bits, bits - 1
    d.PixelRepresentation = int(stored.dtype.kind == "i")
    d.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(d, name, value)
    stream = io.BytesIO()
    d.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_the_whole_stored_range_is_shown_where_no_window_is_given():
    data = dicom_file()
    assert images.header(data) == (64, 64, "MONOCHROME2, 12 bits")
    np.testing.assert_array_equal(images.decode(data, 64)[0], np.rint(RAMP * (255 / 4095)))


@pytest.mark.parametrize("bits", [8, 10, 14, 16])
def test_8_to_16_bits_reach_white(bits):
    stored = np.full((8, 8), 2**bits - 1, np.uint8 if bits == 8 else np.uint16)
    assert (images.decode(dicom_file(stored, bits), 8) == 255).all()


def test_monochrome1_is_the_negative_of_monochrome2():
    positive, negative = (dicom.pixels(dicom_file(photometric=f"MONOCHROME{i}")) for i in (2, 1))
    np.testing.assert_array_equal(negative, 255 - positive)


def test_a_window_is_the_standards_linear_function():
    centre, width = 2000.0, 1000.0
    shown = dicom.pixels(dicom_file(WindowCenter=centre, WindowWidth=width)).astype(float)
    linear = np.clip(((RAMP - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)  # PS3.3 C.11.2.1.2.1
    assert np.abs(shown - linear).max() <= 1
    assert set(shown[RAMP < 1500]) == {0}
    assert set(shown[RAMP > 2500]) == {255}


def test_the_first_of_several_windows_is_taken():
    two = dicom.pixels(dicom_file(WindowCenter=[2000, 100], WindowWidth=[1000, 50]))
    np.testing.assert_array_equal(two, dicom.pixels(dicom_file(WindowCenter=2000, WindowWidth=1000)))


def test_a_window_is_in_units_after_rescaling():
    plain = dicom.pixels(dicom_file(WindowCenter=2000, WindowWidth=1000))
    rescaled = dicom_file(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=2 * 2000 - 1000, WindowWidth=2 * 1000)
    assert np.abs(dicom.pixels(rescaled).astype(int) - plain).max() <= 1


def test_signed_values_with_an_intercept_keep_their_order():
    shown = dicom.pixels(dicom_file((RAMP.astype(np.int16) - 2048), RescaleSlope=1, RescaleIntercept=0))
    np.testing.assert_array_equal(shown, np.rint(RAMP * (255 / 4095)))


def test_signed_values_that_use_a_small_part_of_their_range_need_a_window():
    """Shown whole, they would be flat grey."""
    with pytest.raises(ImageError, match="signed values of 16 bits, of which 0 to 4095 are used, and no window"):
        dicom.pixels(dicom_file(RAMP.astype(np.int16), 16))
    shown = dicom.pixels(dicom_file(RAMP.astype(np.int16), 16, WindowCenter=2048, WindowWidth=4096))
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize("tags", [{"RescaleSlope": None, "RescaleIntercept": 5}, {"WindowCenter": None}])
def test_an_empty_tag_says_as_much_as_none(tags):
    np.testing.assert_array_equal(dicom.pixels(dicom_file(**tags)), dicom.pixels(dicom_file()))


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_voi_table_is_looked_up(vr):
    item, entries = pydicom.Dataset(), [255 - v // 16 for v in range(4096)]
    item.add_new("LUTDescriptor", "US", [4096, 0, 8])
    item.add_new("LUTData", vr, entries if vr == "US" else np.array(entries, "<u2").tobytes())
    shown = dicom.pixels(dicom_file(VOILUTSequence=pydicom.Sequence([item]), WindowCenter=1, WindowWidth=2))
    np.testing.assert_array_equal(shown, 255 - RAMP // 16)


def test_lossless_jpeg_2000_is_read():
    pytest.importorskip("openjpeg")
    dataset = pydicom.dcmread(io.BytesIO(dicom_file()))
    dataset.compress(pydicom.uid.JPEG2000Lossless)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    np.testing.assert_array_equal(dicom.pixels(stream.getvalue()), dicom.pixels(dicom_file()))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (dicom_file(np.stack([RAMP, RAMP]), NumberOfFrames=2), "has 2 frames; save the one that is meant"),
        (dicom_file(photometric="PALETTE COLOR"), "is PALETTE COLOR, not MONOCHROME1 or MONOCHROME2; save it in grey"),
        (dicom_file(np.zeros((4, 4), np.uint32), 32), "stores 32 bits a pixel, not 8 to 16"),
        (b"\0" * 128 + b"DICM", "a DICOM file with a damaged header"),
        (b"\0" * 128 + b"DICM" + b"\x07" * 300, "a DICOM file with a damaged header"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_its_header(data, says):
    with pytest.raises(ImageError, match=says) as e:
        images.header(data)
    assert "\n" not in str(e.value)


def test_truncated_pixels_are_refused_when_decoded():
    with pytest.raises(ImageError, match="pixels of the DICOM file cannot be decoded"):
        images.decode(dicom_file()[:-4000], 32)


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"RescaleSlope": "1e308", "RescaleIntercept": 0},
        {"WindowCenter": 2000, "WindowWidth": 0},
        {"RescaleSlope": 0, "RescaleIntercept": 7, "WindowCenter": 2000, "WindowWidth": 1000},
    ],
)
def test_tags_that_leave_no_range_of_grey_values_are_an_error_of_the_image(tags, recwarn):
    with pytest.raises(ImageError, match="cannot be decoded"):
        images.decode(dicom_file(**tags), 8)


def test_one_image_without_a_range_does_not_end_the_others(tmp_path):
    write(tmp_path, {"good.dcm": dicom_file(), "bad.dcm": dicom_file(RescaleSlope=0, RescaleIntercept=0)})
    rows = pd.DataFrame({"path": ["good.dcm", "bad.dcm"], "image_id": ["a", "b"]})
    pixels = load_pixels(FolderSource(str(tmp_path)), rows, 8)
    assert pixels.keep.tolist() == [True, False]
    assert [(e["image_id"], e["stage"]) for e in pixels.errors] == [("b", "decode")]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingPackageError, match=r"expected pydicom .*pip install 'cxr-ray\[dicom\]'\.$"):
        images.header(WRITTEN)


WRITTEN = dicom_file()


def deep(top: int, seed: int) -> bytes:
    stream = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, top, (16, 16)).astype(np.uint16)
    values[0, 0] = top
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def deep_folder(tmp_path, top, **settings):
    files = {
        f"{split}/{name}/{split}{name}{i}.png": deep(top, hash((split, name, i)) % 2**32)
        for split in ("train", "test")
        for name in ("NORMAL", "PNEUMONIA")
        for i in range(3)
    }
    return FolderSource(str(write(tmp_path, files)), **settings)


def test_12_bits_in_16_are_a_suspicion_until_data_bits_says_so(tmp_path):
    source = deep_folder(tmp_path, 4095)
    says = (
        r"got 12 images of 16 bits, or DICOM .* end at 40.. .* in 12 that were read, as 12 bits would; .*set data.bits"
    )
    with pytest.raises(DataError, match=says):
        settle(load_manifest(source).doubts, [])
    dark = load_pixels(source, load_manifest(source).rows("test"), 16)
    assert dark.images_NCHW.max() == 16
    source = deep_folder(tmp_path, 4095, bits=12)
    manifest = load_manifest(source)
    assert manifest.doubts == []
    assert load_pixels(source, manifest.rows("test"), 16).images_NCHW.max() == 255


def test_data_bits_below_what_the_images_hold_stop_the_run_before_it_starts(tmp_path):
    doubts = load_manifest(deep_folder(tmp_path, 4095, bits=10)).doubts
    with pytest.raises(DataError, match=r"got 12 images .*beyond data.bits .*at 4095 of 12 bits.*; raise data.bits"):
        settle(doubts, [])
    assert "table errors" in settle(doubts, ["bits_too_small"])[0]


def test_the_bits_that_are_used_are_those_of_all_images(tmp_path):
    assert load_manifest(deep_folder(tmp_path, 65535)).doubts == []
    values = np.array([[0, 2048], [4095, 1]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    np.testing.assert_array_equal(images.decode(stream.getvalue(), 2, bits=12)[0], [[0, 128], [255, 0]])
    with pytest.raises(ImageError, match=r"Values reach 4095, beyond the 1023 of data.bits: 10"):
        images.decode(stream.getvalue(), 2, bits=10)


def test_a_window_keeps_its_order_where_rescaling_turns_values_round():
    tags = {"RescaleSlope": "-1", "RescaleIntercept": "4095", "WindowCenter": "1024", "WindowWidth": "1024"}
    turned = images.decode(dicom_file(4095 - RAMP, **tags), 64)[0]
    plain = images.decode(dicom_file(WindowCenter="1024", WindowWidth="1024"), 64)[0]
    np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"HighBit": 15}, "12 bits that end at bit 15, not 11"),
        ({"PresentationLUTShape": "INVERSE"}, "MONOCHROME2 and says INVERSE as its PresentationLUTShape"),
    ],
)
def test_tags_that_contradict_each_other_are_an_error_of_the_image(tags, says):
    with pytest.raises(ImageError, match=says):
        images.header(dicom_file(**tags))


@pytest.mark.parametrize("name", ["IDENTITY", "INVERSE"])
def test_monochrome1_is_inverted_once_whatever_its_shape(name):
    shaped = dicom.pixels(dicom_file(photometric="MONOCHROME1", PresentationLUTShape=name))
    np.testing.assert_array_equal(shaped, 255 - dicom.pixels(dicom_file()))


def test_dicom_files_that_say_16_bits_and_use_12_are_a_suspicion_unless_a_window_says_what_is_shown(tmp_path):
    whole, windowed = tmp_path / "whole", tmp_path / "windowed"
    for folder, tags in ((whole, {}), (windowed, {"WindowCenter": "2048", "WindowWidth": "4096"})):
        for class_name in ("NORMAL", "PNEUMONIA"):
            for i in range(3):
                (folder / "test" / class_name).mkdir(parents=True, exist_ok=True)
                file = folder / "test" / class_name / f"{class_name}{i}.dcm"
                file.write_bytes(dicom_file(np.roll(RAMP, i + len(class_name)), 16, **tags))
    assert not load_manifest(FolderSource(str(windowed)), training=False).doubts
    doubts = load_manifest(FolderSource(str(whole)), training=False).doubts
    with pytest.raises(
        DataError, match=r"got 6 images of 16 bits, or DICOM .* end at 4055 .* in 6 .*, as 12 bits would"
    ):
        settle(doubts, [])
    told = FolderSource(str(whole), bits=12)
    manifest = load_manifest(told, training=False)
    assert not manifest.doubts
    pixels, _, errors = load_pixels(told, manifest.rows("test"), 64)
    assert not len(errors)
    assert pixels.max() == 255
    (doubt,) = load_manifest(FolderSource(str(whole), bits=10), training=False).doubts
    assert doubt.name == "bits_too_small"


def test_a_file_of_several_pages_is_refused():
    stream = io.BytesIO()
    first, second = Image.new("L", (8, 8)), Image.new("L", (8, 8), 9)
    first.save(stream, "TIFF", save_all=True, append_images=[second])
    with pytest.raises(ImageError, match="The file holds 2 images; save the one that is meant"):
        images.header(stream.getvalue())


def test_some_bright_pixels_do_not_make_16_bits_of_12(tmp_path):
    """As markers that are burned in, and images of another device."""
    for n in range(20):
        values = np.random.default_rng(n).integers(0, 65536 if n == 0 else 4096, (32, 32)).astype(np.uint16)
        values[0, :8] = 65535
        file = tmp_path / "test" / ("NORMAL", "PNEUMONIA")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    (doubt,) = load_manifest(FolderSource(str(tmp_path)), training=False).doubts
    assert doubt.name == "bit_depth"
    assert "in 19 of 20 that were read, as 12 bits would" in doubt.about


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": "2048", "WindowWidth": "4096"}])
def test_padding_is_black_and_takes_no_part_in_the_depth(photometric, window):
    padded = RAMP.copy()
    padded[:8] = 65535
    data = dicom_file(padded, 16, photometric, PixelPaddingValue=65535, **window)
    assert images.depth(data, 1.0) == (None if window else (int(RAMP[8:].max()), 16))
    shown = dicom.pixels(data, 12)
    assert not shown[:8].any()
    plain = dicom.pixels(dicom_file(RAMP, 16, photometric, **window), 12)
    np.testing.assert_array_equal(shown[8:], plain[8:])


def test_a_range_of_padding_is_left_out_of_signed_values_too():
    signed = RAMP.astype(np.int16) - 2048
    signed[:8], signed[8:16] = -32768, -32000
    tags = {"PixelRepresentation": 1, "PixelPaddingValue": -32768, "PixelPaddingRangeLimit": -31000}
    window = {"WindowCenter": "0", "WindowWidth": "4096"}
    shown = dicom.pixels(dicom_file(signed, 16, **tags, **window))
    assert not shown[:16].any()
    assert shown[16:].any()
    with pytest.raises(ImageError, match="signed values of 16 bits"):
        dicom.pixels(dicom_file(signed, 16, **tags))
