"""How much of a shard a worker holds at a time: as much as a GPU's memory allows, decided once.

A GPU waits at the end of each call, and for calls that fill it only in part. On CPUs more at a time gains nothing.

Shapes: S side of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cxr_ray.measure.attribution.inputs import ACTIVATIONS

IMAGES, PLACES = 16, 2**23  # on a CPU
MOST_IMAGES, MOST_PLACES = 64, 2**26  # on a GPU
FEW = 8  # images whose scores fill a GPU, from a few hundred passes each on
PIECES = 4  # of a shard: rows of one are made while the GPU scores the next
WHILE_MADE = 8 * 4  # bytes of a place: rankings are int32, and take eight times as much while they are made


@dataclass(frozen=True)
class Capacity:
    """What a worker holds at a time.

    Attributes:
        images: that are explained together.
        places: of rankings, in int32.
        on_gpu: whether rows are made beside the scoring of the next images.
    """

    images: int = IMAGES
    places: int = PLACES
    on_gpu: bool = False

    @classmethod
    def of(cls, device: torch.device, size: int, pairs: int) -> Capacity:
        """What a device's free memory holds: a quarter of it in maps' backward passes, an eighth in rankings.

        Args:
            device: of the worker.
            size: side of its largest images.
            pairs: (image, target) pairs of an image, at most.
        """
        if device.type != "cuda":
            return cls()
        free = torch.cuda.mem_get_info(device)[0]
        image = pairs * 3 * size * size * 4 * ACTIVATIONS
        return cls(
            _doubled(IMAGES, MOST_IMAGES, free / 4 / image), _doubled(PLACES, MOST_PLACES, free / 8 / WHILE_MADE), True
        )

    def scored_together(self, images: int) -> int:
        """Images that are scored together, of a shard of so many."""
        return max(FEW, min(self.images, images // PIECES)) if self.on_gpu else self.images

    @property
    def note(self) -> str:
        """One line; empty on CPUs."""
        return f"images explained together: {self.images}; places of rankings: {self.places:,}" if self.on_gpu else ""


def _doubled(least: int, most: int, room: float) -> int:
    """``least``, doubled as long as there is room for it, up to ``most``.

    >>> _doubled(16, 64, 40), _doubled(16, 64, 3), _doubled(16, 64, 10**6)
    (32, 16, 64)
    """
    while least * 2 <= min(most, room):
        least *= 2
    return least
