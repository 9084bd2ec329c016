"""What was measured of inference backends, kept on disk: the next worker, pass or run of a machine starts at once.

A record is a small JSON file in the user's cache folder, under the hash of all that it depends on: network, size,
device, threads and versions. A file that cannot be read, that is of other things or of another form is no record.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cxr_ray import usercache
from cxr_ray.models.networks import Classifier

PACKAGES = ("cxr-ray", "torch", "onnxruntime", "mnn", "triton")  # whose versions change a rate

Key = Mapping[str, Any]


def folder() -> Path:
    """Where records lie: ``cxr_ray/backends`` in the user's cache folder. Deleting it is safe."""
    return usercache.folder("backends")


def key_of(model: Classifier, size: int, **more: Any) -> Key:
    """All that a measurement of a model's backends depends on.

    Of the weights only names, shapes and types count: values change no rate.

    Args:
        model: eager, on its device.
        size: side of the images.
        more: what else the measurement depends on.
    """
    weights = [(name, list(w.shape), str(w.dtype)) for name, w in model.network.state_dict().items()]
    network = f"{model.spec.arch}\n{model.network}\n{json.dumps(weights)}"
    device = next(model.parameters(), torch.empty(0)).device
    return {
        "network": hashlib.sha256(network.encode()).hexdigest(),
        "size": size,
        "device": _name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "compiler": bool(shutil.which("cc") or shutil.which("gcc")),
        **more,
    }


def versions() -> dict[str, str | None]:
    """Of the packages that change a rate."""
    return {package: _version(package) for package in PACKAGES}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.machine()} {model} {os.cpu_count()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _file(key: Key) -> Path:
    return folder() / (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24] + ".json")


def read(key: Key) -> dict[str, Any] | None:
    """What was written under the key; None where there is no such record."""
    try:
        record = json.loads(_file(key).read_bytes())
        return record["value"] if record["key"] == key and isinstance(record["value"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write(key: Key, value: Mapping[str, Any]) -> None:
    """Keep a value of JSON under the key; where the folder cannot be written, nothing is kept."""
    text = json.dumps({"key": key, "value": value}, indent=1)
    usercache.write(_file(key), text.encode())
