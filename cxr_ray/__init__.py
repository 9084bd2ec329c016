"""Do saliency maps on chest X-rays show what the model used? Measured with Ray, over whole test splits.

The library, without Ray: ``explain``, ``measure``, ``verdict``, ``open_run`` and ``ModelSpec``. Each is imported where
it is first used, so that importing the package does nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_ray.library import Measurement, explain, measure, verdict
    from cxr_ray.models.networks import ModelSpec
    from cxr_ray.results import open_run

__version__ = "0.2.0"
__all__ = ["Measurement", "ModelSpec", "explain", "measure", "open_run", "verdict"]

_HOME = {"Measurement": "library", "ModelSpec": "models.networks", "explain": "library", "open_run": "results"}


def __getattr__(name: str) -> Any:
    if name in ("measure", "verdict"):  # the folder and the command line of that name, which can be called
        return importlib.import_module(f"cxr_ray.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"cxr_ray.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
