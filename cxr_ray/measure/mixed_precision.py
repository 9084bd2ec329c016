"""Explainers in mixed precision: where a model is scored in half precision, and its maps rank as those of float32 do.

Masked images depend on a map by its ranking alone. So each explainer's maps of the first images that a worker gets are
made twice, and the least rank correlation decides for all images of the model; it is kept on disk for the next worker,
pass or run.

Shapes: P (image, target) pairs, V side of a map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.measure.donors import Maps
from cxr_ray.measure.transfer import to_host
from cxr_ray.models import kept
from cxr_ray.models.networks import Classifier

AGREES = 0.999  # rank correlation from which maps are taken for the same


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


class MixedPrecision:
    """Which explainers of one model run in mixed precision (torch.autocast).

    Attributes:
        agreements: each explainer's rank correlation with float32, of those that were asked for.
    """

    def __init__(self, size: int, device_type: str, dtype: torch.dtype = torch.float16):
        """Takes the side of the images, the kind of device, and the type of what is multiplied."""
        self.agreements: dict[str, float] = {}
        self._size, self._device_type, self._dtype = size, device_type, dtype

    def maps(self, explainer: str, model: Classifier, make: Callable[[], Maps]) -> Maps:
        """The maps that ``make`` makes with the model, in mixed precision where this explainer's agree."""
        if explainer in self.agreements:
            return self._mixed(make) if self.agreements[explainer] >= AGREES else make()
        key = self._key(explainer, model)
        known = (kept.read(key) or {}).get("agreement")
        if isinstance(known, float):
            self.agreements[explainer] = known
            return self.maps(explainer, model, make)
        full, mixed, found = make(), None, 0.0
        try:
            mixed = self._mixed(make)
            found = agreement(to_host(full.own), to_host(mixed.own))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError:  # an explainer that cannot mix types stays in float32
            pass
        self.agreements[explainer] = found
        kept.write(key, {"agreement": found})
        return full if mixed is None or found < AGREES else mixed

    @property
    def note(self) -> str:
        """Which explainers run in which precision, in one sentence; empty before the first."""
        mixed = [name for name, found in self.agreements.items() if found >= AGREES]
        full = [name for name in self.agreements if name not in mixed]
        if not self.agreements:
            return ""
        names = f"{', '.join(mixed) or 'none'}" + (f"; in float32: {', '.join(full)}" if full else "")
        return f"explainers in mixed precision (rank correlation with float32 at least {AGREES}): {names}"

    def _mixed(self, make: Callable[[], Maps]) -> Maps:
        with torch.autocast(self._device_type, self._dtype):
            return make()

    def _key(self, explainer: str, model: Classifier) -> kept.Key:
        weights = hashlib.sha256()
        for value in model.network.state_dict().values():
            weights.update(to_host(value.contiguous().flatten()).tobytes())
        more: dict[str, Any] = {"explainer": explainer, "weights": weights.hexdigest(), "dtype": str(self._dtype)}
        return kept.key_of(model, self._size, what="mixed precision", **more)
