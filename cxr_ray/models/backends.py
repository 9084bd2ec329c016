"""The inference backends: forms of a network that score masked images. ``backend_choice`` takes the fastest.

Explainers stay on the eager module, since they need its hooks (``for_explainers``). Every backend gives
the same probabilities within the tolerance of its precision, which is checked when one is chosen: in log-odds, four
times as wide, since no probability changes faster than a quarter of its log-odds.
"""

from __future__ import annotations

import copy
import importlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from cxr_ray.errors import UserError, first_line
from cxr_ray.models.networks import Classifier
from cxr_ray.quiet import silent
from cxr_ray.registry import Registry

TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "half": 1e-2}  # in probability
TRIAL_SECONDS = 1.0  # that each backend is measured
TRIAL_PAYS = 2 * TRIAL_SECONDS  # seconds of eager scoring from which measuring another backend can pay
EXPORT_PAYS = 10.0  # and an export (2 seconds)
COMPILE_PAYS = 100.0  # and a compilation (10 seconds, which saves a tenth)
COMPILE_HALF_PAYS = 40.0  # and one that halves the time of half precision, a fifth of eager's
DIFFERS = "differs by"
SMALL_BATCH = 64  # that still fills a GPU

Forward = Callable[[Tensor], Tensor]  # model-space [B, 3, S, S] to the log-odds of PNEUMONIA [B]


@dataclass(frozen=True)
class Layout:
    """The type and memory format of the images that a form reads without a copy.

    Attributes:
        dtype, channels_last: of the images.
        fused: whether compiling the kernel that makes them pays, as it does where the network is compiled.
    """

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    fused: bool = False


@dataclass(frozen=True)
class Form:
    """A network in one form: a Forward that also takes images of another type or memory format.

    Attributes:
        run: as Forward, for images of the layout.
        layout: that of the images it reads.
        difference: the greatest from the eager module's that was seen, in probability.
    """

    run: Forward
    layout: Layout
    difference: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Log-odds of PNEUMONIA, float32 [B]."""
        if self.layout.channels_last:  # torch's convolutions are faster so; what they convert on their own costs more
            return self.run(images.to(self.layout.dtype, memory_format=torch.channels_last))
        return self.run(images.to(self.layout.dtype))


def layout_of(forward: Forward) -> Layout:
    """The layout that a forward reads without a copy."""
    return forward.layout if isinstance(forward, Form) else Layout()


def full_float32() -> None:
    """Turns TF32 off for this process: it keeps 10 bits, and backends would differ."""
    torch.backends.cudnn.allow_tf32 = False


def eager(model: Classifier, example: Tensor) -> Forward:
    """The module as it is."""
    return _of_torch(model, example)


def folded(model: Classifier, example: Tensor) -> Forward:
    """Batch norms folded into the convolutions before them."""
    return _of_torch(_folded(model), example)


def compiled(model: Classifier, example: Tensor) -> Forward:
    """torch.compile of the folded module, with CUDA graphs, for batches of the example's size and a quarter of it."""
    plain = _folded(model)
    return _of_sizes(Classifier(_compiled(plain.network), model.spec), plain, example)


def tf32(model: Classifier, example: Tensor) -> Forward:
    """The folded module with convolutions in TF32."""
    return _with_tf32(folded(model, example))


def compiled_tf32(model: Classifier, example: Tensor) -> Forward:
    """As ``compiled``, with convolutions in TF32."""
    return _with_tf32(compiled(model, example))


def half(model: Classifier, example: Tensor) -> Forward:
    """The folded module in float16; log-odds in float32."""
    return _of_torch(_halved(model), example)


def compiled_half(model: Classifier, example: Tensor) -> Forward:
    """torch.compile of the folded module in float16, as ``compiled``."""
    plain = _halved(model)
    return _of_sizes(Classifier(_compiled(plain.network), model.spec), plain, example)


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
        precision: in which it computes, a key of TOLERANCES.
        extra: the extra of this package that brings what it needs.
    """

    prepare: Callable[[Classifier, Tensor], Forward]
    pays_after: float
    device: str | None = None
    precision: str = "float32"
    extra: str | None = None

    def runs_on(self, device: torch.device) -> bool:
        """Whether it is made for that kind of device."""
        return self.device in (None, device.type)


BACKENDS: Registry[Backend] = Registry(
    "inference backend",
    {
        "eager": Backend(eager, 0.0),
        "folded": Backend(folded, TRIAL_PAYS),
        "tf32": Backend(tf32, TRIAL_PAYS, device="cuda", precision="tf32"),
        "half": Backend(half, TRIAL_PAYS, device="cuda", precision="half"),
        "onnxruntime": Backend(onnxruntime, EXPORT_PAYS, device="cpu", extra="fast"),
        "mnn": Backend(mnn, EXPORT_PAYS, device="cpu", extra="fast"),
        "compiled": Backend(compiled, COMPILE_PAYS, device="cuda"),
        "compiled_tf32": Backend(compiled_tf32, COMPILE_HALF_PAYS, device="cuda", precision="tf32"),
        "compiled_half": Backend(compiled_half, COMPILE_HALF_PAYS, device="cuda", precision="half"),
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


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, mode="reduce-overhead", dynamic=False)  # type: ignore[return-value]


def _of_torch(model: Classifier, example: Tensor) -> Form:
    """In channels_last, of the weights' type. On CPUs images are made faster as they are, and then copied."""
    dtype = next((w.dtype for w in model.network.parameters()), example.dtype)

    def copied(images: Tensor) -> Tensor:
        return model.log_odds(images.contiguous(memory_format=torch.channels_last))

    if example.device.type == "cpu" and dtype == torch.float32:
        return Form(copied, Layout())
    return Form(model.log_odds, Layout(dtype, channels_last=True))


def _of_sizes(fast: Classifier, other: Classifier, example: Tensor) -> Form:
    """``fast`` for batches of the example's size, or a quarter of it where that is large: any other would be compiled
    and recorded anew. What fills less than half of the smaller takes ``other``.
    """
    forward, uncompiled = _of_torch(fast, example), _of_torch(other, example)
    largest = len(example)
    smallest = largest // 4 if largest >= 4 * SMALL_BATCH else largest

    def run(images: Tensor) -> Tensor:
        n = len(images)
        size = largest if n > largest - smallest else smallest
        if n > size:
            return torch.cat([run(part) for part in images.split(size)])
        if n <= size // 2:
            return uncompiled.run(images)
        return forward.run(images if n == size else F.pad(images, (0,) * 7 + (size - n,)))[:n]

    return Form(run, replace(forward.layout, fused=True))


def _with_tf32(forward: Forward) -> Form:
    """With TF32 on while it runs: explainers in the same process keep float32."""

    def run(images: Tensor) -> Tensor:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = True
        try:
            return forward(images)
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return Form(run, layout_of(forward))


@lru_cache(maxsize=1)  # two backends want it
def _exported(model: Classifier, example: Tensor) -> bytes:
    """The folded module as ONNX, for any batch size."""
    import onnx  # noqa: F401  the export needs it

    network = _folded(model).network.to(memory_format=torch.contiguous_format)
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example[:2].contiguous(),),
            made,  # type: ignore[arg-type]
            dynamo=False,  # traced in half a second; torch.export, the newer way, takes three
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_axes={_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}},
        )
    return made.getvalue()


def forget_export() -> None:
    """Free the exported weights, which the next model does not need."""
    _exported.cache_clear()


def _folded(model: Classifier) -> Classifier:
    try:
        network = fuse(copy.deepcopy(model.network))
    except Exception as e:  # tracing fails in as many ways as there are networks
        raise RuntimeError(f"the network cannot be traced ({type(e).__name__})") from None
    return Classifier(network, model.spec).eval().to(memory_format=torch.channels_last)


def for_explainers(model: Classifier) -> Classifier:
    """The eager module with batch norms folded into the convolutions before them: its modules keep their names.

    Explainers hook it as they would the model. The model itself where its network cannot be traced, where nothing can
    be folded, where class activation maps read a convolution that would be, or where log-odds come out otherwise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        try:
            fused = dict(fuse(copy.deepcopy(model.network)).named_modules())
        except Exception:  # tracing fails in as many ways as there are networks
            return model
    network = copy.deepcopy(model.network)
    modules = list(network.named_modules())
    gone = [name for name, module in modules if isinstance(module, nn.BatchNorm2d) and name not in fused]
    if not gone:
        return model
    for name in gone:
        network.set_submodule(name, nn.Identity())
    for name, module in modules:
        if isinstance(module, nn.Conv2d) and name in fused:
            network.set_submodule(name, fused[name])
    folded = Classifier(network, model.spec).eval().requires_grad_(False).to(model.mean.device)
    return folded if _explains_alike(model, folded) else model


def _explains_alike(model: Classifier, folded: Classifier) -> bool:
    """Whether log-odds are the same, and class activation maps read the same module's same output."""
    size, random = model.spec.size, torch.Generator().manual_seed(0)
    images = model.normalize(torch.rand(2, 3, size, size, generator=random).to(model.mean.device))
    try:
        layers = [m.structure.features and m.structure.features.layer for m in (model, folded)]
        modules = [m.network.get_submodule(layers[0] or "") for m in (model, folded)]
        read: list[Tensor] = []
        with torch.no_grad():
            hooks = [m.register_forward_hook(lambda m, i, out: read.append(out)) for m in modules]
            try:
                scores = [m.log_odds(images) for m in (model, folded)]
            finally:
                for hook in hooks:
                    hook.remove()
        return layers[0] == layers[1] and all(
            torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in (scores, read)
        )
    except (RuntimeError, TypeError, ValueError, UserError):  # of a module that is read twice, or gives no tensor
        return False


def _halved(model: Classifier) -> Classifier:
    plain = _folded(model)
    return Classifier(plain.network.half(), plain.spec)


def check(name: str, model: Classifier, example: Tensor, expected: Tensor, slack: float = 1.0) -> Form | str:
    """The model on this backend, or why it cannot be had: no backend is worth a run.

    Args:
        name: key of BACKENDS.
        model: eager, on its device.
        example: images in model space [B, 3, S, S].
        expected: the eager module's log-odds of ``example`` [B].
        slack: how many times its tolerance it may differ by.
    """
    backend = BACKENDS[name]
    try:
        forward = backend.prepare(model, example)
        difference = float((forward(example) - expected).abs().max()) / 4
    except ModuleNotFoundError as e:
        return f"no {e.name}" + (f": pip install 'cxr-ray[{backend.extra}]'" if backend.extra else "")
    except Exception as e:  # compilers and exporters fail in their own ways, a missing one at its first call
        return first_line(e)
    if not difference <= slack * TOLERANCES[backend.precision]:
        return f"{DIFFERS} up to {difference:.1e} in probability"
    return Form(forward, layout_of(forward), difference)
