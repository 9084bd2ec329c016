"""Which operations a network's outputs come from, as a graph of operations tells: autograd's, ONNX's or TorchScript's.

Names of operations are compared by their letters alone: LogSoftmaxBackward0, LogSoftmax and aten::log_softmax are one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

DEEPEST = 200  # operations on the way from an output back to a layer
MATRICES = "addmm mm bmm baddbmm matmul linear gemm mv dot addmv einsum mkldnnlinear qlinearmatmul qgemm"
CONVOLUTIONS = "conv convd convolution convtranspose mkldnnconvolution qlinearconv"
NORMS = "nativebatchnorm cudnnbatchnorm batchnorm batchnormalization"
LAYERS = frozenset((*MATRICES.split(), *CONVOLUTIONS.split(), *NORMS.split()))  # whose outputs are logits
RESHAPED = "view unsafeview reshape reshapealias squeeze unsqueeze expand permute transpose t flatten contiguous flip"
COPIED = "alias clone tocopy copy to cast identity dropout detach dequantizelinear quantizelinear float half double"
CHOSEN = "slice select index indexselect gather split splitwithsizes unbind listunpack chunk narrow max min amax amin"
POOLED = "mean meand sum averagepool globalaveragepool avgpoold adaptiveavgpoold"
MOVED = frozenset((*RESHAPED.split(), *COPIED.split(), *CHOSEN.split(), *POOLED.split()))  # a value stays of its kind
JOINED = frozenset(["cat", "stack", "concat", "listconstruct", "tupleconstruct", "if", "where", "maximum", "minimum"])
ARITHMETIC = frozenset(["add", "sub", "rsub", "mul", "div", "neg"])
CLAMPED = frozenset(["clamp", "clampmin", "clampmax", "clip", "hardtanh"])
CONSTANT = frozenset(["constant", "constantofshape", "getattr"])
TURNED = {
    ("log", "sigmoid"): "logsigmoid",
    ("log", "softmax"): "logsoftmax",
    ("exp", "logsigmoid"): "sigmoid",
    ("exp", "logsoftmax"): "softmax",
}
SAME = {"hardsigmoid": "sigmoid", "truediv": "div", "divide": "div", "softmaxd": "softmax"}
MIXED = "several terms"
PROBABILITIES = frozenset({"sigmoid", "softmax"})
BOUNDED = PROBABILITIES | CLAMPED | {"logsigmoid", "logsoftmax", "tanh", "exp", "reciprocal", "erf"}  # logits are not


def letters(name: str) -> str:
    """The name of an operation as names are compared.

    >>> [letters(name) for name in ("MulBackward0", "aten::log_softmax", "ReduceMean", "aten::sigmoid_")]
    ['mul', 'logsoftmax', 'mean', 'sigmoid']
    """
    plain = re.sub(r"[^a-z]", "", re.sub(r"Backward\d*$", "", name.rpartition(":")[2]).lower())
    plain = plain.removeprefix("reduce")
    return SAME.get(plain, plain)


def origins(node: Any, name_of: Callable[[Any], str], parents_of: Callable[[Any], Sequence[Any]]) -> frozenset[str]:
    """The operations that a node of a graph gets its values from, behind those that only move, join or scale them.

    Args:
        node: that gives the outputs.
        name_of: the name of a node's operation, as ``letters`` gives it.
        parents_of: the nodes of its inputs, the first first; without constants.

    Returns:
        Names as of ``letters``; none for a constant.
    """
    known: dict[Any, frozenset[str]] = {}

    def of(node: Any, depth: int) -> frozenset[str]:
        if node not in known:
            known[node] = _found(name_of(node), lambda n: [of(p, depth + 1) for p in parents_of(node)[:n]], depth)
        return known[node]

    return of(node, 0)


def _found(name: str, of_parents: Callable[[int | None], Iterable[frozenset[str]]], depth: int) -> frozenset[str]:
    """The origins of an operation; ``of_parents``: those of its first so many parents, or of all."""
    if name in CONSTANT:
        return frozenset()
    if depth > DEEPEST:
        return frozenset({MIXED})
    if name in MOVED:
        return _union(of_parents(1))
    if name in JOINED:
        return _union(of_parents(None))
    if name in ARITHMETIC:
        return _of_terms(name, [found for found in of_parents(None) if found])
    if name in CLAMPED:
        found = _union(of_parents(1))
        return frozenset({name}) if found <= LAYERS else found
    if name in ("log", "exp"):
        return frozenset({TURNED.get((name, o), name) for o in _union(of_parents(1))} or {name})
    return frozenset({name})


def _of_terms(name: str, terms: list[frozenset[str]]) -> frozenset[str]:
    """The origins of a sum, product or ratio. log p - log(1 - p) and p / (1 - p) are no longer of p's kind."""
    found = _union(terms)
    if len(terms) > 1 and name == "div":
        return found if found <= LAYERS else found - PROBABILITIES | {MIXED}
    return frozenset({MIXED if origin.startswith("log") and origin != "log" else origin for origin in found})


def _union(parts: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*parts)
