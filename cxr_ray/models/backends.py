"""The inference backend in which a network scores masked images: the fastest of this machine, chosen by measurement.

Explainers stay on the eager module, since they need its hooks; only scoring uses another backend. Every backend gives
the same probabilities within TOLERANCE, those in half precision within HALF_TOLERANCE, which is checked when one is
chosen: in log-odds, four times as wide, since no probability changes faster than a quarter of its log-odds.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from cxr_ray.models.networks import Classifier
from cxr_ray.quiet import silent
from cxr_ray.registry import Registry

TOLERANCE = 1e-4  # in probability
HALF_TOLERANCE = 1e-2
TRIAL_SECONDS = 1.0  # that each backend is measured
TRIAL_PAYS = 2 * TRIAL_SECONDS  # seconds of eager scoring from which measuring another backend can pay
EXPORT_PAYS = 30.0  # and an export (6 seconds)
COMPILE_PAYS = 600.0  # and a compilation (about a minute)

BATCHES = (32, 64, 128, 256)

Forward = Callable[[Tensor], Tensor]  # model-space [B, 3, S, S] to the log-odds of PNEUMONIA [B]


@dataclass(frozen=True)
class InferenceBackend:
    """The backend that was chosen, and why.

    Attributes:
        name: key of BACKENDS.
        tried: images a second of every backend that was measured, or why one was not.
    """

    name: str
    tried: dict[str, float | str]

    def __str__(self) -> str:
        tried = (f"{n} {v:.0f}/s" if isinstance(v, float) else f"{n}: {v}" for n, v in self.tried.items())
        return f"{self.name} ({', '.join(tried)})" if self.tried else self.name


def full_float32() -> None:
    """Turns TF32 off for this process: it keeps 10 bits, and backends would differ."""
    torch.backends.cudnn.allow_tf32 = False


def eager(model: Classifier, example: Tensor) -> Forward:
    """The module as it is."""
    return _channels_last(model)


def folded(model: Classifier, example: Tensor) -> Forward:
    """Batch norms folded into the convolutions before them."""
    return _channels_last(_folded(model))


def compiled(model: Classifier, example: Tensor) -> Forward:
    """torch.compile of the folded module, with CUDA graphs, for batches of the example's size."""
    plain = _folded(model)
    return _of_one_size(Classifier(_compiled(plain.network), model.spec), plain, len(example))


def half(model: Classifier, example: Tensor) -> Forward:
    """The folded module in float16; log-odds in float32."""
    return _channels_last(Classifier(_Half(_folded(model).network.half()), model.spec))


def compiled_half(model: Classifier, example: Tensor) -> Forward:
    """torch.compile of the folded module in float16, as ``compiled``."""
    network = _folded(model).network.half()
    fast, plain = (Classifier(_Half(n), model.spec) for n in (_compiled(network), network))
    return _of_one_size(fast, plain, len(example))


def onnxruntime(model: Classifier, example: Tensor) -> Forward:
    """ONNX Runtime on the CPU (extra ``fast``)."""
    import onnxruntime as ort

    exported = _exported(model, example)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    run = _Network(lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]))
    return Classifier(run, model.spec).log_odds


def mnn(model: Classifier, example: Tensor) -> Forward:
    """MNN on the CPU (extra ``fast``), whose 3 x 3 convolutions are Winograd's."""
    with silent(1):  # not MNN.tools: on import it installs a package that reports each conversion to MNN's makers
        from MNN import expr
        from MNN import nn as mnn_nn

        converter = importlib.import_module("_tools")  # of the same package

    exported = _exported(model, example)
    with silent(1), tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "network.onnx"), Path(folder, "network.mnn")
        source.write_bytes(exported)
        converter.mnnconvert(
            ["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(made), "--bizCode", "none"]
        )
        manager = mnn_nn.create_runtime_manager(
            ({"backend": "CPU", "numThread": torch.get_num_threads(), "precision": "high"},)
        )
        network = mnn_nn.load_module_from_file(str(made), [_INPUT], [_OUTPUT], runtime_manager=manager)

    def run(images: Tensor) -> Tensor:
        given = expr.const(images.numpy(), list(images.shape), expr.NCHW)
        outputs = network.forward([given])[0]  # kept while its memory is copied
        return torch.from_numpy(np.array(outputs.read()))

    return Classifier(_Network(run), model.spec).log_odds


@dataclass(frozen=True)
class Backend:
    """One way to run a network's forward pass.

    Attributes:
        prepare: the eager model and an example batch to the function that scores batches. Raises what its compiler,
            exporter or import raises; ModuleNotFoundError where a package is missing.
        pays_after: seconds of scoring on the eager module from which its start-up can pay.
        device: cpu or cuda; None: both.
        half: whether it computes in float16.
        extra: the extra of this package that brings what it needs.
    """

    prepare: Callable[[Classifier, Tensor], Forward]
    pays_after: float
    device: str | None = None
    half: bool = False
    extra: str | None = None

    def runs_on(self, device: torch.device) -> bool:
        """Whether it is made for that kind of device."""
        return self.device in (None, device.type)


BACKENDS: Registry[Backend] = Registry(
    "inference backend",
    {
        "eager": Backend(eager, 0.0),
        "folded": Backend(folded, TRIAL_PAYS),
        "half": Backend(half, TRIAL_PAYS, device="cuda", half=True),
        "onnxruntime": Backend(onnxruntime, EXPORT_PAYS, device="cpu", extra="fast"),
        "mnn": Backend(mnn, EXPORT_PAYS, device="cpu", extra="fast"),
        "compiled": Backend(compiled, COMPILE_PAYS, device="cuda"),
        "compiled_half": Backend(compiled_half, COMPILE_PAYS, device="cuda", half=True),
    },
)
_INPUT, _OUTPUT = "images", "outputs"


class _Network(nn.Module):
    """A function of contiguous images as a module."""

    def __init__(self, run: Forward):
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images.contiguous())


class _Half(nn.Module):
    """A network of float16 whose inputs and outputs are float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.half()).float()


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, mode="reduce-overhead")  # type: ignore[return-value]


def _of_one_size(fast: Classifier, other: Classifier, batch_size: int) -> Forward:
    """``fast`` for batches of one size: any other would be compiled and recorded anew. Small ones take ``other``."""
    forward, uncompiled = _channels_last(fast), _channels_last(other)

    def run(images: Tensor) -> Tensor:
        n = len(images)
        if not batch_size // 2 < n <= batch_size:
            return uncompiled(images)
        return forward(F.pad(images, (0,) * 7 + (batch_size - n,)))[:n]

    return run


@lru_cache(maxsize=1)  # two backends want it
def _exported(model: Classifier, example: Tensor) -> bytes:
    """The folded module as ONNX, for any batch size."""
    import onnxscript  # noqa: F401  the export needs it

    network = _folded(model).network.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example.contiguous(),),
            dynamo=True,
            verbose=False,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def _channels_last(model: Classifier) -> Forward:
    """In channels_last, in which torch's convolutions are faster; what they convert on their own costs more."""
    return lambda images: model.log_odds(images.contiguous(memory_format=torch.channels_last))


def _folded(model: Classifier) -> Classifier:
    try:
        network = fuse(copy.deepcopy(model.network))
    except Exception as e:  # tracing fails in as many ways as there are networks
        raise RuntimeError(f"the network cannot be traced ({type(e).__name__})") from None
    return Classifier(network, model.spec).eval().to(memory_format=torch.channels_last)


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
    _exported.cache_clear()
    return eager(model, example) if isinstance(prepared, str) else prepared


def check(name: str, model: Classifier, example: Tensor, expected: Tensor) -> Forward | str:
    """The model on this backend, or why it cannot be had: no backend is worth a run.

    Args:
        name: key of BACKENDS.
        model: eager, on its device.
        example: images in model space [B, 3, S, S].
        expected: the eager module's log-odds of ``example`` [B].
    """
    backend = BACKENDS[name]
    try:
        forward = backend.prepare(model, example)
        difference = float((forward(example) - expected).abs().max()) / 4
    except ModuleNotFoundError as e:
        return f"no {e.name}" + (f": pip install 'cxr-ray[{backend.extra}]'" if backend.extra else "")
    except Exception as e:  # compilers and exporters fail in their own ways, a missing one at its first call
        return (str(e).splitlines() or [type(e).__name__])[0]
    tolerance = HALF_TOLERANCE if backend.half else TOLERANCE
    return forward if difference <= tolerance else f"differs by up to {difference:.1e} in probability"


def _example(model: Classifier, size: int, batch_size: int) -> Tensor:
    device = next(model.parameters(), torch.empty(0)).device
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def batch_size(model: Classifier, size: int) -> int:
    """Masked images in one pass: the smallest of the doubling sizes that comes within 5% of the fastest and fits.

    On CPUs 32, from which on the rate is flat; on GPUs measured once, from 32 up to 256 or what the memory holds.

    Raises:
        torch.OutOfMemoryError: it does not hold 32.
    """
    if next(model.parameters()).device.type == "cpu":
        return BATCHES[0]
    rates: dict[int, float] = {}
    for batch in BATCHES:
        try:
            rates[batch] = _rate_of(model, size, batch)
        except torch.OutOfMemoryError:
            break
    torch.cuda.empty_cache()  # or the GPU's other workers could not have that memory
    if not rates:
        raise torch.OutOfMemoryError(f"the GPU has no memory left for {BATCHES[0]} images of {size} x {size}.")
    return min(batch for batch, rate in rates.items() if rate >= 0.95 * max(rates.values()))


def _rate_of(model: Classifier, size: int, batch_size: int) -> float:
    """Images a second in batches of this size, with memory for what else a worker holds of that size."""
    with torch.no_grad():
        example = _example(model, size, batch_size)
        headroom = example.new_empty(2, *example.shape)  # masked images and fills
        forward = eager(model, example)
        _rate(forward, example, 0.0)
        rate = _rate(forward, example, TRIAL_SECONDS / 4)
        del headroom
    return rate


def choose(
    model: Classifier, size: int, batch_size: int, passes: int, precision: str = "float32"
) -> tuple[InferenceBackend, Forward]:
    """The fastest backend for so many passes, start-up included.

    Args:
        model: eager, on its device.
        size: side of the images.
        batch_size: images in a pass.
        passes: forward passes that will be made; few passes try only what costs nothing to start.
        precision: float32, or half: in half precision on GPUs, unless no such backend can be had.

    Returns:
        The backend and its function; its probabilities agree with the eager module's on random images.
    """
    example = _example(model, size, batch_size)
    plain = eager(model, example)
    halves = [name for name, backend in BACKENDS.items() if backend.half] if precision == "half" else []
    must_be_half = any(BACKENDS[name].runs_on(example.device) for name in halves)
    refused: dict[str, float | str] = {} if must_be_half else dict.fromkeys(halves, "for GPUs")
    if not passes and not must_be_half:
        return InferenceBackend("eager", refused), plain
    with torch.no_grad():
        expected = plain(example)
        rate = _rate(plain, example, 0.0)
        names = _worth_trying(passes / rate, example.device, must_be_half)
        if not names:
            return InferenceBackend("eager", {"eager": rate, **refused}), plain
        forwards = {"eager": plain}
        for name in names:
            prepared = check(name, model, example, expected)
            if isinstance(prepared, str):
                refused[name] = prepared
            else:
                forwards[name] = prepared
        rates = _rates(forwards, example, refused)
    _exported.cache_clear()
    # Half or not at all, where it can be had: else levels of a curve, scored by two workers, might differ in precision.
    best = max(rates, key=lambda name: (must_be_half and BACKENDS[name].half, rates[name]))
    return InferenceBackend(best, {**rates, **refused}), forwards[best]


def _worth_trying(eager_seconds: float, device: torch.device, half: bool) -> list[str]:
    """Backends whose start-up can pay in so much scoring; the cheap ones always where half precision is asked for."""
    return [
        name
        for name, backend in BACKENDS.items()
        if name != "eager"
        and backend.runs_on(device)
        and (half or not backend.half)
        and (eager_seconds > backend.pays_after or (half and backend.pays_after <= TRIAL_PAYS))
    ]


def _rates(forwards: Mapping[str, Forward], example: Tensor, refused: dict[str, float | str]) -> dict[str, float]:
    """Images a second of each backend; one that does not fit into memory goes to ``refused``."""
    rates = {}
    for name, forward in forwards.items():
        try:
            rates[name] = _rate(forward, example, TRIAL_SECONDS)
        except torch.OutOfMemoryError:
            refused[name] = "out of memory"
    return rates


def _rate(forward: Forward, example: Tensor, seconds: float) -> float:
    """Images a second, over at least one pass."""
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        np.asarray(forward(example).cpu())
        done += len(example)
    return done / (time.perf_counter() - start)
