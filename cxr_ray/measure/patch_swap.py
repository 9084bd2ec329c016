"""The patch swap: what another patient's NORMAL image, the donor image, shows in the same place.

Shapes: B images, S side of an image in pixels.
"""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from cxr_ray import randomness


def donor_images(test: pd.DataFrame, val: pd.DataFrame, seed: int) -> dict[str, str]:
    """image_id to the path of the NORMAL image of another patient that it swaps patches with, where there is one.

    They come from validation, which is NORMAL as the model learned it, markers and frames included; from test, where
    validation has none.

    Args:
        test, val: images with image_id, path, label and patient_id.
        seed: of the choice.
    """
    normal = next((n for rows in (val, test) if len(n := rows[rows["label"] == 0])), test.iloc[:0])
    normal = normal.sort_values("image_id")
    paths, own_of = normal["path"].tolist(), normal.reset_index(drop=True).groupby("patient_id").indices
    chosen = {}
    for image_id, patient in zip(test["image_id"], test["patient_id"], strict=True):
        own = own_of.get(patient, ())
        if others := len(paths) - len(own):
            at = randomness.key(seed, image_id, "exchange") % others  # among those of other patients, in order
            for place in own:
                at += place <= at
            chosen[image_id] = paths[at]
    return chosen


def match_exposure(donors_BCSS: Tensor, images_BCSS: Tensor) -> Tensor:
    """Donor images scaled to the mean of the images that they are swapped into, at most 1; what is black stays black.

    Else a patch of another exposure would stand out by its brightness.
    """
    own, mean = (x.mean((1, 2, 3), keepdim=True) for x in (images_BCSS, donors_BCSS))
    return (donors_BCSS * own / mean.clamp(min=1e-6)).clamp(max=1)
