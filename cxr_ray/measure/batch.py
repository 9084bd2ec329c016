"""A batch of images on the device, for one model: what its explainers and controls share. It is computed once.

Shapes: B images, P (image, target) pairs, F fills, S side of an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from cxr_ray.config import Sweep
from cxr_ray.measure import metrics, rankings
from cxr_ray.measure.capacity import PLACES
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.lungs import Segmenter
from cxr_ray.measure.masking import Canvas, Normalization
from cxr_ray.measure.metrics import Tested
from cxr_ray.measure.shards import Shard
from cxr_ray.measure.transfer import Results, to_device, to_host
from cxr_ray.models.backends import Forward, Layout, layout_of
from cxr_ray.models.networks import Classifier
from cxr_ray.randomness import key
from cxr_ray.schemas import FILLED, PREDICTIONS

OUTCOMES = np.array([["TN", "FP"], ["FN", "TP"]])  # [label, predicted]


def in_pixel_space(images: Tensor) -> Tensor:
    """Images of a shard in pixel space, float32 in [0, 1]: bytes over 255, or as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Network:
    """One model in its forms.

    Attributes:
        model: the eager module.
        forward: the inference backend: model-space images [b, 3, S, S] to log-odds of PNEUMONIA, [b].
        batch_size: masked images in one pass.
        places: of rankings in memory at a time.
        mixed: the explainers that run in mixed precision.
        hooked: gives the module as explainers hook it, with batch norms folded where that can be; None: ``model``.
    """

    model: Classifier
    forward: Forward
    batch_size: int
    places: int = PLACES
    mixed: Collection[str] = ()
    hooked: Callable[[], Classifier] | None = None

    def scores(self, images_BCSS: Tensor) -> Tensor:
        """Log-odds of PNEUMONIA of model-space images, float32 [B], in batches."""
        if not len(images_BCSS):  # not every form takes an empty batch
            return images_BCSS.new_empty(0)
        return torch.cat([self.forward(batch) for batch in images_BCSS.split(self.batch_size)])


@dataclass(frozen=True)
class Pairs:
    """The (image, target) pairs that are explained.

    Attributes:
        image: each pair's image, int64 [P].
        target: the class whose score is explained, int64 [P].
        ids: image ids, P.
    """

    image: NDArray[np.int64]
    target: NDArray[np.int64]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sign(self) -> NDArray[np.floating]:
        """What turns log-odds of PNEUMONIA into those of the target, [P]."""
        return np.where(self.target == 1, 1.0, -1.0)

    def keys(self) -> list[tuple[str, int]]:
        """(image_id, target) of each."""
        return list(zip(self.ids, self.target.tolist(), strict=True))


class Batch:
    """A shard's images on the device.

    Attributes:
        sweep, shard, network: as given.
        ids: image ids.
        raw: as the shard holds them, [B, 3, S, S].
        pixels, images: the same in pixel space [0, 1] and in model space.
        logit: log-odds of PNEUMONIA, float64 [B]; ``predicted`` and ``outcome`` follow from it.
        logit_on_device: the same, float32.
        results: what comes to the host together.
        tested: the primary metric and fill.
    """

    def __init__(
        self,
        sweep: Sweep,
        shard: Shard,
        network: Network,
        device: torch.device,
        logits: Mapping[str, float] | None = None,
        segmenter: Segmenter | None = None,
        tested: Tested | None = None,
    ):
        """Put a shard on the device and score its images.

        Args:
            sweep: what to explain and how to perturb.
            shard: the images.
            network: the model.
            device: where the images go.
            logits: image_id to the log-odds of a map pass, so that they are not made again.
            segmenter: of lungs, for shards of test.
            tested: the primary metric and fill; None: those of the sweep alone.
        """
        self.sweep, self.shard, self.network, self.device = sweep, shard, network, device
        self._segmenter = segmenter
        self.tested = tested or metrics.tested(sweep.perturb)
        self.ids = list(shard.image_ids)
        self.results = Results()
        self.raw = to_device(shard.pixels, device)
        self.pixels = in_pixel_space(self.raw)
        self.size = self.pixels.shape[-1]
        self.images = network.model.normalize(self.pixels)
        if logits is None:
            self.logit_on_device = network.scores(self.images)
            self.logit = to_host(self.logit_on_device).astype(np.float64)
        else:
            self.logit = np.array([logits[i] for i in self.ids])
            self.logit_on_device = to_device(self.logit.astype(np.float32), device)
        self.predicted = (self.logit >= 0).astype(np.int64)
        self.outcome = OUTCOMES[np.asarray(shard.labels, dtype=np.int64), self.predicted]

    def keys(self, purpose: str) -> Tensor:
        """A key for each image, int64 [B]."""
        return to_device(np.array([key(self.sweep.seed, i, purpose) for i in self.ids]), self.device)

    @cached_property
    def image_of_pair(self) -> Tensor:
        """``pairs.image`` on the device."""
        return to_device(self.pairs.image, self.device)

    @cached_property
    def sign(self) -> Tensor:
        """``pairs.sign`` on the device, float32."""
        return to_device(self.pairs.sign.astype(np.float32), self.device)

    @cached_property
    def pairs(self) -> Pairs:
        """Those that the target rules select, each once."""
        wanted = {
            (i, 1 if rule == "pneumonia" else int(self.predicted[i]))
            for rule, i in itertools.product(self.sweep.explain.targets, range(len(self.ids)))
        }
        image, target = np.array(sorted(wanted)).T
        return Pairs(image, target, [self.ids[i] for i in image])

    @cached_property
    def ties(self) -> Tensor:
        """The field that breaks each pair's ties, [P, S, S]."""
        return rankings.tie_fields(self.ids, self.sweep.seed, self.size, self.device)[self.image_of_pair]

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Lungs, and what else is known of where things are: bool [B, S, S]; nowhere where it is not."""
        masks = {name: to_device(m, self.device) for name, m in self.shard.masks.items()}
        if self._segmenter and self.shard.split in ("test", "donors"):
            masks["lungs"] = self._segmenter(self.raw)
        nowhere = torch.zeros(len(self.ids), self.size, self.size, dtype=torch.bool, device=self.device)
        return {"lungs": nowhere, **masks}

    @cached_property
    def grey(self) -> bool:
        """Whether the channels of every image are equal, those of donor images too."""
        return all(
            (x[..., 1:, :, :] == x[..., :1, :, :]).all() for x in (self.shard.pixels, *self.shard.donor_images.values())
        )

    @cached_property
    def one_channel(self) -> bool:
        """Whether masked images are made in one channel: it is exact, and no slower in this layout."""
        kept = all(FILLS[name].keeps_grey for name in self.sweep.perturb.fills)
        return self.grey and kept and (self._layout.fused or not self._layout.channels_last)

    def filled(self, name: str) -> Tensor:
        """The images under a fill in pixel space, [B, 3, S, S]; [B, 1, S, S] where all channels are equal."""
        fill, grey = FILLS[name], self.network.model.mean
        pixels = self.pixels[:, :1] if self.grey and fill.keeps_grey else self.pixels
        return fill.make(pixels, grey, self.keys(fill.purpose))

    def on_canvas(self, pixels: Tensor) -> Tensor:
        """Pixel-space images [B, C, S, S] as the canvas takes them: one channel, or three in model space."""
        return pixels[:, :1] if self.one_channel else self.network.model.normalize(pixels)

    @cached_property
    def blurred(self) -> Tensor:
        """Images under the fill blur, in model space, for explainers."""
        return self.network.model.normalize(self.filled("blur"))

    @cached_property
    def canvas(self) -> Canvas:
        """Images and fills, laid out for masked passes."""
        names, model, masked = self.sweep.perturb.fills, self.network.model, {}
        pixels = self.pixels[:, :1] if self.one_channel else self.pixels
        for place, name in enumerate(names):
            if make := FILLS[name].for_masks:
                masked[place] = make(pixels, self.keys(FILLS[name].purpose), self.on_canvas)
        fills = torch.stack([self.on_canvas(self.filled(name)) for name in names], dim=1)
        if self.one_channel:
            normalization = Normalization(model.mean.flatten(), model.std.flatten())
            return Canvas.of_grey(pixels, fills, normalization, masked, self._layout)
        return Canvas.of(self.images, fills, masked, self._layout)

    @property
    def _layout(self) -> Layout:
        return layout_of(self.network.forward)

    @cached_property
    def filled_on_device(self) -> Tensor:
        """Log-odds of PNEUMONIA of the fully filled images, float32 [B, F]."""
        return self.network.scores(self.canvas.as_images(self.canvas.fills)).view(len(self.ids), -1)

    @property
    def logit_filled(self) -> NDArray[np.floating]:
        """``filled_on_device`` on the host, float64."""
        return to_host(self.filled_on_device).astype(np.float64)

    def prediction_rows(self) -> pa.Table:
        """Rows of ``predictions``."""
        columns = {
            "image_id": self.ids,
            "split": [self.shard.split] * len(self.ids),
            "label": np.asarray(self.shard.labels),
            "prob_pneumonia": expit(self.logit),
            "logit_pneumonia": self.logit,
            "predicted": self.predicted,
            "outcome": self.outcome,
        }
        return PREDICTIONS.build(columns)


def filled_rows(batch: Batch) -> pa.Table:
    """Rows of ``filled``: the scores of wholly filled images."""
    fills = batch.sweep.perturb.fills
    columns = {
        "image_id": np.repeat(batch.ids, len(fills)),
        "fill": [*fills] * len(batch.ids),
        "logit_pneumonia": batch.logit_filled.ravel(),
    }
    return FILLED.build(columns)


def finite_scores(batch: Batch) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
    """Whether each image has a finite score, bool [B], and rows of ``errors`` for those without."""
    finite, shard = np.isfinite(batch.logit), batch.shard
    stage = f"score:{shard.trial_id}"
    bad: Sequence[int] = np.flatnonzero(~finite).tolist()
    errors = [
        {"path": shard.paths[i], "image_id": shard.image_ids[i], "stage": stage, "reason": "no finite score"}
        for i in bad
    ]
    return finite, errors
