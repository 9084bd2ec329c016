"""DICOM files to 8-bit grey pixels, as a viewer shows them."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import ImageError, MissingPackageError

BULK = 0.99  # share of the pixels that tell how many bits an image uses
BITS = range(8, 17)  # that a pixel may store
_NUMBERS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file: DICM after a preamble of 128 bytes."""
    return data[128:132] == b"DICM"


def header(data: bytes) -> tuple[int, int, str]:
    """Width and height in pixels, and the photometric interpretation with the stored bits; no pixel is decoded.

    Raises:
        ImageError: damaged, several frames, colour, or other than 8 to 16 bits.
        MissingPackageError: pydicom is not installed.
    """
    dataset = _checked(data, stop_before_pixels=True)
    return int(dataset.Columns), int(dataset.Rows), f"{dataset.PhotometricInterpretation}, {dataset.BitsStored} bits"


def pixels(data: bytes, bits: int = 16) -> NDArray[np.uint8]:
    """Grey pixels, uint8 [height, width].

    The order is that of the DICOM standard (PS3.3, C.11): the modality's table or rescale, then the first VOI table or
    window, then MONOCHROME1 is inverted. Without a table or window, the whole stored range becomes 0 to 255. Padding
    (PixelPaddingValue) is black.

    Args:
        data: of the file.
        bits: that files without a table or window use, where they say that they store more.

    Raises:
        ImageError: as ``header``, a compression that cannot be decoded, or a grey value beyond ``bits``.
        MissingPackageError: pydicom is not installed.
    """
    dataset = _checked(data)
    _check_signed(dataset)
    try:
        padding = _padding(dataset)  # before the bits change, and with them what is read
        if (known := _shown_whole(dataset)) is not None and bits < known[1]:
            if known[0] >= 2**bits:
                raise ImageError(f"Grey values reach {known[0]}, beyond the {2**bits - 1} of data.bits: {bits}.")
            dataset.BitsStored, dataset.HighBit = bits, bits - 1
        values, low, high = _displayed(dataset)
        if not (np.isfinite(values).all() and 0 < high - low < np.inf):
            raise ValueError(f"its rescale, window or table leaves no range of grey values, but {low:g} to {high:g}")
        grey = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    except ImageError:
        raise
    except Exception as e:  # damaged pixels and tags raise almost anything
        text = " ".join(str(e).split())[:200].rstrip(".") or type(e).__name__
        raise ImageError(f"The pixels of the DICOM file cannot be decoded: {text}.") from e
    grey = 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
    grey[padding] = 0
    return grey


def depth(data: bytes, share: float = BULK) -> tuple[int, int] | None:
    """The stored value that ``share`` of the pixels do not exceed, padding aside, and the bits that the file says.

    None where a table or window says what is shown, where values are signed, or where pixels cannot be decoded.
    """
    return _shown_whole(_checked(data), share)


def end_of(values: NDArray[Any], share: float) -> int:
    """The value that a share of some values does not exceed."""
    return int(np.quantile(values, share, method="higher")) if share < 1 else int(values.max())


def _padding(dataset: Any) -> NDArray[np.bool_]:
    """Where the stored values only fill the image up, [H, W] (PS3.3, C.7.5.1.1.2)."""
    stored = dataset.pixel_array
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [int(first), int(dataset.get("PixelPaddingRangeLimit", first))]
    if int(dataset.get("PixelRepresentation", 0)) == 1:  # written as unsigned by some
        ends = [
            end - 2 ** int(dataset.BitsAllocated) if end >= 2 ** (int(dataset.BitsAllocated) - 1) else end
            for end in ends
        ]
    padding: NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return padding


def _used(dataset: Any) -> NDArray[Any]:
    """The stored values without padding; all where there is nothing else."""
    stored, padding = dataset.pixel_array, _padding(dataset)
    return stored if padding.all() else stored[~padding]


def _says_what_is_shown(dataset: Any) -> bool:
    """Whether a window or a table gives the range of grey values."""
    has_window = "WindowCenter" in dataset and "WindowWidth" in dataset
    return has_window or bool(dataset.get("VOILUTSequence") or dataset.get("ModalityLUTSequence"))


def _check_signed(dataset: Any) -> None:
    """Signed values without a window may use any part of their range: shown whole, a small part is flat grey."""
    if int(dataset.get("PixelRepresentation", 0)) == 0 or _says_what_is_shown(dataset):
        return
    try:
        low, high = int(_used(dataset).min()), int(_used(dataset).max())
    except Exception:  # damaged pixels raise almost anything; whoever decodes them says so
        return
    if high - low < 2 ** (int(dataset.BitsStored) - 2):
        raise ImageError(
            f"The DICOM file stores signed values of {dataset.BitsStored} bits, of which {low} to {high} are used, and "
            "no window or table: which of them are black and white cannot be known; save it with WindowCenter and "
            "WindowWidth."
        )


def _shown_whole(dataset: Any, share: float = 1.0) -> tuple[int, int] | None:
    """As ``depth``."""
    if int(dataset.get("PixelRepresentation", 0)) == 1 or _says_what_is_shown(dataset):
        return None
    try:
        return end_of(_used(dataset), share), int(dataset.BitsStored)
    except Exception:  # damaged pixels raise almost anything; whoever decodes them says so
        return None


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as e:
        raise MissingPackageError(
            "got DICOM files; expected pydicom to be installed; install it: pip install 'cxr-ray[dicom]'."
        ) from e
    return pydicom


def _checked(data: bytes, stop_before_pixels: bool = False) -> Any:
    """A dataset whose pixels this module can show."""
    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels)
        frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel", 1))
        colours, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsStored)
        _ = int(dataset.Rows) * int(dataset.Columns)
        for name in _NUMBERS:
            if name in dataset and dataset[name].VM == 0:  # an empty tag says as much as none
                del dataset[name]
    except Exception as e:  # hostile bytes
        text = " ".join(str(e).split())[:200].rstrip(".")
        raise ImageError(f"Not an image, or a DICOM file with a damaged header: {text}.") from e
    if frames > 1:
        raise ImageError(f"The DICOM file has {frames} frames; save the one that is meant as a file of its own.")
    if samples != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"The DICOM file is {colours}, not MONOCHROME1 or MONOCHROME2; save it in grey.")
    if bits not in BITS:
        raise ImageError(f"The DICOM file stores {bits} bits a pixel, not 8 to 16; save it so.")
    if (high := int(dataset.get("HighBit", bits - 1))) != bits - 1:
        raise ImageError(f"The DICOM file stores {bits} bits that end at bit {high}, not {bits - 1}; save it so.")
    if colours == "MONOCHROME2" and dataset.get("PresentationLUTShape") == "INVERSE":
        raise ImageError(
            "The DICOM file is MONOCHROME2 and says INVERSE as its PresentationLUTShape, which the standard keeps for "
            "MONOCHROME1; correct the tag that is wrong."
        )
    return dataset


def _displayed(dataset: Any) -> tuple[NDArray[np.float64], float, float]:
    """Values after modality and VOI, and the ends of their range."""
    functions, stored = _pydicom().pixels, dataset.pixel_array
    tables = dataset.get("ModalityLUTSequence")
    values = _looked_up(stored, tables[0]) if tables else functions.apply_modality_lut(stored, dataset)
    if tables := dataset.get("VOILUTSequence"):
        return _looked_up(values, tables[0]), 0.0, 2.0 ** tables[0].LUTDescriptor[2] - 1
    low, high = _range(dataset)
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        values = functions.apply_windowing(values, dataset, index=0)
        if float(dataset.get("RescaleSlope") or 1) < 0:  # pydicom stretches windows from the end of low stored values
            values = low + high - values
    return values.astype(np.float64), low, high


def _looked_up(values: NDArray[Any], table: Any) -> NDArray[np.float64]:
    """Values through a table of the standard; pydicom's own wraps at 256 where a table's entries have 8 bits."""
    n, first, _ = table.LUTDescriptor
    n = n or 2**16
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, "<u2" if len(entries) >= 2 * n else np.uint8)
    return np.asarray(entries, np.float64)[np.clip(np.rint(values).astype(np.int64) - first, 0, n - 1)]


def _range(dataset: Any) -> tuple[float, float]:
    """The ends of the range of values after the modality's table or rescale, into which windows are stretched."""
    if tables := dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** tables[0].LUTDescriptor[2] - 1
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0)) == 1
    ends = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    both = "RescaleSlope" in dataset and "RescaleIntercept" in dataset  # or pydicom does not
    slope, intercept = (float(dataset.RescaleSlope), float(dataset.RescaleIntercept)) if both else (1.0, 0.0)
    return min(end * slope + intercept for end in ends), max(end * slope + intercept for end in ends)
