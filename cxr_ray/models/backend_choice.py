"""The inference backend of a run, and its batch size: the fastest of this machine, measured once and then kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxr_ray.models import kept
from cxr_ray.models.backends import (
    BACKENDS,
    DIFFERS,
    TRIAL_PAYS,
    TRIAL_SECONDS,
    Form,
    Forward,
    check,
    eager,
    forget_export,
)
from cxr_ray.models.networks import Classifier

BATCHES = (32, 64, 128, 256, 512, 1024, 2048)
ROUNDS = 2  # of measuring, one form after the other: what else the machine does hits all alike
NO_MEMORY = "out of memory"
MASKED_COPIES = 8  # of each reference image, more and more of it hidden
SLACK = 2.0  # times its tolerance a form may differ whose precision was decided before, in another batch


@dataclass(frozen=True)
class InferenceBackend:
    """The backend that was chosen, and why.

    Attributes:
        name: key of BACKENDS.
        tried: images a second of every backend that was measured, or why one was not.
        kept: the rates are those of an earlier worker or run.
        difference: the greatest from the eager module's that was seen on the images, in probability.
    """

    name: str
    tried: dict[str, float | str]
    kept: bool = False
    difference: float = 0.0

    @property
    def precision(self) -> str:
        """In which it computes, a key of TOLERANCES."""
        return BACKENDS[self.name].precision

    def __str__(self) -> str:
        tried = [f"{n} {v:.0f}/s" if isinstance(v, float) else f"{n}: {v}" for n, v in self.tried.items()]
        earlier = ["measured earlier"] * self.kept
        if self.precision != "float32":
            earlier.append(f"in {self.precision} precision, within {self.difference:.1e} in probability of float32")
        return f"{self.name} ({', '.join(tried + earlier)})" if tried else self.name


def make(name: str, model: Classifier, size: int, batch_size: int) -> Forward:
    """A model on the backend that was chosen for another one; eager where this model cannot have it or differs on it.

    Raises:
        UnknownNameError: no backend of that name.
    """
    example = _example(model, size, batch_size)
    if name == "eager":
        return eager(model, example)
    with torch.no_grad():
        prepared = check(name, model, example, model.log_odds(example))
    forget_export()
    return eager(model, example) if isinstance(prepared, str) else prepared


def _example(model: Classifier, size: int, batch_size: int) -> Tensor:
    noise = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(model.mean.device)


def batch_size(model: Classifier, size: int) -> int:
    """Masked images in one pass: the smallest of the doubling sizes that comes within 5% of the fastest and fits.

    On CPUs 32, from which on the rate is flat; on GPUs measured once a machine, from 32 up to 2,048 or what the memory
    holds.

    Raises:
        torch.OutOfMemoryError: it does not hold 32.
    """
    if model.mean.device.type == "cpu":
        return BATCHES[0]
    key = kept.key_of(model, size, what="batch size", batches=BATCHES)
    known = (kept.read(key) or {}).get("batch_size")
    if known in BATCHES:
        try:
            _rate_of(model, size, known, 0.0)
            return int(known)
        except torch.OutOfMemoryError:  # others use the GPU's memory now
            pass
    rates: dict[int, float] = {}
    for batch in BATCHES:
        try:
            rates[batch] = _rate_of(model, size, batch, TRIAL_SECONDS / 4)
        except torch.OutOfMemoryError:
            break
    torch.cuda.empty_cache()  # or the GPU's other workers could not have that memory
    if not rates:
        raise torch.OutOfMemoryError(f"the GPU has no memory left for {BATCHES[0]} images of {size} x {size}.")
    best = min(batch for batch, rate in rates.items() if rate >= 0.95 * max(rates.values()))
    if len(rates) == len(BATCHES):
        kept.write(key, {"batch_size": best})
    return best


def _rate_of(model: Classifier, size: int, batch_size: int, seconds: float) -> float:
    """Images a second in batches of this size, with memory for what else a worker holds of that size."""
    with torch.no_grad():
        example = _example(model, size, batch_size)
        headroom = example.new_empty(2, *example.shape)  # masked images and fills
        forward = eager(model, example)
        _rate(forward, example, 0.0)
        rate = _rate(forward, example, seconds)
        del headroom
    return rate


def choose(
    model: Classifier,
    size: int,
    batch_size: int,
    passes: int,
    precision: str = "float32",
    images: Tensor | None = None,
    slack: float = 1.0,
) -> tuple[InferenceBackend, Forward]:
    """The fastest backend for so many passes, start-up included.

    Args:
        model: eager, on its device.
        size: side of the images.
        batch_size: images in a pass.
        passes: forward passes that will be made; few passes try only what costs nothing to start.
        precision: float32; tf32 or half: in that precision on GPUs, unless no such backend can be had; auto: half on
            GPUs where it keeps its tolerance, else float32.
        images: on which backends must agree with the eager module, model space [B, 3, S, S]; None: random ones.
        slack: how many times its tolerance one may differ by.

    Returns:
        The backend and its function.
    """
    example = _example(model, size, batch_size) if images is None else _masked(images, batch_size)
    plain = eager(model, example)
    lower = lower_precision(precision, example.device)
    refused: dict[str, float | str] = {}
    if not lower and precision != "auto":
        refused = {name: "for GPUs" for name in BACKENDS if BACKENDS[name].precision == precision != "float32"}
    if not passes and not lower:
        return InferenceBackend("eager", refused), plain
    here = [name for name, backend in BACKENDS.items() if backend.runs_on(example.device)]
    key = kept.key_of(model, size, what=here, batch_size=batch_size, precision=precision)
    with torch.no_grad():
        task = _Task(model, example, {"eager": plain}, passes, lower, slack)
        return _kept(task, key) or _measured(task, key, refused)


def lower_precision(asked: str, device: torch.device) -> str | None:
    """The precision under float32 that ``perturb.precision`` asks for; None where the device has no form in it."""
    lower = {"float32": None, "auto": "half"}.get(asked, asked)
    return lower if any(b.precision == lower and b.runs_on(device) for b in BACKENDS.values()) else None


def precision_on(model: Classifier, images: Tensor, lower: str | None) -> tuple[str, float | str]:
    """The lower precision if its plain form keeps its tolerance on the images, whole and partly masked, else float32.

    Args:
        model: eager, on its device.
        images: model space [B, 3, S, S].
        lower: tf32 or half; None: none is asked for.

    Returns:
        The precision, and its greatest difference in probability or why it was refused.
    """
    if lower is None:
        return "float32", 0.0
    with torch.no_grad():
        example = _masked(images, MASKED_COPIES * len(images))
        form = check(lower, model, example, model.log_odds(example))
    return ("float32", f"{lower}: {form}") if isinstance(form, str) else (lower, form.difference)


def _masked(images: Tensor, batch_size: int) -> Tensor:
    """So many of the images and of copies whose lower rows, more and more of them, are their mean: as masked ones."""
    copies = -(-batch_size // len(images))
    many = images.repeat(copies, 1, 1, 1)[:batch_size]
    share = torch.arange(len(many), device=images.device) // len(images) / copies
    row = torch.arange(images.shape[2], device=images.device) / images.shape[2]
    hidden = (row[None] >= 1 - share[:, None])[:, None, :, None]
    return torch.where(hidden, many.mean((2, 3), keepdim=True), many)


@dataclass(frozen=True)
class _Task:
    """What a backend is chosen for; ``forwards`` are those that were made."""

    model: Classifier
    example: Tensor
    forwards: dict[str, Forward]
    passes: int
    lower: str | None  # the precision that it must have, where that can be had
    slack: float = 1.0

    @cached_property
    def expected(self) -> Tensor:
        return self.forwards["eager"](self.example)

    def worth_trying(self, eager_rate: float, tried: Mapping[str, float | str]) -> list[str]:
        """Backends whose start-up can pay in so much scoring; the cheap ones of a lower precision always.

        Those of float32 only where none of the lower precision can be had, as ``tried`` says.
        """
        precision = self.lower or "float32"
        lower = [name for name, backend in BACKENDS.items() if backend.precision == self.lower]
        if self.lower and all(isinstance(tried.get(name), str) for name in lower if self._pays(name, eager_rate)):
            precision = "float32"
        return [
            name
            for name, backend in BACKENDS.items()
            if name != "eager" and backend.precision in (precision, self.lower) and self._pays(name, eager_rate)
        ]

    def _pays(self, name: str, eager_rate: float) -> bool:
        backend = BACKENDS[name]
        cheap = self.lower is not None and backend.pays_after <= TRIAL_PAYS
        return backend.runs_on(self.example.device) and (cheap or self.passes / eager_rate > backend.pays_after)

    def not_lower(self, name: str) -> bool:
        """Whether a backend lacks the precision that it must have where one can be had.

        Else images that two workers score might differ in precision.
        """
        return self.lower is not None and BACKENDS[name].precision != self.lower

    def start(self, name: str) -> float | str:
        """Prepare a backend: the seconds that it took, or why it cannot be had."""
        start = time.perf_counter()
        if name not in self.forwards:
            expected = self.expected
            start = time.perf_counter()
            prepared = check(name, self.model, self.example, expected, self.slack)
            if isinstance(prepared, str):
                return prepared
            self.forwards[name] = prepared
        return time.perf_counter() - start


def _kept(task: _Task, key: kept.Key) -> tuple[InferenceBackend, Forward] | None:
    """The choice by rates that an earlier worker measured; None where they do not tell, or this model is refused."""
    earlier = _Earlier.read(key)
    if earlier is None:
        return None
    name = earlier.best(task)
    if name is None:
        return None
    seconds = task.start(name)
    forget_export()
    if isinstance(seconds, str):
        return None
    earlier.started(key, name, seconds)
    return _with_difference(name, earlier.tried, task, kept=True)


def _measured(task: _Task, key: kept.Key, refused: dict[str, float | str]) -> tuple[InferenceBackend, Forward]:
    """The choice by rates that are measured now, and kept."""
    rate = _rate(task.forwards["eager"], task.example, 0.0)
    if not task.worth_trying(rate, refused):
        return InferenceBackend("eager", {"eager": rate, **refused}), task.forwards["eager"]
    starts = {"eager": 0.0}
    while names := [name for name in task.worth_trying(rate, refused) if name not in starts | refused]:
        for name in names:
            seconds = task.start(name)
            if isinstance(seconds, str):
                refused[name] = seconds
            else:
                starts[name] = seconds
    rates = _rates(task.forwards, task.example, refused)
    forget_export()
    best = min(rates, key=lambda name: (task.not_lower(name), -rates[name]))
    backend = _with_difference(best, {**rates, **refused}, task)
    _Earlier(backend[0].tried, starts).write(key)
    return backend


def _with_difference(
    name: str, tried: dict[str, float | str], task: _Task, kept: bool = False
) -> tuple[InferenceBackend, Forward]:
    forward = task.forwards[name]
    return InferenceBackend(name, tried, kept, forward.difference if isinstance(forward, Form) else 0.0), forward


@dataclass(frozen=True)
class _Earlier:
    """What an earlier choice measured: as ``InferenceBackend.tried``, and each backend's seconds of start-up."""

    tried: dict[str, float | str]
    starts: dict[str, float]

    @property
    def rates(self) -> dict[str, float]:
        return {name: value for name, value in self.tried.items() if isinstance(value, float)}

    @classmethod
    def read(cls, key: kept.Key) -> _Earlier | None:
        """None where nothing that can be understood was kept."""
        value: dict[str, Any] = kept.read(key) or {}
        tried, starts = value.get("tried"), value.get("starts")
        if not isinstance(tried, dict) or not isinstance(starts, dict):
            return None
        rates = {name: rate for name, rate in tried.items() if isinstance(rate, float)}
        good = (
            all(name in BACKENDS for name in tried)
            and all(isinstance(reason, str) for name, reason in tried.items() if name not in rates)
            and all(rate > 0 and isinstance(starts.get(name), float) for name, rate in rates.items())
        )
        return cls(tried, starts) if good and "eager" in rates else None

    def write(self, key: kept.Key) -> None:
        """Keep it, unless a reason holds for these weights or this moment alone."""
        reasons = [reason for reason in self.tried.values() if isinstance(reason, str)]
        if not any(reason.startswith((DIFFERS, NO_MEMORY)) for reason in reasons):
            kept.write(key, {"tried": self.tried, "starts": self.starts})

    def best(self, task: _Task) -> str | None:
        """The backend that makes the passes soonest; None where one that is worth trying was not tried."""
        if any(name not in self.tried for name in task.worth_trying(self.rates["eager"], self.tried)):
            return None
        seconds = {name: self.starts[name] + task.passes / rate for name, rate in self.rates.items()}
        return min(seconds, key=lambda name: (task.not_lower(name), seconds[name]))

    def started(self, key: kept.Key, name: str, seconds: float) -> None:
        """Keep a start-up that was faster than the one before, as a compiler's is whose code is kept."""
        if seconds < self.starts[name]:
            _Earlier(self.tried, {**self.starts, name: seconds}).write(key)


def _rates(forwards: Mapping[str, Forward], example: Tensor, refused: dict[str, float | str]) -> dict[str, float]:
    """Images a second of each backend, the best of a few rounds; one that does not fit into memory is ``refused``."""
    rates: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, forward in forwards.items():
            if name in refused:
                continue
            try:
                rates[name] = max(rates.get(name, 0.0), _rate(forward, example, TRIAL_SECONDS / ROUNDS))
            except torch.OutOfMemoryError:
                rates.pop(name, None)
                refused[name] = NO_MEMORY
    return rates


def _rate(forward: Forward, example: Tensor, seconds: float) -> float:
    """Images a second, over at least one pass."""
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        np.asarray(forward(example).cpu())
        done += len(example)
    return done / (time.perf_counter() - start)
