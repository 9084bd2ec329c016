"""What the benchmarks share: interleaved timing, the machine in words, and the printed table."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


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


def arguments(text: str | None, **options: tuple[type, Any, str]) -> argparse.Namespace:
    """Parses ``--json`` and the options (name: type, default, help)."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for name, (kind, default, meaning) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} (default: {default})")
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
        print(json.dumps({"name": name, "ratios": dict(ratios), "targets": dict(targets), "machine": machine(),
                          "unit": unit, "rates": medians, **more}, default=str))  # fmt: skip
