"""Networks that are files whole, layers and weights: ONNX and TorchScript. They score images, and show nothing inside.

An ONNX file is a graph of ONNX's own operators, which onnxruntime computes: it runs no code of the file's author.
TorchScript is a program, which torch's interpreter runs: such a file is read where the user says that it is one.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from cxr_ray.errors import CheckpointError, MissingPackageError, UserError, first_line
from cxr_ray.models.statefiles import read_bytes

SAYS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log-softmax"}
SAYS |= {"softmax": "softmax", "sigmoid": "sigmoid", "log_softmax": "log-softmax"}  # TorchScript's, in aten
UNDONE = ("softmax", "sigmoid")
PASSED_ON = (  # by these a score stays what it is; slices too, whose softmax is then that of one class
    *("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"),
    *("flatten", "index_select", "reshape", "select", "slice", "squeeze", "to", "unsqueeze", "view"),
)


class ScoringOnly(nn.Module):
    """A network of images to outputs, without layers, weights or gradients that could be read.

    Attributes:
        kind: what it is, in words.
        ends_in: softmax or sigmoid, whose outputs become log-probabilities and logits; None for logits.
        notes: on how it is read, each a sentence.
        is_softmax: its outputs are those of one softmax, whether that is undone or left out.
    """

    def __init__(
        self,
        kind: str,
        score: Callable[[Tensor], Tensor],
        ends_in: str | None,
        notes: Sequence[str] = (),
        is_softmax: bool = False,
    ):
        super().__init__()
        self.kind, self.score, self.ends_in, self.notes = kind, score, ends_in, tuple(notes)
        self.is_softmax = is_softmax or ends_in == "softmax"

    def forward(self, images: Tensor) -> Tensor:
        """Model-space images to logits; without a gradient."""
        with torch.no_grad():
            outputs = self.score(images.detach())
        if isinstance(outputs, Tensor) and outputs.ndim == 1:
            outputs = outputs[:, None]
        if self.ends_in == "softmax":
            return outputs.log()
        return outputs.logit() if self.ends_in == "sigmoid" else outputs


def read_torchscript(path: str) -> ScoringOnly:
    """A TorchScript file; torch's interpreter runs its program.

    Raises:
        CheckpointError: it is none.
    """
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would have users export otherwise; files remain
            module = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    except Exception as e:  # torch raises whatever its parser meets
        raise CheckpointError(
            f"got {path}, which cannot be read as TorchScript ({first_line(e)}); expected a file of torch.jit.save; "
            "give one, or name the network that its weights are of (arch)."
        ) from None
    return scripted(module)


def scripted(module: Any) -> ScoringOnly:
    """A TorchScript module that is loaded."""
    ends_in = None
    try:
        graph = module.inlined_graph
        node = next(iter(graph.outputs())).node()
        while (kind := node.kind().removeprefix("aten::")) in PASSED_ON:
            node = next(iter(node.inputs())).node()
        ends_in = SAYS.get(kind)
    except (RuntimeError, AttributeError, StopIteration):  # a graph that cannot be inlined: outputs are looked at
        pass
    if ends_in not in UNDONE:
        return ScoringOnly("a TorchScript file", _plain(module), None, is_softmax=ends_in is not None)
    notes = [f"it ends in a {ends_in}, which is undone: scores are log-odds"]
    return ScoringOnly("a TorchScript file", _plain(module), ends_in, notes)


def _plain(module: Any) -> Callable[[Tensor], Tensor]:
    """The module as a function, whose parameters are not those of the network around it."""

    def score(images: Tensor) -> Tensor:
        first = next(module.parameters(), images)
        if first.device != images.device:
            module.to(images.device)
        out = module(images.to(first.dtype))
        return out.float() if isinstance(out, Tensor) else out

    return score


def read_onnx(path: str) -> ScoringOnly:
    """An ONNX file, computed by onnxruntime on CPUs.

    Raises:
        MissingPackageError: onnx or onnxruntime is not installed.
        CheckpointError: it is none, or does not take images [B, 3 or 1, S, S].
    """
    onnx, runtime = _package("onnx"), _package("onnxruntime")
    data = read_bytes(path)
    refuse = partial(_refuse_onnx, path)
    try:
        graph = onnx.load_model_from_string(data)
        if "://" not in path:
            folder = path.rpartition("/")[0] or "."
            onnx.external_data_helper.load_external_data_for_model(graph, folder)  # refuses paths outside the folder
        ends_in, notes = _without_end(graph.graph), []
        if ends_in in UNDONE:
            notes.append(f"its last layer, a {ends_in}, is left out: scores are log-odds")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        session = runtime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnx, protobuf and onnxruntime each raise their own
        refuse(f"which cannot be read ({first_line(e)})")
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        refuse(f"with {len(inputs)} inputs and {len(outputs)} outputs")
    shape, kind = inputs[0].shape, inputs[0].type
    if len(shape) != 4 or shape[1] not in (1, 3) or kind not in _TYPES:
        refuse(f"whose input is {shape} of {kind}")
    if shape[1] == 1:
        notes.append("it reads one channel, and gets the mean of three: give mean and std as it was trained with")
    is_softmax = ends_in in ("softmax", "log-softmax")
    return ScoringOnly("an ONNX file", _Session(session, shape, _TYPES[kind]), None, notes, is_softmax)


_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class _Session:
    """An onnxruntime session as a function of images; a file of fixed batches gets batches of that size."""

    def __init__(self, session: Any, shape: Sequence[Any], dtype: Any):
        self.session, self.dtype = session, dtype
        self.name, self.channels = session.get_inputs()[0].name, shape[1]
        self.fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None

    def __call__(self, images: Tensor) -> Tensor:
        read = images.mean(1, keepdim=True) if self.channels == 1 else images
        given = np.ascontiguousarray(read.cpu().numpy().astype(self.dtype))
        n = self.fixed or len(given)
        parts = [self._run(given[first : first + n], n) for first in range(0, len(given), n)]
        return torch.from_numpy(np.concatenate(parts)).float().to(images.device)

    def _run(self, part: Any, n: int) -> Any:
        missing = n - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        return self.session.run(None, {self.name: full})[0][: len(part)]


def _without_end(graph: Any) -> str | None:
    """Take the softmax or sigmoid off the end of a graph, in place; which it was, or that it is a log-softmax."""
    if len(graph.output) != 1:
        return None
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(graph.output[0].name)
    while node is not None and node.op_type in PASSED_ON:
        node = made_by.get(node.input[0])
    if node is None or node.op_type not in SAYS:
        return None
    what = SAYS[node.op_type]
    if what in UNDONE:
        node.op_type = "Identity"
        del node.attribute[:]
    return what


def _refuse_onnx(path: str, what: str) -> NoReturn:
    raise CheckpointError(
        f"got {path}, {what}; expected an ONNX file of one input [B, 3, S, S] (or [B, 1, S, S]) and one output of "
        "logits [B, K]; export such a one."
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackageError(
            f"got an ONNX file; expected {name} to be installed; install it: pip install 'cxr-ray[onnx]'."
        ) from None


FILES: dict[str, tuple[Callable[[str], ScoringOnly], str]] = {  # by arch, as users name it
    "onnx": (read_onnx, "A network of an ONNX file, which is scored: explainers by perturbation (extra onnx)."),
    "torchscript": (
        read_torchscript,
        "A network of a TorchScript file, which is scored: explainers by perturbation. Torch runs the file's program.",
    ),
}


def not_trained(kind: str) -> Callable[[int], nn.Module]:
    """What builds such a network: nothing does."""

    def build(outputs: int) -> nn.Module:
        raise UserError(
            f"got {kind}, a network that is a file whole; expected one that can be built; name its file under "
            "checkpoints, where it is scored, or another network."
        )

    return build


def looks_like_probabilities(outputs_BK: Tensor) -> bool:
    """Whether several outputs are shares of one: those of a softmax, and no logits."""
    if outputs_BK.ndim != 2 or outputs_BK.shape[1] < 2 or not torch.isfinite(outputs_BK).all():
        return False
    total = outputs_BK.double().sum(1)
    return bool((outputs_BK >= 0).all() and ((total - 1).abs() < 1e-4).all())
