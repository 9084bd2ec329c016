"""Test images as models see them: their size and preprocessing, and the fill that deletes.

Shapes: S side of an image in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.config import IMAGENET_MEAN
from cxr_ray.data.loading import load_pixels
from cxr_ray.report.browser import pictures
from cxr_ray.report.browser.masks import Mask
from cxr_ray.report.browser.pictures import Grey
from cxr_ray.report.galleries import Images
from cxr_ray.report.rundata import RunData


@dataclass(frozen=True)
class View:
    """How images are decoded and filled.

    Attributes:
        size: S.
        fit, preprocess: as the sweep and the model say.
        fill: the primary one.
        seed: the sweep's.
        grey_level: the mean of the models' normalisation.
    """

    size: int
    fit: str
    preprocess: str
    fill: str
    seed: int
    grey_level: float

    def read(self, images: Images, ids: Sequence[str]) -> dict[str, Grey]:
        """Grey pixels [S, S] of those that can be read."""
        source = images.source[0]
        if source is None:
            return {}
        rows = pd.DataFrame({"image_id": list(ids), "path": [images.paths[i] for i in ids]})
        loaded = load_pixels(source, rows, self.size, self.fit, self.preprocess)  # type: ignore[arg-type]
        kept = rows["image_id"][loaded.keep]
        return {i: one.mean(0).astype(np.uint8) for i, one in zip(kept, loaded.images_NCHW, strict=True)}

    def card(self, image_id: str, grey: Grey | None) -> dict[str, Any] | None:
        """The X-ray, and what the fill puts in its place where that does not depend on the mask."""
        if grey is None:
            return None
        made: dict[str, Any] = {"photo": pictures.photo(pictures.thumbnail(grey))}
        if pictures.depends_on_mask(self.fill):
            return made
        if self.fill == "noise" and len(grey) <= pictures.THUMBNAIL:  # fifty kilobytes an image, as a picture
            return {**made, "fill": {"noise": pictures.noise_key(image_id, self.seed), "side": len(grey)}}
        fill = pictures.filled(grey, self.fill, image_id, self.seed, self.grey_level)
        return {**made, "fill": fill if isinstance(fill, int) else pictures.photo(pictures.thumbnail(fill))}

    def deleted(self, image_id: str, grey: Grey | None, mask: Mask) -> str | None:
        """The image under a mask, where the fill depends on it."""
        if grey is None or not pictures.depends_on_mask(self.fill):
            return None
        made = pictures.deleted(grey, self.fill, image_id, self.seed, mask)
        return pictures.photo(pictures.thumbnail(made))


def view_of(data: RunData, trial_id: str) -> View:
    """How a model sees its images: by its own entry, and by the sweep where that says nothing."""
    rows = data.trials[data.trials["trial_id"] == trial_id]
    config: Mapping[str, Any] = json.loads(rows["config"].iloc[0] or "{}") if len(rows) else {}
    own = config.get("model") or config
    settings = data.sweep["data"]
    return View(
        own.get("size") or settings["size"],
        settings["fit"],
        own.get("preprocess") or "none",
        data.first.fill,
        data.sweep["seed"],
        float(np.mean(own.get("mean") or IMAGENET_MEAN)),
    )
