"""What a worker takes and gives: models, shards of images, and tables of rows.

Shapes: B images, S side of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.scoring_only import FILES

Tables = dict[tuple[str, str], pa.Table]  # (table, explainer or "") to rows


class Comparison(NamedTuple):
    """A map against a control, under a target rule."""

    explainer: str
    target_rule: str
    control: str


@dataclass(frozen=True)
class ModelRef:
    """A model to be explained.

    Attributes:
        trial_id: its name in the tables.
        checkpoint: its weights.
        spec: what they mean; None: the file says so itself.
        size, preprocess: what its images become, as in its meaning.
        model: the model itself, where it is in memory already; None: the worker loads the checkpoint.
        channels: of its feature maps, where an explainer makes a pass for each.
    """

    trial_id: str
    checkpoint: str
    spec: ModelSpec | None
    size: int
    preprocess: str = "none"
    model: Classifier | None = None
    channels: int = 0

    @property
    def only_scores(self) -> bool:
        """Whether it has no weights that could be randomised."""
        return self.spec is not None and self.spec.arch in FILES


@dataclass(frozen=True)
class Shard:
    """Images of one split for one model.

    Attributes:
        split: val, test, sanity (images of test whose maps are compared with those of random weights), stability
            (images of test whose maps are compared with those of altered copies), or donors (images of test, and images
            of val whose pixels are swapped in).
        pixels: uint8 [B, 3, S, S]; or float32 in pixel space, [0, 1].
        image_ids, paths, labels: one for each image.
        errors: rows of the errors table for images that could not be decoded.
        masks: lungs, marker, opacity, truth and truth_boxes (``data.truth``) as far as they are known: bool [B, S, S];
            nowhere: not known, or not there.
        counterfactuals: phantoms rendered without their opacity, without their marker, with the other glyph: uint8
            [B, 3, S, S].
        donor_images: image_id to the NORMAL image of another patient that it swaps patches with: uint8 [3, S, S].
        swaps: in a shard of donors, one for each image: of a donor image its row of ``assign_donors``, else None.
        maps: maps from outside by the name that stands beside the explainers, one for each image: float32 [B, V, V],
            NaN where there is none.
        comparisons: (explainer, target rule, control) of a round of sequential verdicts that are not decided yet.
        name: under which the map pass kept its maps.
    """

    trial_id: str
    split: str
    image_ids: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]
    pixels: NDArray[np.uint8] | NDArray[np.float32]
    errors: Sequence[Mapping[str, Any]] = field(default_factory=list)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    counterfactuals: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    donor_images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    swaps: Sequence[Mapping[str, Any] | None] = ()
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    name: str = ""

    def pieces(self, most: int) -> list[Shard]:
        """Shards of at most so many of the images, in their order; errors stay with the whole."""
        place = np.arange(len(self.image_ids)) // most
        return [self.only(place == i) for i in range(-(-len(place) // most))]

    def only(self, kept_B: NDArray[np.bool_]) -> Shard:
        """The shard of some of its images."""
        at = np.flatnonzero(kept_B).tolist()
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in at],
            paths=[self.paths[i] for i in at],
            labels=[self.labels[i] for i in at],
            pixels=self.pixels[at],
            masks={name: mask[at] for name, mask in self.masks.items()},
            counterfactuals={name: images[at] for name, images in self.counterfactuals.items()},
            swaps=[self.swaps[i] for i in at] if self.swaps else (),
            maps={name: maps[at] for name, maps in self.maps.items()},
        )


def take(values: Sequence[str], index_R: NDArray[np.integer]) -> pa.Array:
    """A column of texts, one for each row.

    >>> take(["a", "b"], np.array([1, 1, 0])).to_pylist()
    ['b', 'b', 'a']
    """
    return pa.array(values, pa.string()).take(pa.array(index_R))
