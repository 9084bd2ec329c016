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
from cxr_ray.models import origins
from cxr_ray.models.statefiles import read_bytes

UNDONE = ("softmax", "sigmoid")
LARGEST_SHARE = 1 - 2**-24  # below 1 in float32; its logit is 16.6
PASSED_ON = (  # by these a score stays what it is; slices too, whose softmax is then that of one class
    *("cast", "flatten", "gather", "identity", "reshape", "slice", "split", "squeeze", "unsqueeze"),
    *("indexselect", "select", "to", "view"),
)


class ScoringOnly(nn.Module):
    """A network of images to outputs, without layers, weights or gradients that could be read.

    Attributes:
        kind: what it is, in words.
        ends_in: softmax or sigmoid, whose outputs become log-probabilities and logits; None for logits.
        notes: on how it is read, each a sentence.
        origins: the operations that its outputs come from (``origins.origins``), with what is left out.
        is_undone: whether a softmax or sigmoid at its end is undone or left out.
    """

    def __init__(
        self,
        kind: str,
        score: Callable[[Tensor], Tensor],
        ends_in: str | None,
        notes: Sequence[str] = (),
        origins: frozenset[str] = frozenset(),
        is_undone: bool = False,
    ):
        super().__init__()
        self.kind, self.score, self.ends_in, self.notes = kind, score, ends_in, tuple(notes)
        self.origins, self.is_undone = origins, is_undone

    def forward(self, images: Tensor) -> Tensor:
        """Model-space images to logits; without a gradient."""
        with torch.no_grad():
            outputs = self.score(images.detach())
        if isinstance(outputs, Tensor) and outputs.ndim == 1:
            outputs = outputs[:, None]
        if self.ends_in is None:
            return outputs
        shares = outputs.clamp(min=torch.finfo(torch.float32).tiny)  # whose logarithms are finite
        return shares.log() if self.ends_in == "softmax" else shares.clamp(max=LARGEST_SHARE).logit()


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
    kind, score, found, last = "a TorchScript file", _plain(module, module), frozenset[str](), None
    try:
        graph = module.inlined_graph  # a copy
        node = next(iter(graph.outputs())).node()
        found = origins.origins(node, _name_of_node, _nodes_before)
        last = _last(node, _name_of_node, _nodes_before)
    except (RuntimeError, AttributeError, StopIteration):  # a graph that cannot be inlined: outputs are looked at
        pass
    if last is None:
        return ScoringOnly(kind, score, None, origins=found)
    ends_in = _name_of_node(last)
    try:
        last.output().replaceAllUsesWith(next(iter(last.inputs())))
        without = torch._C._create_function_from_graph("forward", graph)
    except (RuntimeError, AttributeError):
        most = "16.6" if ends_in == "sigmoid" else "87.3"
        note = f"it ends in a {ends_in}, which is undone: scores are log-odds, and none is told beyond {most}"
        return ScoringOnly(kind, score, ends_in, [note], found, True)
    note = f"its last operation, a {ends_in}, is left out: scores are log-odds"
    return ScoringOnly(kind, _plain(module, partial(without, module._c)), None, [note], found, True)


def _name_of_node(node: Any) -> str:
    return origins.letters(node.kind())


def _nodes_before(node: Any) -> list[Any]:
    """The nodes of a TorchScript graph that give another its inputs; of a branch, those that end its blocks."""
    if node.kind() == "prim::If":
        return [value.node() for block in node.blocks() for value in block.outputs()]
    return [node for value in node.inputs() if (node := value.node()).kind() not in ("prim::Param", "prim::Constant")]


def _last(node: Any, name_of: Callable[[Any], str], nodes_before: Callable[[Any], list[Any]]) -> Any:
    """The softmax or sigmoid at the end, behind what passes scores on; None: there is none."""
    while name_of(node) in PASSED_ON and (before := nodes_before(node)):
        node = before[0]
    return node if name_of(node) in UNDONE else None


def _plain(module: Any, forward: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The module as a function, whose parameters are not those of the network around it; ``forward``: what it does."""

    def score(images: Tensor) -> Tensor:
        first = next(module.parameters(), images)
        if first.device != images.device:
            module.to(images.device)
        out = forward(images.to(first.dtype))
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
        found, left_out = _without_end(graph.graph)
        notes = [f"its last layer, a {left_out}, is left out: scores are log-odds"] if left_out else []
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
    score = _Session(session, shape, _TYPES[kind])
    return ScoringOnly("an ONNX file", score, None, notes, found, left_out is not None)


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


def _without_end(graph: Any) -> tuple[frozenset[str], str | None]:
    """Take the softmax or sigmoid off the end of a graph, in place; what its outputs came from, and which it was."""
    made_by = {name: number for number, node in enumerate(graph.node) for name in node.output}

    def name_of(number: int) -> str:
        return origins.letters(graph.node[number].op_type)

    def before(number: int) -> list[int]:
        return [made_by[name] for name in graph.node[number].input if name in made_by]

    if len(graph.output) != 1 or (end := made_by.get(graph.output[0].name)) is None:
        return frozenset(), None
    found, last = origins.origins(end, name_of, before), _last(end, name_of, before)
    if last is None:
        return found, None
    what = name_of(last)
    graph.node[last].op_type = "Identity"
    del graph.node[last].attribute[:]
    return found, what


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
