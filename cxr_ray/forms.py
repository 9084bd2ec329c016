"""The form in which a network scores masked images: the fastest that this machine has, chosen by measurement.

Explainers stay on the eager module, since they need its hooks; only scoring uses another form of it. Every form gives
the same probabilities within TOLERANCE, which is checked when it is chosen.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from cxr_ray.models import Classifier

TOLERANCE = 1e-4  # in probability
TRIAL_SECONDS = 1.0  # that each form is measured
EXPORT_PAYS = 60.0  # seconds of scoring from which an export (about 6 seconds) can pay
COMPILE_PAYS = 600.0  # and a compilation (about a minute)

BATCHES = (32, 64, 128, 256, 512, 1024)

Forward = Callable[[Tensor], Tensor]  # model-space [B, 3, S, S], channels_last, to the log-odds of PNEUMONIA [B]


class Unavailable(RuntimeError):
    """A form that this machine or this network does not have; the message says why."""


@dataclass(frozen=True)
class Form:
    """Which form was chosen, and why.

    Attributes:
        name: key of FORMS.
        tried: images a second of every form that was measured, or why one was not.
    """

    name: str
    tried: dict[str, float | str]

    def __str__(self) -> str:
        tried = (f"{n} {v:.0f}/s" if isinstance(v, float) else f"{n}: {v}" for n, v in self.tried.items())
        return f"{self.name} ({', '.join(tried)})"


def eager(model: Classifier, example: Tensor) -> Forward:
    """The module as it is."""
    return model.log_odds


def folded(model: Classifier, example: Tensor) -> Forward:
    """Batch norms folded into the convolutions before them."""
    return _folded(model).log_odds


def compiled(model: Classifier, example: Tensor) -> Forward:
    """torch.compile of the folded module; CUDA graphs on a GPU."""
    if example.device.type != "cuda":
        raise Unavailable("for GPUs")
    network = torch.compile(_folded(model).network, mode="reduce-overhead")
    return Classifier(network, model.meaning).log_odds  # type: ignore[arg-type]


def onnxruntime(model: Classifier, example: Tensor) -> Forward:
    """ONNX Runtime on the CPU (extra ``fast``)."""
    if example.device.type != "cpu":
        raise Unavailable("for CPUs")
    try:
        import onnxruntime as ort
        import onnxscript  # noqa: F401  the export needs it
    except ImportError:
        raise Unavailable("not installed: pip install 'cxr-ray[fast]'") from None
    network = _folded(model).network.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (example.contiguous(),), dynamo=True, verbose=False,
                                    dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))  # fmt: skip
    assert program is not None
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    class Session(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return Classifier(Session(), model.meaning).log_odds


FORMS: dict[str, Callable[[Classifier, Tensor], Forward]] = {
    "eager": eager,
    "folded": folded,
    "onnxruntime": onnxruntime,
    "compiled": compiled,
}


def _folded(model: Classifier) -> Classifier:
    try:
        network = fuse(copy.deepcopy(model.network))
    except Exception as e:  # tracing fails in as many ways as there are networks
        raise Unavailable(f"the network cannot be traced ({type(e).__name__})") from None
    return Classifier(network, model.meaning).eval().to(memory_format=torch.channels_last)


def make(name: str, model: Classifier, size: int, batch_size: int) -> Forward:
    """A model in a form that was chosen for another one; eager if this model does not have it, or differs in it."""
    if name == "eager":
        return model.log_odds
    example = _example(model, size, batch_size)
    with torch.no_grad():
        made = _checked(name, model, example, torch.sigmoid(model.log_odds(example)))
    return model.log_odds if isinstance(made, str) else made


def _checked(name: str, model: Classifier, example: Tensor, expected: Tensor) -> Forward | str:
    """The model in this form, or why it cannot be had: no form is worth a run."""
    try:
        made = FORMS[name](model, example)
        difference = float((torch.sigmoid(made(example)) - expected).abs().max())
    except Exception as e:  # compilers and exporters fail in their own ways, a missing one at its first call
        return (str(e).splitlines() or [type(e).__name__])[0]
    return made if difference <= TOLERANCE else f"differs by {difference:.1e} in probability"


def _example(model: Classifier, size: int, batch_size: int) -> Tensor:
    device = next(model.parameters(), torch.empty(0)).device
    images = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(device).contiguous(memory_format=torch.channels_last)


def batch_size(model: Classifier, size: int) -> int:
    """Masked images in one pass: the smallest of the doubling sizes that comes within 5% of the fastest and fits.

    On CPUs 32, from which on the rate is flat; on GPUs measured once, from 32 up to what the memory holds.
    """
    if next(model.parameters()).device.type == "cpu":
        return BATCHES[0]
    rates: dict[int, float] = {}
    for batch in BATCHES:
        try:
            with torch.no_grad():
                example = _example(model, size, batch)
                _rate(model.log_odds, example, 0.0)
                rates[batch] = _rate(model.log_odds, example, TRIAL_SECONDS / 4)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    return min(batch for batch, rate in rates.items() if rate >= 0.95 * max(rates.values()))


def choose(model: Classifier, size: int, batch_size: int, passes: int) -> tuple[Form, Forward]:
    """The fastest form for so many passes, start-up included.

    Args:
        model: eager, on its device.
        size: side of the images.
        batch_size: images in a pass.
        passes: forward passes that will be made; few passes try only what costs nothing to start.

    Returns:
        The form and its function; its probabilities agree with the eager module's within TOLERANCE on random images.
    """
    if not passes:
        return Form("eager", {}), model.log_odds
    example = _example(model, size, batch_size)
    with torch.no_grad():
        expected = torch.sigmoid(model.log_odds(example))
        rate = _rate(model.log_odds, example, 0.0)
        scoring = passes / rate  # seconds
        worth = ["folded"] if scoring > 2 * TRIAL_SECONDS else []
        worth += ["onnxruntime"] if scoring > EXPORT_PAYS else []
        worth += ["compiled"] if scoring > COMPILE_PAYS else []
        if not worth:
            return Form("eager", {"eager": rate}), model.log_odds
        forwards: dict[str, Forward] = {"eager": model.log_odds}
        tried: dict[str, float | str] = {}
        for name in worth:
            made = _checked(name, model, example, expected)
            if isinstance(made, str):
                tried[name] = made
            else:
                forwards[name] = made
        rates = {name: _rate(forward, example, TRIAL_SECONDS) for name, forward in forwards.items()}
    best = max(rates, key=lambda name: rates[name])
    return Form(best, {**rates, **tried}), forwards[best]


def _rate(forward: Forward, example: Tensor, seconds: float) -> float:
    """Images a second, over at least one pass."""
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        np.asarray(forward(example).cpu())
        done += len(example)
    return done / (time.perf_counter() - start)
