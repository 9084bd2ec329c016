"""Donor swaps: a region's pixels replaced by those of another patient's image, NORMAL or PNEUMONIA, the donor image.

The same recipient and the same shape under donors of both classes: seams, area and place cancel in the difference, and
what stays is the class information that the model reads from the region.

Shapes: B images (recipients and their donors), J swaps, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.config import Sweep
from cxr_ray.data.sources import known_masks
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.regions import REGIONS, of_images
from cxr_ray.schemas import CLASSES, DONOR_SWAPS, WHOLE

ENOUGH_RECIPIENTS = 40  # more donors are worth more than more recipients only beyond these


class Swap(NamedTuple):
    """One donor image of one recipient.

    Attributes:
        recipient, donor: places in the batch.
        label: of the donor.
        draw: pairs a donor of each class.
    """

    recipient: int
    donor: int
    label: int
    draw: int


def assign_donors(test: pd.DataFrame, val: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Donor images of each recipient: as many of each class, each used once.

    Recipients are NORMAL test images, donors validation images, one a patient. No patient and no content of the test
    split is among the donors. The choice depends on the seed and the images alone, so that it is the same for every
    model of a run. Sharing donors among recipients would make their contrasts depend on each other.

    Args:
        test, val: images with image_id, path, label, patient_id and content_hash.
        most: donors of each class.
        seed: of the choice.

    Returns:
        One row a donor: image_id (of the recipient), draw, donor_label, donor_id, donor_path, donor_patient. Draws of
        one recipient are numbered from 0, each a donor of either class.
    """
    recipients = _one_a_patient(test[test["label"] == 0], seed)
    others = ~val["patient_id"].isin(test["patient_id"]) & ~val["content_hash"].isin(test["content_hash"])
    donors = _one_a_patient(val[others], seed)
    of_class = [donors[donors["label"] == label].iloc[:most] for label in range(len(CLASSES))]
    n_recipients, n_draws = blocks(len(recipients), min(map(len, of_class)))
    n_donors = n_recipients * n_draws
    made = [
        pd.DataFrame(
            {
                "image_id": recipients["image_id"].to_numpy()[np.arange(n_donors) // max(1, n_draws)],
                "draw": np.arange(n_donors) % max(1, n_draws),
                "donor_label": label,
                "donor_id": part["image_id"].to_numpy()[:n_donors],
                "donor_path": part["path"].to_numpy()[:n_donors],
                "donor_patient": part["patient_id"].to_numpy()[:n_donors],
            }
        )
        for label, part in enumerate(of_class)
    ]
    # block by block, in each a donor of either class for each draw
    return pd.concat(made).sort_index(kind="stable").reset_index(drop=True)


def _one_a_patient(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The images in random order, the first of each patient."""
    keys = [randomness.key(seed, i, "donor_swaps") for i in images["image_id"]]
    return images.iloc[np.argsort(keys, kind="stable")].drop_duplicates("patient_id")


def blocks(n_recipients: int, n_donors: int) -> tuple[int, int]:
    """Recipients that are used, and donors of each class that each of them gets.

    The most donors are used that equal blocks allow, then the most recipients: power comes from distinct donors.

    >>> blocks(200, 120), blocks(30, 120), blocks(100, 119), blocks(0, 120)
    ((120, 1), (30, 4), (59, 2), (0, 0))
    """
    most = min(n_recipients, n_donors)
    if not most:
        return 0, 0
    used = max(range(min(most, ENOUGH_RECIPIENTS), most + 1), key=lambda n: (n * (n_donors // n), n))
    return used, n_donors // used


def swapped_regions(sweep: Sweep) -> list[str]:
    """The regions whose pixels are swapped, in the order of the registry; without the whole image."""
    if sweep.regions is None or sweep.regions.donors is None:
        return []
    known = known_masks(sweep)
    return [name for name, r in REGIONS.items() if r.donor_swap and (r.needs is None or r.needs in known)]


def donor_swap_rows(batch: Batch) -> pa.Table | None:
    """Rows of ``donor_swaps``; None where no draw has a readable donor image of both classes."""
    pairs = _pairs(batch)
    masks = of_images(swapped_regions(batch.sweep), batch.masks, len(batch.ids), batch.size, batch.device)
    swaps: list[Swap] = []
    regions: list[str] = []
    shapes: list[Tensor] = []
    for pair in pairs:
        for name, mask_BSS in masks.items():
            shape = mask_BSS[pair[0].recipient]
            if REGIONS[name].donor_swap == "union":
                shape = shape | mask_BSS[[s.donor for s in pair]].any(0)
            if shape.any():
                swaps += pair
                regions += [name] * len(pair)
                shapes += [shape] * len(pair)
    logits = _swapped(batch, swaps, shapes)
    share = [float(s.float().mean()) for s in shapes]
    whole = [s for pair in pairs for s in pair]
    swaps, regions = swaps + whole, regions + [WHOLE] * len(whole)
    logits, share = [*logits, *batch.logit[[s.donor for s in whole]]], share + [1.0] * len(whole)
    if not swaps:
        return None
    recipient, donor, label, draw = (np.array(column) for column in zip(*swaps, strict=True))
    facts = batch.shard.swaps
    return DONOR_SWAPS.build(
        {
            "image_id": [batch.ids[i] for i in recipient],
            "outcome": batch.outcome[recipient],
            "region": regions,
            "donor_label": label,
            "draw": draw,
            "donor_id": [batch.ids[i] for i in donor],
            "donor_patient": [(facts[i] or {})["donor_patient"] for i in donor],
            "share_of_area": share,
            "logit_pneumonia": logits,
            "logit_full": batch.logit[recipient],
        }
    )


def _pairs(batch: Batch) -> list[list[Swap]]:
    """The draws that have a donor image of each class, NORMAL first."""
    place = {image_id: i for i, image_id in enumerate(batch.ids)}
    draws: dict[tuple[str, int], list[Swap]] = {}
    for donor, fact in enumerate(batch.shard.swaps):
        if fact is not None and fact["image_id"] in place:
            swap = Swap(place[fact["image_id"]], donor, fact["donor_label"], fact["draw"])
            draws.setdefault((fact["image_id"], fact["draw"]), []).append(swap)
    return [sorted(draw, key=lambda s: s.label) for draw in draws.values() if len(draw) == len(CLASSES)]


def _swapped(batch: Batch, swaps: Sequence[Swap], shapes: Sequence[Tensor]) -> list[float]:
    """Log-odds of PNEUMONIA of recipients whose pixels in a shape are the donor's."""
    network, scores = batch.network, []
    for start in range(0, len(swaps), network.batch_size):
        part = slice(start, start + network.batch_size)
        inside = torch.stack(list(shapes[part]))[:, None]
        recipient, donor = ([s[i] for s in swaps[part]] for i in (0, 1))
        scores.append(network.forward(torch.where(inside, batch.images[donor], batch.images[recipient])))
    return torch.cat(scores).double().tolist() if scores else []
