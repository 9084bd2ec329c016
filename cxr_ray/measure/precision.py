"""In which precision a model is scored and explained: decided once for a run, on reference images chosen by its seed.

Were it decided by each worker on the images that it gets first, two workers could differ, and tables would depend on
their number. So a shard of reference images comes before all others. What is found lies in the run with these images,
on which workers check their own inference backends.

Masked images depend on a map by its ranking alone. So an explainer runs in mixed precision (torch.autocast, float16) if
its maps of the reference images rank as those of float32 do, and if the model is scored in half precision.

Shapes: B images, P (image, target) pairs, S side of an image, V side of a map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow.fs import FileType

from cxr_ray.config import Sweep
from cxr_ray.data.splits import REFERENCE, REFERENCE_IMAGES
from cxr_ray.measure.batch import Batch, Network
from cxr_ray.measure.explainers import explainer_of
from cxr_ray.measure.measurement import make_maps, mixed_precision
from cxr_ray.measure.shards import Shard, Tables
from cxr_ray.measure.transfer import to_host
from cxr_ray.models import backend_choice
from cxr_ray.models.networks import Classifier
from cxr_ray.models.scoring_only import ScoringOnly
from cxr_ray.storage import PRECISION, Store

AGREES = 0.999  # rank correlation from which maps are taken for the same


@dataclass(frozen=True)
class Precision:
    """What was decided for one model.

    Attributes:
        scoring: key of ``backends.TOLERANCES``: that of scoring.
        found: greatest difference in probability from float32, or why a lower precision was refused.
        agreements: each explainer's rank correlation with float32, the least of the reference images; none where they
            all run in float32.
        images: the reference images, uint8 [B, 3, S, S].
    """

    scoring: str
    found: float | str
    agreements: Mapping[str, float] = field(default_factory=dict)
    images: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 3, 1, 1), np.uint8))

    @property
    def mixed(self) -> frozenset[str]:
        """The explainers that run in mixed precision."""
        return frozenset(name for name, found in self.agreements.items() if found >= AGREES)

    def to_plain(self) -> dict[str, object]:
        """All but the images, for JSON."""
        return {"scoring": self.scoring, "found": self.found, "agreements": dict(self.agreements)}

    def to_tables(self) -> Tables:
        """As a shard's tables."""
        columns = {"decided": [json.dumps(self.to_plain())], "images": [self.images.tobytes()]}
        return {("precision", ""): pa.table({**columns, "size": [self.images.shape[-1]]})}

    def __str__(self) -> str:
        within = f", within {self.found:.1e} in probability of float32" if isinstance(self.found, float) else ""
        refused = f" ({self.found})" if isinstance(self.found, str) else ""
        if not self.agreements:
            return f"scoring in {self.scoring}{within}{refused}"
        full = [name for name in self.agreements if name not in self.mixed]
        mixed = [name for name in self.agreements if name in self.mixed]
        names = f"{', '.join(mixed) or 'none'}" + (f"; in float32: {', '.join(full)}" if full else "")
        return (
            f"scoring in {self.scoring}{within}; explainers in mixed precision (rank correlation with float32 at least "
            f"{AGREES}): {names}"
        )


def shard_name(trial_id: str) -> str:
    """The name of a model's shard of reference images."""
    return f"{trial_id}.{REFERENCE}.{REFERENCE_IMAGES}.{0:05d}"


def read(store: Store, trial_id: str) -> Precision | None:
    """What was decided for a model; None where nothing was."""
    name = shard_name(trial_id)
    if store.fs.get_file_info(store.shard_path(name, PRECISION)).type == FileType.NotFound:
        return None
    tables = store.read_shard(name, PRECISION)
    if ("precision", "") not in tables:
        return Precision("float32", "no reference image could be decoded")
    row, *others = tables["precision", ""].to_pylist()
    if others:  # the images were tried one by one
        return Precision("float32", "the reference images together end a worker's process")
    images = np.frombuffer(row["images"], np.uint8).reshape(-1, 3, row["size"], row["size"])
    return Precision(**json.loads(row["decided"]), images=images)


def decide(model: Classifier, sweep: Sweep, shard: Shard, device: torch.device) -> Precision:
    """Decide on the images of a shard.

    Args:
        model: eager, on the device.
        sweep: its precision is asked for, its explainers are tried.
        shard: the reference images.
        device: of the run's workers.
    """
    batch = Batch(sweep, shard, Network(model, model.log_odds, REFERENCE_IMAGES), device)
    asked = "float32" if isinstance(model.network, ScoringOnly) else sweep.perturb.precision
    lower = backend_choice.lower_precision(asked, device)
    scoring, found = backend_choice.precision_on(model, batch.images, lower)
    agreements = {}
    if scoring == "half":
        reading = [name for name in sweep.explain.names if not explainer_of(name).model_free]
        agreements = {name: _agreement(batch, name) for name in reading}
    return Precision(scoring, found, agreements, np.asarray(shard.pixels, np.uint8))


def _agreement(batch: Batch, explainer: str) -> float:
    """The rank correlation of an explainer's maps in both precisions; 0 where it fails in one."""
    try:
        full = make_maps(batch, explainer, batch.network.model)
        with mixed_precision(batch.device):
            mixed = make_maps(batch, explainer, batch.network.model)
        return agreement(to_host(full.own), to_host(mixed.own))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, ArithmeticError, AssertionError):  # one that cannot mix types stays in float32
        return 0.0


def agreement(maps_PVV: NDArray[np.floating], others_PVV: NDArray[np.floating]) -> float:
    """The least Spearman correlation of two maps of a pair; ties take their mean rank.

    Maps that are both constant agree (1). A map that alone is constant, or not finite, does not (0).
    """
    from scipy.stats import rankdata  # most of a second

    if not (np.isfinite(maps_PVV).all() and np.isfinite(others_PVV).all()):
        return 0.0
    a, b = (rankdata(x.reshape(len(x), -1), axis=1) for x in (maps_PVV, others_PVV))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    a_norm, b_norm = (np.sqrt((x * x).sum(1)) for x in (a, b))
    constant = (a_norm == 0) | (b_norm == 0)
    correlation = (a * b).sum(1) / np.where(constant, 1.0, a_norm * b_norm)
    return float(np.where(constant, a_norm == b_norm, correlation).min())
