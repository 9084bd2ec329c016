"""Pictures of galleries: test images by a seeded hash, each with its maps in one picture.

A picture is named after its bucket, the spatial concentration of the primary explainer's map and its place in the
bucket: ``tp_compact_01.png``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib import colormaps, get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cxr_ray import results
from cxr_ray.config import Data
from cxr_ray.data import images
from cxr_ray.data.entries import Source
from cxr_ray.data.sources import changes_of, source_of
from cxr_ray.errors import DataError, ImageError

GALLERY = 12  # images of a bucket
BUCKETS = ("TP", "FP", "random")
SIDE, HEAD, FOOT, GUTTER = 224, 24, 50, 8  # pixels of a panel, its title, its text, and between panels
PER_ROW = 4  # panels


@dataclass(frozen=True)
class Panel:
    """One map over its image: a title, two lines of text below, and the map (None: none was made)."""

    title: str
    lines: Sequence[str]
    values: NDArray[np.float32] | None = None
    signed: bool = False


class Images:
    """Pixels of a run's test images as its models see them, and why some cannot be shown."""

    def __init__(self, run: results.Run, data: str | None):
        self.run, self.data = run, data  # data: as --data names it; None: where the sweep says
        self.pixels: dict[str, NDArray[np.uint8] | None] = {}  # read so far; None: could not be read

    @cached_property
    def source(self) -> tuple[Source | None, str, str]:
        """Where images are read, what was tried in words, and why it failed."""
        changes = {} if self.data is None else changes_of(self.data)
        changed = {key.removeprefix("data."): value for key, value in changes.items()}
        settings = Data.model_validate({**self.run.sweep["data"], **changed})
        try:
            source = source_of(settings, self.run.sweep["seed"])
        except DataError as e:
            return None, f"{settings.source}:{settings.path}", str(e)
        return source, source.where, ""

    @cached_property
    def table(self) -> pd.DataFrame:
        """path and patient_id by image_id, test split."""
        columns = ["image_id", "path", "patient_id"]
        return self.run.pandas("images", columns, pc.field("split") == "test").set_index("image_id")

    @cached_property
    def paths(self) -> dict[str, str]:
        """image_id to path."""
        return dict(zip(self.table.index, self.table["path"], strict=True))

    @cached_property
    def patients(self) -> dict[str, str]:
        """image_id to patient."""
        return dict(zip(self.table.index, self.table["patient_id"], strict=True))

    def read(self, image_id: str) -> NDArray[np.uint8] | None:
        """Grey pixels, SIDE wide; None where the image cannot be read."""
        if image_id not in self.pixels:
            settings = self.run.sweep["data"]
            try:
                source = self.source[0]
                raw = source.read(self.paths[image_id]) if source is not None else b""
                size, bits = min(settings["size"], SIDE), settings.get("bits") or 16
                grey = images.decode(raw, size, settings["fit"], bits).mean(0).astype("uint8")
                self.pixels[image_id] = np.asarray(
                    Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                )
            except (OSError, ImageError):
                self.pixels[image_id] = None
        return self.pixels[image_id]

    @property
    def missing(self) -> str | None:
        """In one sentence, which of the images asked for could not be read, and what to do."""
        lost = sum(p is None for p in self.pixels.values())
        if not lost:
            return None
        _, where, reason = self.source
        tried = f"read from {where}" + (f" ({reason})" if reason else "")
        if lost < len(self.pixels):
            return f"{lost} of the gallery's {len(self.pixels)} images could not be {tried}."
        return (
            f"There is no gallery: none of its {lost} images could be {tried}. If they lie elsewhere now: "
            f"python -m cxr_ray.report {self.run.path} --data PATH."
        )


def chosen(seed: int, bucket: str, members: Iterable[str]) -> list[str]:
    """At most GALLERY images, by a hash of the seed and the image."""
    return sorted(members, key=lambda i: hashlib.sha256(f"{seed}:{bucket}:{i}".encode()).digest())[:GALLERY]


def values_of(row: Any) -> NDArray[np.float32] | None:
    """The map of a row of ``saliency`` [height, width]; None where it was not kept or is not finite."""
    if row is None or row["map"] is None:
        return None
    values = np.asarray(row["map"], np.float32).reshape(row["map_height"], row["map_width"])
    return values if np.isfinite(values).all() else None


def is_signed(maps: pd.DataFrame, explainer: str) -> bool:
    """Whether any map of the explainer holds negative values."""
    mine = maps.loc[maps["explainer"] == explainer, "map"].dropna()
    return any(np.nanmin(np.asarray(m, float), initial=0.0) < 0 for m in mine)


def painted(xray: NDArray[np.uint8], panels: Sequence[Panel]) -> list[Image.Image]:
    """Each panel's map over the X-ray, SIDE wide."""
    grey = np.repeat(xray[..., None], 3, axis=2).astype(np.float32) / 255
    pictures = []
    for panel in panels:
        picture = grey
        if panel.values is not None:
            rgba = overlay(panel.values, panel.signed)
            picture = grey * (1 - rgba[..., 3:]) + rgba[..., :3] * rgba[..., 3:]
        pictures.append(Image.fromarray((255 * picture).round().astype(np.uint8)))
    return pictures


def strip(
    pictures: Sequence[Image.Image], panels: Sequence[Panel], foot: int = FOOT, per_row: int = PER_ROW
) -> Image.Image:
    """The painted panels, so many in a row, white around them; ``foot``: room for the text below, 0 for none."""
    rows = -(-len(panels) // per_row)
    columns = min(per_row, len(panels))
    width, height = columns * (SIDE + GUTTER) - GUTTER, rows * (HEAD + SIDE + foot)
    sheet = Image.new("RGB", (width, height), "white")
    draw, title, text = ImageDraw.Draw(sheet), _font(14), _font(12)
    for i, (picture, panel) in enumerate(zip(pictures, panels, strict=True)):
        x, y = (i % per_row) * (SIDE + GUTTER), (i // per_row) * (HEAD + SIDE + foot)
        draw.text((x, y + 3), _fitted(panel.title, title), "black", title)
        sheet.paste(picture, (x, y + HEAD))
        for j, line in enumerate(panel.lines if foot else ()):
            draw.text((x, y + HEAD + SIDE + 4 + 20 * j), _fitted(line, text), "black", text)
    return sheet


@lru_cache(maxsize=2)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    """The font of matplotlib's figures: Pillow's own has no minus sign."""
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), pixels)


def _fitted(line: str, font: Any) -> str:
    """The line, cut where it would run into the next panel; what cannot be drawn, such as a line's end, as "?"."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    while line and font.getlength(line) > SIDE:
        line = line[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return line


def overlay(values: NDArray[np.float32], signed: bool) -> NDArray[np.float32]:
    """A map, bilinear to SIDE, as RGBA: the further from zero, the more opaque (full: the 99th percentile of |map|)."""
    full = np.asarray(Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    scaled = np.clip(full / (np.quantile(np.abs(full), 0.99) or 1.0), -1, 1)
    rgba = colormaps["RdBu_r"]((scaled + 1) / 2) if signed else colormaps["plasma"](np.abs(scaled))
    rgba[..., 3] = 0.75 * np.abs(scaled)
    return rgba.astype(np.float32)


def legend(signed: Mapping[str, bool]) -> Image.Image:
    """The colours of ``overlay`` on mid grey: one bar for signed maps, one for the others."""
    kinds = [(kind, [e for e, s in signed.items() if s is kind]) for kind in (False, True)]
    kinds = [(kind, names) for kind, names in kinds if names]
    sheet = Image.new("RGB", (480 * len(kinds), 62), "white")
    draw, font = ImageDraw.Draw(sheet), _font(12)
    for i, (kind, names) in enumerate(kinds):
        x = 480 * i
        scale = np.linspace(-1 if kind else 0, 1, 300)
        rgb = colormaps["RdBu_r"]((scale + 1) / 2) if kind else colormaps["plasma"](scale)
        alpha = 0.75 * np.abs(scale)[:, None]
        bar = np.repeat((0.5 * (1 - alpha) + rgb[:, :3] * alpha)[None], 16, axis=0)
        sheet.paste(Image.fromarray((255 * bar).round().astype(np.uint8)), (x, 22))
        draw.text((x, 2), _short(names), "black", font)
        signed_ends = [(x, "against the target"), (x + 146, "0"), (x + 230, "for the target")]
        ends = signed_ends if kind else [(x, "0"), (x + 268, "most")]
        for where, label in ends:
            draw.text((where, 42), label, "black", font)
    return sheet


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def encode(picture: Image.Image, kind: str) -> bytes:
    """PNG for files, JPEG for the page."""
    sink = io.BytesIO()
    if kind == "PNG":
        picture.save(sink, "PNG", compress_level=1)  # a sixth larger, in a third of the time
    else:
        picture.save(sink, "JPEG", quality=78)
    return sink.getvalue()
