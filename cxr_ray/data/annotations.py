"""Files of expert annotations: boxes, polygons and masks of images, as radiological data sets publish them.

A new format is a function and an entry in FORMATS.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cxr_ray.data.cells import parquet_cells, separator_of
from cxr_ray.data.images import MAX_PIXELS
from cxr_ray.data.shapes import Box, Polygon, Runs, Shape, run_lengths
from cxr_ray.errors import DataError
from cxr_ray.registry import Registry
from cxr_ray.results import split_options


class Annotation(NamedTuple):
    """What a file says of an image.

    Attributes:
        size: width and height of the image that the shapes were drawn on; None: it does not say.
        shapes: (label, shape); none: the image is listed, and has nothing to show.
    """

    size: tuple[int, int] | None
    shapes: tuple[tuple[str, Shape], ...]


class Annotations(dict[str, Annotation]):
    """What a file says, by the image's name in it; ``left_out``: what it holds of no image, in words."""

    left_out: tuple[str, ...] = ()


def runs(plain: Mapping[str, Any]) -> Runs:
    """COCO's {size: [height, width], counts: a text or a list}.

    Raises:
        ValueError, TypeError, KeyError: anything else.
    """
    height, width = _size(plain["size"])
    counts = plain["counts"]
    lengths = run_lengths(counts) if isinstance(counts, str) else tuple(int(n) for n in counts)
    if min(lengths, default=0) < 0 or sum(lengths) != width * height:
        raise ValueError(f"got run lengths of {sum(lengths)} pixels; expected {width} x {height}")
    return Runs(width, height, lengths)


def _size(value: Any) -> tuple[int, int]:
    first, second = (int(n) for n in value)
    if not (first > 0 and second > 0 and first * second <= MAX_PIXELS):
        raise ValueError(f"got the size {first} x {second}; expected sides from 1 and at most {MAX_PIXELS:,} pixels")
    return first, second


def _polygon(points: Sequence[Sequence[float]]) -> Polygon:
    found = tuple((float(x), float(y)) for x, y in points)
    if len(found) < 3 or not np.isfinite(found).all():
        raise ValueError(f"got a polygon of {len(found)} points; expected three or more, of finite numbers")
    return Polygon(found)


def _box(left: float, top: float, width: float, height: float) -> Box:
    edges = (left, top, left + width, top + height)
    if not np.isfinite(edges).all() or width <= 0 or height <= 0:
        raise ValueError(
            f"got the box x {left:g}, y {top:g}, width {width:g}, height {height:g}; expected a size above 0"
        )
    return Box(edges)


# A column's names in small letters, spaces as underscores: RSNA, VinDr-CXR, NIH ChestX-ray14 and MS-CXR.
COLUMNS = {
    "image": ("patientid", "image_id", "image_index", "dicom_id", "image", "file_name", "filename", "path"),
    "x": ("x", "x_min", "xmin", "bbox_[x", "bbox"),
    "y": ("y", "y_min", "ymin"),
    "right": ("x_max", "xmax"),
    "bottom": ("y_max", "ymax"),
    "width": ("w", "width"),
    "height": ("h", "height", "h]"),
    "label": ("class_name", "finding_label", "category_name", "label", "finding"),
    "image_width": ("image_width",),
    "image_height": ("image_height",),
}


def table_boxes(data: bytes, name: str) -> Annotations:
    """A table of boxes, one a row; a row without numbers lists an image that has none.

    Args:
        data: of a .csv, .tsv or .parquet file.
        name: its name.

    Raises:
        ValueError: a column is missing, or a box is not one.
    """
    table = _table(data, name)
    known = {"_".join(str(column).strip().lower().split()): column for column in table.columns}
    column = {key: next((known[n] for n in names if n in known), None) for key, names in COLUMNS.items()}
    corners = column["right"] is not None and column["bottom"] is not None
    if corners:  # width and height, if any, are the image's
        column["image_width"] = column["image_width"] or column["width"]
        column["image_height"] = column["image_height"] or column["height"]
    needed = ["image", "x", "y", *(("right", "bottom") if corners else ("width", "height"))]
    if lacking := [key for key in needed if column[key] is None]:
        wanted = "; ".join(f"{key} as {' or '.join(COLUMNS[key])}" for key in lacking)
        raise ValueError(f"got the columns {', '.join(map(str, table.columns))}; expected also {wanted}")
    values = {key: table[name].tolist() for key, name in column.items() if name is not None}
    found: dict[str, list[tuple[str, Shape]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    nameless = 0
    for row, image in enumerate(values["image"]):
        key = "" if image is None else str(image).strip()
        if key in ("", "nan"):
            nameless += 1
            continue
        shapes = found.setdefault(key, [])
        numbers = [_number(values[name][row], row) for name in needed[1:]]
        size = [_number(values[n][row], row) for n in ("image_width", "image_height") if n in values]
        if len(size) == 2 and None not in size and sizes.setdefault(key, _size(size)) != _size(size):
            raise ValueError(f"got the sizes {sizes[key]} and {_size(size)} for {key} (row {row + 1}); expected one")
        known_numbers = [n for n in numbers if n is not None]
        if len(known_numbers) == 4:
            left, top, third, fourth = known_numbers
            box = _box(left, top, *((third - left, fourth - top) if corners else (third, fourth)))
            shapes.append((str(values["label"][row]).strip() if "label" in values else "", box))
        elif known_numbers:
            raise ValueError(f"got {len(known_numbers)} of a box's four numbers in row {row + 1}; expected all or none")
    annotations = Annotations({key: Annotation(sizes.get(key), tuple(shapes)) for key, shapes in found.items()})
    annotations.left_out = (f"{nameless} rows without an image",) if nameless else ()
    return annotations


def _table(data: bytes, name: str) -> pd.DataFrame:
    bare = split_options(name.lower())[0]
    if bare.endswith((".parquet", ".pq")):
        return parquet_cells(data)
    text = data.decode("utf-8-sig")
    return pd.read_csv(io.StringIO(text), sep=separator_of(text), dtype=str, keep_default_na=False, index_col=False)


def _number(value: Any, row: int) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip().lower() in ("", "nan"):
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"got {str(value)[:40]!r} in row {row + 1}; expected a number") from None


def chexlocalize(data: bytes, name: str) -> Annotations:
    """CheXlocalize's JSON: image to labels, each with polygons (beside img_size) or with run lengths.

    Raises:
        ValueError: the file is not that.
    """
    found = Annotations()
    for image, plain in _mapping(_json(data)).items():
        labels = dict(_mapping(plain))
        size = labels.pop("img_size", None)
        frame = None if size is None else _size(size)[::-1]  # height comes first
        shapes: list[tuple[str, Shape]] = []
        for label, given in labels.items():
            if isinstance(given, Mapping):
                mask = runs(given)
                frame = frame or (mask.width, mask.height)
                shapes += [(label, mask)] if len(mask.counts) > 1 else []
            else:
                shapes += [(label, _polygon(points)) for points in given]
        found[image] = Annotation(frame, tuple(shapes))
    return found


def coco(data: bytes, name: str) -> Annotations:
    """COCO's JSON: images, annotations (segmentation as polygons or run lengths, else bbox) and categories.

    Raises:
        ValueError: the file is not that.
    """
    plain = _mapping(_json(data))
    labels = {c["id"]: str(c["name"]) for c in plain.get("categories", [])}
    shapes: dict[Any, list[tuple[str, Shape]]] = {}
    for one in plain["annotations"]:
        of_image = shapes.setdefault(one["image_id"], [])
        label, outline = labels.get(one.get("category_id"), ""), one.get("segmentation")
        if isinstance(outline, Mapping):
            of_image.append((label, runs(outline)))
        elif outline:
            of_image += [(label, _polygon([*zip(flat[::2], flat[1::2], strict=True)])) for flat in outline]
        else:
            left, top, width, height = (float(n) for n in one["bbox"])
            of_image.append((label, _box(left, top, width, height)))
    found = Annotations()
    names: dict[Any, str] = {}
    for image in plain["images"]:
        size = _size((image["width"], image["height"])) if "width" in image and "height" in image else None
        number, name = image["id"], str(image["file_name"])
        annotation = Annotation(size, tuple(shapes.get(number, [])))
        if names.setdefault(number, name) != name:
            raise ValueError(f"got the image id {number} for {names[number]} and {name}; expected one image for each")
        if found.setdefault(name, annotation) != annotation:
            raise ValueError(f"got two images of the file_name {name}, which differ; expected each file once")
    lost = sum(len(of_image) for image, of_image in shapes.items() if image not in names)
    found.left_out = (f"{lost} annotations whose image_id is no image's",) if lost else ()
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("got JSON that is nested too deeply; expected lists of polygons") from None


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"got a {type(value).__name__}; expected an object of names")
    return value


@dataclass(frozen=True)
class Format:
    """One format of annotations.

    Attributes:
        read: bytes and name of a file to what it says. Raises ValueError, TypeError or KeyError where it is another.
        caption: what it is, in a sentence.
    """

    read: Callable[[bytes, str], Annotations]
    caption: str


FORMATS: Registry[Format] = Registry(
    "format of annotations",
    {
        "boxes": Format(
            table_boxes,
            "A table (.csv, .tsv, .parquet) of boxes: RSNA, VinDr-CXR, NIH ChestX-ray14 (BBox_List), MS-CXR, or "
            "columns image, x, y, width, height and label.",
        ),
        "chexlocalize": Format(chexlocalize, "CheXlocalize's JSON of polygons (annotations) or masks (segmentations)."),
        "coco": Format(coco, "COCO's JSON: polygons, run lengths or boxes."),
    },
)


def read(data: bytes, name: str, kind: str = "auto") -> Annotations:
    """What a file says of each image, by the image's name in it.

    Args:
        data: its bytes.
        name: its path.
        kind: key of FORMATS; auto: boxes but for .json, which is COCO's where it has images and annotations.

    Raises:
        DataError: the file is not in the format.
    """
    try:
        if kind == "auto":
            kind = _kind_of(data) if split_options(name.lower())[0].endswith(".json") else "boxes"
        return FORMATS[kind].read(data, name)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:  # whatever damaged files raise
        reason = f"no {e}" if isinstance(e, KeyError) else " ".join(str(e).split())
        raise DataError(
            f"truth.path: got {name}, which is not in the format {kind} ({reason[:300]}); expected "
            f"{FORMATS[kind].caption if kind in FORMATS else 'JSON.'} Correct the file, or set truth.format."
        ) from None


def _kind_of(data: bytes) -> str:
    plain = _json(data)
    return "coco" if isinstance(plain, Mapping) and {"images", "annotations"} <= set(plain) else "chexlocalize"
