"""Masked images: images and fills laid out on the device as the network reads them, and how they are blended.

Shapes: B images, N rankings, F fills, U units (pixels or cells), S side of an image, C channels, J jobs (one masked
image each). P is S * S. C is 3, or 1 where images and fills are grey: their one channel is laid out in pixel space, and
normalised into three as the network is about to read it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.errors import first_line
from cxr_ray.measure.fills import MaskedFill
from cxr_ray.measure.transfer import to_device
from cxr_ray.models.backends import Layout


class Normalization(NamedTuple):
    """One channel in pixel space to three in model space, bit for bit as ``Classifier.normalize`` does.

    Attributes:
        mean, std: of each channel, [3].
        dtype: of the result.
    """

    mean: Tensor
    std: Tensor
    dtype: torch.dtype = torch.float32

    def of_rows(self, rows_JP1: Tensor) -> Tensor:
        """[J, P, 1] to [J, P, 3]."""
        return ((rows_JP1 - self.mean) / self.std).to(self.dtype)

    def into(self, made_J3P: Tensor, rows_J1P: Tensor) -> Tensor:
        """[J, 1, P] to [J, 3, P], in memory that is given."""
        torch.sub(rows_J1P, self.mean[:, None], out=made_J3P)
        return made_J3P.div_(self.std[:, None])


@dataclass(frozen=True)
class Canvas:
    """Images and fills, from which a batch of masked images takes two gathers and one blend.

    Attributes:
        images: [B, C, P]; [B, P, C] where the layout is channels_last. Three channels are in model space, one is in
            pixel space.
        fills: [B * F, ...] likewise.
        size: S.
        n_fills: F.
        masked: those of the fills that depend on the mask, by their place among them.
        layout: of the masked images; the type is that of images and fills, if they have three channels.
        normalization: of one channel.
    """

    images: Tensor
    fills: Tensor
    size: int
    n_fills: int
    masked: Mapping[int, MaskedFill] = field(default_factory=dict)
    layout: Layout = Layout()  # noqa: RUF009  frozen
    normalization: Normalization | None = None
    _memory: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        images_BCSS: Tensor,
        fills_BFCSS: Tensor,
        masked: Mapping[int, MaskedFill] = MappingProxyType({}),
        layout: Layout | None = None,
    ) -> Canvas:
        """From model-space images [B, 3, S, S] and fills [B, F, 3, S, S]; without a layout, in the images' own type."""
        layout = layout or Layout(images_BCSS.dtype)
        images, fills = (_laid_out(x, layout) for x in (images_BCSS, fills_BFCSS.flatten(0, 1)))
        return cls(images, fills, images_BCSS.shape[-1], fills_BFCSS.shape[1], masked, layout)

    @classmethod
    def of_grey(
        cls,
        images_B1SS: Tensor,
        fills_BF1SS: Tensor,
        normalization: Normalization,
        masked: Mapping[int, MaskedFill] = MappingProxyType({}),
        layout: Layout | None = None,
    ) -> Canvas:
        """From one channel in pixel space, images [B, 1, S, S] and fills [B, F, 1, S, S]; ``masked`` makes one too."""
        layout = layout or Layout()
        one = Layout(images_B1SS.dtype, layout.channels_last)
        images, fills = (_laid_out(x, one) for x in (images_B1SS, fills_BF1SS.flatten(0, 1)))
        as_read = normalization._replace(dtype=layout.dtype)
        return cls(images, fills, images_B1SS.shape[-1], fills_BF1SS.shape[1], masked, layout, as_read)

    def with_fill(self, fill_BCSS: Tensor) -> Canvas:
        """The same images with one more fill, the last, of their own channels."""
        fills = self.fills.unflatten(0, (-1, self.n_fills))
        laid_out = _laid_out(fill_BCSS, replace(self.layout, dtype=self.fills.dtype))
        fills = torch.cat([fills, laid_out[:, None]], 1)
        return replace(self, fills=fills.flatten(0, 1), n_fills=self.n_fills + 1)

    def only(self, fill: int) -> Canvas:
        """The same images with one of the fills."""
        fills = self.fills[fill :: self.n_fills]
        masked = {0: self.masked[fill]} if fill in self.masked else {}
        return replace(self, fills=fills, n_fills=1, masked=masked)

    def as_images(self, rows: Tensor, memory: Tensor | None = None) -> Tensor:
        """Rows as of ``images`` as model-space images [J, 3, S, S]: a view of three channels; in memory that may be
        given, [J, 3, P], where one is normalised outside channels_last.
        """
        if self.normalization is not None and self.layout.channels_last:
            rows = self.normalization.of_rows(rows)
        elif self.normalization is not None:
            memory = rows.new_empty(len(rows), 3, rows.shape[2]) if memory is None else memory
            rows = self.normalization.into(memory, rows).to(self.layout.dtype)
        return self._view(rows)

    def _view(self, rows: Tensor) -> Tensor:
        if self.layout.channels_last:
            return rows.unflatten(1, (self.size, self.size)).permute(0, 3, 1, 2)
        return rows.unflatten(2, (self.size, self.size))

    def filled(self, image_J: Tensor, fill_J: Tensor, filled_JP: Tensor, place_J: NDArray[np.integer]) -> Tensor:
        """Model-space images [J, 3, S, S], pixels in bool [J, P] replaced by each job's fill.

        They lie in memory that the next call uses again: fresh memory would cost more than what is done in it.

        Args:
            image_J: each job's image.
            fill_J: its fill's place among the fills.
            filled_JP: its mask.
            place_J: the same as ``fill_J``, on the host.
        """
        if not self._memory or self._memory[0].shape[1] < len(image_J):
            self._memory[:] = [self.images.new_empty(2, len(image_J), *self.images.shape[1:])]
            if self.normalization is not None and not self.layout.channels_last:
                self._memory.append(self.images.new_empty(len(image_J), 3, self.size**2))
        made, fills = self._memory[0][:, : len(image_J)]
        torch.index_select(self.images, 0, image_J, out=made)
        torch.index_select(self.fills, 0, image_J * self.n_fills + fill_J, out=fills)
        for place, fill in self.masked.items():
            jobs = to_device(np.flatnonzero(place_J == place), made.device)
            if len(jobs):
                of_masks = fill(image_J[jobs], filled_JP[jobs])
                fills.index_copy_(0, jobs, _in_order(of_masks, self.layout).to(fills.dtype))
        if self.layout.channels_last:
            torch.where(filled_JP[:, :, None], fills, made, out=made)
        else:
            made.lerp_(fills, filled_JP[:, None].to(fills.dtype))  # exact at 0 and 1, twice as fast as torch.where
        return self.as_images(made, *(memory[: len(made)] for memory in self._memory[1:]))


def _in_order(rows_NCP: Tensor, layout: Layout) -> Tensor:
    return rows_NCP.transpose(1, 2) if layout.channels_last else rows_NCP


def _laid_out(images_NCSS: Tensor, layout: Layout) -> Tensor:
    return _in_order(images_NCSS.flatten(2), layout).to(layout.dtype).contiguous()


class Masks(NamedTuple):
    """Masks of rankings at levels, and which images and fills they are laid on, in one order of jobs.

    Job j masks ranking j // (F * M) with mask j % M under fill j // M % F, M = directions x levels.

    Attributes:
        places: rankings, int32 [N, U].
        image_of: the image of each ranking, [N].
        low, high: a unit is perturbed where low <= place < high, int32 [M].
        unit_of_pixel: [P], where units are cells.
    """

    places: Tensor
    image_of: Tensor
    low: Tensor
    high: Tensor
    unit_of_pixel: Tensor | None


def blend(
    canvas_BPC: Tensor,
    fills_BPC: Tensor,
    masks: Masks,
    jobs_J: Tensor,
    n_fills: int,
    normalization: Normalization | None = None,
) -> Tensor:
    """Masked images of these jobs from rows of a canvas in channels_last, [J, P, 3]: gather, choose, normalise.

    Compiled, one kernel writes each value once, in the type and order that the network reads.
    """
    n_masks = len(masks.low)
    ranking, fill, mask = jobs_J // (n_fills * n_masks), jobs_J // n_masks % n_fills, jobs_J % n_masks
    image = masks.image_of[ranking]
    filled = _filled(masks, ranking, mask)
    made = torch.where(filled[:, :, None], fills_BPC[image * n_fills + fill], canvas_BPC[image])
    return made if normalization is None else normalization.of_rows(made)


def _filled(masks: Masks, ranking_J: Tensor, mask_J: Tensor) -> Tensor:
    places = masks.places.index_select(0, ranking_J)
    filled = (places >= masks.low[mask_J, None]) & (places < masks.high[mask_J, None])
    return filled if masks.unit_of_pixel is None else filled.index_select(1, masks.unit_of_pixel)


class _Kernel:
    """``blend``, compiled at its first call; as it is, after a warning, once compiling has failed.

    Attributes:
        failure: why it is not compiled.
    """

    failure = ""

    @cached_property
    def compiled(self) -> Callable[..., Tensor]:
        return torch.compile(blend, dynamic=True)

    def __call__(self, *given: Any) -> Tensor:
        if not self.failure:
            try:
                return self.compiled(*given)
            except torch.OutOfMemoryError:
                raise
            except Exception as e:  # compilers fail in their own ways; the same images come without one
                self.failure = first_line(e)
                warnings.warn(kernel_note(), stacklevel=2)
        return blend(*given)


_KERNEL = _Kernel()


def kernel_note() -> str:
    """That masked images come without a compiled kernel in this process, and why; empty where they need none."""
    if not _KERNEL.failure:
        return ""
    return f"masked images are made more slowly, without a compiled kernel: {_KERNEL.failure}"


def masked_images(canvas: Canvas, masks: Masks, jobs_J: Tensor, first: int) -> Tensor:
    """Model-space images [J, 3, S, S] of jobs first, first + 1, ...; gone at the next call."""
    n_masks = len(masks.low)
    if canvas.layout.channels_last and not canvas.masked:
        kernel = _KERNEL if canvas.layout.fused else blend
        return canvas._view(kernel(canvas.images, canvas.fills, masks, jobs_J, canvas.n_fills, canvas.normalization))
    ranking, fill, mask = jobs_J // (canvas.n_fills * n_masks), jobs_J // n_masks % canvas.n_fills, jobs_J % n_masks
    place = np.arange(first, first + len(jobs_J)) // n_masks % canvas.n_fills
    return canvas.filled(masks.image_of[ranking], fill, _filled(masks, ranking, mask), place)
