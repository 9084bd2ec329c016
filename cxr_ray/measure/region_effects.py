"""What it does to a score to remove a part of the image, or the same shape elsewhere, or to change the image otherwise.

Shapes: B images, D draws, R rows (an image under one change each), S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from cxr_ray.config import Regions
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.masking import Canvas
from cxr_ray.measure.patch_swap import match_exposure
from cxr_ray.measure.regions import REGIONS, mask_of_version, of_images
from cxr_ray.measure.scoring import region_scores
from cxr_ray.measure.shards import take
from cxr_ray.measure.transfer import to_device, to_host
from cxr_ray.randomness import key
from cxr_ray.schemas import PATCH_SWAP
from cxr_ray.schemas import REGIONS as TABLE


class Change(NamedTuple):
    """What was done to an image: a row for each of its targets."""

    image: int
    region: str
    fill: str
    control: str = "none"
    draw: int = 0


def region_rows(batch: Batch) -> pa.Table | None:
    """Rows of ``regions``; None where the images have none of what is asked for."""
    rows = begin_regions(batch)
    return None if rows is None else rows()


def begin_regions(batch: Batch) -> Callable[[], pa.Table] | None:
    """Ask the device for all that is scored, as ``region_rows``; the rows are made when they are called for."""
    wanted = batch.sweep.regions
    assert wanted is not None  # else nobody asks
    parts = [part for part in (_removed(batch, wanted), _changed_whole(batch, wanted)) if part[0]]
    if not parts:
        return None
    changes = [change for made, _, _ in parts for change in made]
    scores = batch.results.put(torch.cat([scores for _, scores, _ in parts]))
    shares = batch.results.put(torch.cat([shares for _, _, shares in parts]))
    return lambda: _rows(batch, changes, scores.array().astype(np.float64), shares.array())


Changed = tuple[list[Change], Tensor, Tensor]  # with log-odds of PNEUMONIA and shares of area, [R] each


def _removed(batch: Batch, wanted: Regions) -> Changed:
    """Regions and their matched controls under every fill, and the patch swap where there is a donor image."""
    canvas, fills = _canvas(batch)
    changes: list[Change] = []
    masks, images = [], []
    regions = of_images(wanted.names, batch.masks, len(batch.ids), batch.size, batch.device)
    there_RB = to_host(torch.stack([mask.flatten(1).any(1) for mask in regions.values()])) if regions else ()
    for (name, mask_BSS), there_B in zip(regions.items(), there_RB, strict=True):
        there = np.flatnonzero(there_B)
        if not len(there):
            continue
        masks.append(_with_controls(batch, name, mask_BSS, there, wanted.draws).flatten(0, 1))
        images.append(there.repeat(1 + wanted.draws))
        changes += [
            Change(i, name, fill, "matched" if d else "none", max(d - 1, 0))
            for i in there.tolist()
            for d in range(1 + wanted.draws)
            for fill in fills
        ]
    if not masks:
        return [], torch.empty(0), torch.empty(0)
    network, removed = batch.network, torch.cat(masks).flatten(1)
    images_N = to_device(np.concatenate(images), batch.device)
    scores = region_scores(network.forward, canvas, removed, images_N, network.batch_size)
    return changes, scores.flatten(), removed.float().mean(1).repeat_interleave(len(fills))


def _canvas(batch: Batch) -> tuple[Canvas, list[str]]:
    """The batch's canvas and its fills, with the donor images as the last fill where there are any."""
    fills, donors = [str(f) for f in batch.sweep.perturb.fills], batch.shard.donor_images
    if not donors:
        return batch.canvas, fills
    pixels = np.stack([donors.get(i, own) for i, own in zip(batch.ids, batch.shard.pixels, strict=True)])
    donor_pixels = to_device(pixels, batch.device).float() / 255
    matched = match_exposure(donor_pixels, batch.pixels)
    return batch.canvas.with_fill(batch.on_canvas(matched)), [*fills, PATCH_SWAP]


def _with_controls(batch: Batch, name: str, mask_BSS: Tensor, there: NDArray[np.integer], draws: int) -> Tensor:
    """The region of the images that have it, and its matched controls, bool [N, 1 + D, S, S]."""
    purpose, seed = f"region {name}", batch.sweep.seed
    keys = [[key(seed, batch.ids[i], purpose, d) for d in range(draws)] for i in there.tolist()]
    own = mask_BSS[to_device(there, batch.device)]
    return torch.cat([own[:, None], REGIONS[name].matched(own, to_device(np.array(keys, np.int64), batch.device))], 1)


def _changed_whole(batch: Batch, wanted: Regions) -> Changed:
    """Edits of every image, and images that were rendered again."""
    changes: list[Change] = []
    pixels, shares = [], []
    for made, changed, share in (*_edited(batch, wanted), *_rendered_again(batch)):
        changes += made
        pixels.append(changed)
        shares.append(share)
    if not pixels:
        return [], torch.empty(0), torch.empty(0)
    return changes, batch.network.scores(batch.network.model.normalize(torch.cat(pixels))), torch.cat(shares)


def _edited(batch: Batch, wanted: Regions) -> Iterator[Changed]:
    for name in wanted.edits:
        edit = EDITS[name]
        made = [Change(i, name, "edit") for i in range(len(batch.ids))]
        yield made, edit.edit(batch.raw), torch.full((len(made),), edit.share(batch.size), device=batch.device)


def _rendered_again(batch: Batch) -> Iterator[Changed]:
    for version, images in batch.shard.counterfactuals.items():
        area = batch.masks[mask_of_version(version)].flatten(1).float().mean(1)
        there = np.flatnonzero(to_host(area))
        made = [Change(i, version, "counterfactual") for i in there.tolist()]
        at = to_device(there, batch.device)
        yield made, to_device(images, batch.device)[at].float() / 255, area[at]


def _rows(batch: Batch, changes: list[Change], logit_R: np.ndarray, share_R: np.ndarray) -> pa.Table:
    """A row for each pair of a changed image; without patch swaps where the image has no donor image."""
    pairs, donors = batch.pairs, batch.shard.donor_images
    image, region, fill, control, draw = zip(*changes, strict=True)
    no_donor = np.array([c.fill == PATCH_SWAP and batch.ids[c.image] not in donors for c in changes])
    pair, row = np.nonzero((pairs.image[:, None] == np.array(image)) & ~no_donor)
    logit = logit_R[row] * pairs.sign[pair]
    untouched = batch.logit[pairs.image[pair]] * pairs.sign[pair]
    columns = {
        "image_id": take(pairs.ids, pair),
        "target": pairs.target[pair],
        "region": take(region, row),
        "fill": take(fill, row),
        "control": take(control, row),
        "draw": np.array(draw)[row],
        "share_of_area": share_R[row],
        "prob_target": expit(logit),
        "logit_target": logit,
        "prob_full_image": expit(untouched),
        "logit_full_image": untouched,
    }
    return TABLE.build(columns)
