"""Scores of masked images: images and fills laid out on the device, and one stream of batches over all masks.

Shapes: B images, N rankings or masks, F fills, O orders, L levels, U units (pixels or cells), S side of an image, J
jobs (one masked image each).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from cxr_ray.measure.fills import MaskedFill
from cxr_ray.measure.rankings import cell_of


@dataclass(frozen=True)
class Canvas:
    """Images and fills in model space, from which a batch of masked images takes two gathers and one blend.

    Attributes:
        images: [B, 3, S * S].
        fills: [B * F, 3, S * S].
        size: S.
        n_fills: F.
        masked: those of the fills that depend on the mask, by their place among them.
    """

    images: Tensor
    fills: Tensor
    size: int
    n_fills: int
    masked: Mapping[int, MaskedFill] = field(default_factory=dict)
    _memory: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, images_BCSS: Tensor, fills_BFCSS: Tensor, masked: Mapping[int, MaskedFill] = MappingProxyType({})
    ) -> Canvas:
        """From model-space images [B, 3, S, S] and fills [B, F, 3, S, S]."""
        images, fills = images_BCSS.flatten(2).contiguous(), fills_BFCSS.flatten(0, 1).flatten(2).contiguous()
        return cls(images, fills, images_BCSS.shape[-1], fills_BFCSS.shape[1], masked)

    def with_fill(self, fill_BCSS: Tensor) -> Canvas:
        """The same images with one more fill, the last, in model space."""
        fills = self.fills.unflatten(0, (-1, self.n_fills))
        fills = torch.cat([fills, fill_BCSS.flatten(2)[:, None]], 1)
        return replace(self, fills=fills.flatten(0, 1), n_fills=self.n_fills + 1)

    def only(self, fill: int) -> Canvas:
        """The same images with one of the fills."""
        fills = self.fills[fill :: self.n_fills]
        masked = {0: self.masked[fill]} if fill in self.masked else {}
        return replace(self, fills=fills, n_fills=1, masked=masked)

    def filled(self, image_J: Tensor, fill_J: Tensor, filled_JU: Tensor) -> Tensor:
        """Model-space images [J, 3, S, S], pixels in bool [J, S * S] replaced by each job's fill.

        They lie in memory that the next call uses again: fresh memory would cost more than what is done in it.
        """
        if not self._memory or self._memory[0].shape[1] < len(image_J):
            self._memory[:] = [self.images.new_empty(2, len(image_J), *self.images.shape[1:])]
        made, fills = self._memory[0][:, : len(image_J)]
        torch.index_select(self.images, 0, image_J, out=made)
        torch.index_select(self.fills, 0, image_J * self.n_fills + fill_J, out=fills)
        for place, fill in self.masked.items():
            jobs = (fill_J == place).nonzero()[:, 0]
            fills.index_copy_(0, jobs, fill(image_J[jobs], filled_JU[jobs]))
        made.lerp_(fills, filled_JU[:, None].to(fills.dtype))  # exact at 0 and 1, and twice as fast as torch.where
        return made.unflatten(2, (self.size, self.size))


def masked_scores(
    forward: Callable[[Tensor], Tensor],
    canvas: Canvas,
    places_NU: Tensor,
    image_of_N: Tensor,
    ns: Sequence[int],
    orders: Sequence[str],
    batch_size: int,
) -> Tensor:
    """Scores of every ranking x fill x order x level, float32 [N, F, O, L].

    Args:
        forward: model-space images [b, 3, S, S] to scores [b]; the images are gone at its next call.
        canvas: images and fills.
        places_NU: rankings, int32; U is a square number.
        image_of_N: the image of each ranking.
        ns: units to perturb at each of the L levels.
        orders: of morf and lerf.
        batch_size: masked images in one pass; batches are filled across rankings, fills, orders and levels.
    """
    device, (n_rankings, units), size = places_NU.device, places_NU.shape, canvas.size
    n_levels, n_orders = len(ns), len(orders)
    count = torch.tensor(ns, device=device, dtype=torch.int32)
    low = torch.stack([torch.zeros_like(count) if o == "morf" else units - count for o in orders]).flatten()
    high = torch.stack([count if o == "morf" else torch.full_like(count, units) for o in orders]).flatten()
    shape = (n_rankings, canvas.n_fills, n_orders, n_levels)
    if not n_rankings:  # not every form takes an empty batch
        return torch.empty(shape, device=device)
    jobs = torch.arange(n_rankings * canvas.n_fills * n_orders * n_levels, device=device)
    masks = n_orders * n_levels
    g = round(units**0.5)
    if g != size:
        cell = cell_of(size, g, device)
        unit_of_pixel = (cell[:, None] * g + cell).flatten()
    scores = []
    for batch in jobs.split(batch_size):
        ranking = batch // (canvas.n_fills * masks)
        fill, mask = batch // masks % canvas.n_fills, batch % masks
        places = places_NU.index_select(0, ranking)
        filled = (places >= low[mask, None]) & (places < high[mask, None])
        if g != size:
            filled = filled.index_select(1, unit_of_pixel)
        scores.append(forward(canvas.filled(image_of_N[ranking], fill, filled)))
    return torch.cat(scores).view(shape)


def region_scores(
    forward: Callable[[Tensor], Tensor], canvas: Canvas, masks_NU: Tensor, image_of_N: Tensor, batch_size: int
) -> Tensor:
    """Scores of every mask x fill, float32 [N, F]: ``masked_scores`` for given masks, bool [N, S * S]."""
    jobs = torch.arange(len(masks_NU) * canvas.n_fills, device=masks_NU.device)
    scores = []
    for batch in jobs.split(batch_size):
        mask, fill = batch // canvas.n_fills, batch % canvas.n_fills
        scores.append(forward(canvas.filled(image_of_N[mask], fill, masks_NU.index_select(0, mask))))
    return torch.cat(scores).view(len(masks_NU), canvas.n_fills)
