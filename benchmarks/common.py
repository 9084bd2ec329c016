"""What the benchmarks share: interleaved timing, phantoms and models of them, the machine, and the printed table."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.config import Train
from cxr_ray.data.phantoms import Phantom, render
from cxr_ray.models import networks, training
from cxr_ray.models.networks import Classifier, ModelSpec

# Images of a patient in the test split: how many patients have 1, 2, ... 9.
_PATIENTS_WITH = (346, 30, 23, 11, 10, 4, 2, 1, 1)


def patient_sizes(n: int = sum(_PATIENTS_WITH)) -> NDArray[np.int64]:
    """Images of each of n patients, few to many, spread as in the test split: 428 patients with 624 images."""
    sizes = np.repeat(np.arange(len(_PATIENTS_WITH)) + 1, _PATIENTS_WITH)
    return sizes[np.linspace(0, len(sizes) - 1, n).round().astype(int)]


def rates(forms: Mapping[str, Callable[[], int]], rounds: int = 5, seconds: float = 2.0) -> dict[str, list[float]]:
    """Units of work a second of each form, measured in turn, round after round: a machine's drift hits all alike.

    Each form does some work and returns how many units it did. The first call of each is not counted.
    """
    for form in forms.values():
        form()
    measured: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            start, done = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < seconds:
                done += form()
            measured[name].append(done / elapsed)
    return measured


def ratio(measured: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median over rounds of one form's rate over another's in the same round."""
    return statistics.median(a / b for a, b in zip(measured[over], measured[under], strict=True))


def machine() -> str:
    """Processor, threads and versions in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {torch.get_num_threads()} torch threads, torch {torch.__version__}, {platform.system()}"


def phantoms(n: int, size: int, first: int, **how: Any) -> list[Phantom]:
    """n phantoms, NORMAL and PNEUMONIA in turn, of the seeds from ``first``; ``how`` is what ``render`` takes."""
    return [render(first + i, i % 2, size, **how) for i in range(n)]


def pixels(drawn: Sequence[Phantom]) -> NDArray[np.uint8]:
    """uint8 [N, 3, S, S]."""
    return np.repeat(np.stack([p.image for p in drawn])[:, None], 3, axis=1)


def trained(drawn: Sequence[Phantom], epochs: int, seed: int, lr: float = 1e-3) -> Classifier:
    """A ResNet-18 from scratch after so many epochs on phantoms whose labels alternate; eval mode."""
    size = drawn[0].image.shape[0]
    torch.manual_seed(seed)
    model = networks.build("resnet18", ModelSpec("resnet18", size))
    split = training.Split(pixels(drawn), np.arange(len(drawn)) % 2)
    few = training.Split(split.pixels[:64], split.labels[:64])
    training.fit(model, split, few, Train(epochs=epochs, batch_size=32, lr=lr, seed=seed), lambda epoch: None)
    return model.eval().requires_grad_(False)


def arguments(
    text: str | None,
    run: str | None = None,
    flags: Mapping[str, str] = MappingProxyType({}),
    **options: tuple[type, Any, str],
) -> argparse.Namespace:
    """Parses ``--json``, flags (name: help), options (name: type, default, help) and, where ``run`` says so, a run."""
    parser = argparse.ArgumentParser(description=text)
    if run is not None:
        parser.add_argument("run", nargs="?", help=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for name, spec in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=spec)
    for name, (kind, default, spec) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{spec} (default: {default})")
    return parser.parse_args()


def show(
    name: str,
    measured: Mapping[str, list[float]],
    ratios: Mapping[str, float],
    targets: Mapping[str, float],
    *,
    unit: str,
    as_json: bool,
    **more: Any,
) -> None:
    """Prints rates (median, least, most), ratios beside their targets, and with ``--json`` one object."""
    print(f"{name}: {machine()}")
    for form, values in measured.items():
        print(f"  {form:<34}{statistics.median(values):>10.1f} {unit} ({min(values):.1f} to {max(values):.1f})")
    for what, value in ratios.items():
        target = f", to reach {targets[what]:g}" if what in targets else ""
        print(f"  {what}: {value:.3f}{target}")
    for what, value in more.items():
        print(f"  {what}: {value}")
    if as_json:
        medians = {form: statistics.median(values) for form, values in measured.items()}
        print(
            json.dumps(
                {
                    "name": name,
                    "ratios": dict(ratios),
                    "targets": dict(targets),
                    "machine": machine(),
                    "unit": unit,
                    "rates": medians,
                    **more,
                },
                default=str,
            )
        )
