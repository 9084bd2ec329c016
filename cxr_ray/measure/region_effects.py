"""What it does to a score to remove a part of the image, or the same shape elsewhere, or to change the image otherwise.

Shapes: B images, D draws, R rows (an image under one change each), S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit
from torch import Tensor

from cxr_ray.config import Regions
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.patch_swap import match_exposure
from cxr_ray.measure.regions import REGIONS, mask_of_version, of_images
from cxr_ray.measure.scoring import Canvas, region_scores
from cxr_ray.measure.shards import take
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
    share_of_area: float = 1.0


def region_rows(batch: Batch) -> pa.Table | None:
    """Rows of ``regions``; None where the images have none of what is asked for."""
    wanted = batch.sweep.regions
    assert wanted is not None  # else nobody asks
    changes, logits = [], []
    for made, scores in (_removed(batch, wanted), _changed_whole(batch, wanted)):
        changes += made
        logits.append(scores.double().cpu().numpy())
    return _rows(batch, changes, np.concatenate(logits)) if changes else None


def _removed(batch: Batch, wanted: Regions) -> tuple[list[Change], Tensor]:
    """Regions and their matched controls under every fill, and the patch swap where there is a donor image."""
    canvas, fills = _canvas(batch)
    changes: list[Change] = []
    masks, images = [], []
    for name, mask_BSS in of_images(wanted.names, batch.masks, len(batch.ids), batch.size, batch.device).items():
        there = mask_BSS.flatten(1).any(1).nonzero()[:, 0]
        if not len(there):
            continue
        groups = _with_controls(batch, name, mask_BSS, there, wanted.draws)
        share = groups.flatten(2).float().mean(2).tolist()
        masks.append(groups.flatten(0, 1))
        images.append(there.repeat_interleave(1 + wanted.draws))
        changes += [
            Change(i, name, fill, "matched" if d else "none", max(d - 1, 0), share[n][d])
            for n, i in enumerate(there.tolist())
            for d in range(1 + wanted.draws)
            for fill in fills
        ]
    if not masks:
        return [], torch.empty(0)
    network = batch.network
    scores = region_scores(network.forward, canvas, torch.cat(masks).flatten(1), torch.cat(images), network.batch_size)
    return changes, scores.flatten()


def _canvas(batch: Batch) -> tuple[Canvas, list[str]]:
    """The batch's canvas and its fills, with the donor images as the last fill where there are any."""
    fills, donors = [str(f) for f in batch.sweep.perturb.fills], batch.shard.donor_images
    if not donors:
        return batch.canvas, fills
    pixels = np.stack([donors.get(i, own) for i, own in zip(batch.ids, batch.shard.pixels, strict=True)])
    donor_pixels = torch.from_numpy(pixels).to(batch.device).float() / 255
    matched = match_exposure(donor_pixels, batch.pixels)
    return batch.canvas.with_fill(batch.network.model.normalize(matched)), [*fills, PATCH_SWAP]


def _with_controls(batch: Batch, name: str, mask_BSS: Tensor, there: Tensor, draws: int) -> Tensor:
    """The region of the images that have it, and its matched controls, bool [N, 1 + D, S, S]."""
    purpose, seed = f"region {name}", batch.sweep.seed
    keys = [[key(seed, batch.ids[i], purpose, d) for d in range(draws)] for i in there.tolist()]
    own = mask_BSS[there]
    return torch.cat([own[:, None], REGIONS[name].matched(own, torch.tensor(keys, device=batch.device))], 1)


def _changed_whole(batch: Batch, wanted: Regions) -> tuple[list[Change], Tensor]:
    """Edits of every image, and images that were rendered again."""
    changes: list[Change] = []
    pixels = []
    for made, changed in (*_edited(batch, wanted), *_rendered_again(batch)):
        changes += made
        pixels.append(changed)
    if not pixels:
        return [], torch.empty(0)
    return changes, batch.network.scores(batch.network.model.normalize(torch.cat(pixels)))


def _edited(batch: Batch, wanted: Regions) -> Iterator[tuple[list[Change], Tensor]]:
    for name in wanted.edits:
        edit = EDITS[name]
        share = edit.share(batch.size)
        made = [Change(i, name, "edit", share_of_area=share) for i in range(len(batch.ids))]
        yield made, edit.edit(batch.raw)


def _rendered_again(batch: Batch) -> Iterator[tuple[list[Change], Tensor]]:
    for version, images in batch.shard.counterfactuals.items():
        area = batch.masks[mask_of_version(version)].flatten(1).float().mean(1)
        there = area.nonzero()[:, 0]
        made = [Change(i, version, "counterfactual", share_of_area=float(area[i])) for i in there.tolist()]
        yield made, torch.from_numpy(np.array(images)).to(batch.device)[there].float() / 255


def _rows(batch: Batch, changes: list[Change], logit_R: np.ndarray) -> pa.Table:
    """A row for each pair of a changed image; without patch swaps where the image has no donor image."""
    pairs, donors = batch.pairs, batch.shard.donor_images
    image, region, fill, control, draw, share = zip(*changes, strict=True)
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
        "share_of_area": np.array(share)[row],
        "prob_target": expit(logit),
        "logit_target": logit,
        "prob_full_image": expit(untouched),
        "logit_full_image": untouched,
    }
    return TABLE.build(columns)
