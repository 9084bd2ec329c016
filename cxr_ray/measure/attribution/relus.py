"""Copies of a network whose ReLUs and max pooling can be hooked one by one.

captum's guided backpropagation and DeepLIFT change the gradient of modules. A ReLU that is a function, or a module that
serves twice, escapes them. So the network is traced (torch.fx), each call of a ReLU becomes a module of its own, and a
network in which that cannot be done is refused.
"""

from __future__ import annotations

import copy
import operator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cxr_ray.errors import UserError
from cxr_ray.models.networks import Classifier

_KEPT: WeakKeyDictionary[Classifier, tuple[Any, Classifier]] = WeakKeyDictionary()
RELU_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
RELU_METHODS = ("relu", "relu_")
GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.LogSoftmax)  # which weigh features, or come after the logits
# functions without an activation of their own; what is not among them might hide one
KNOWN_FUNCTIONS = {
    *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv, operator.floordiv),
    *(operator.getitem, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, getattr),
    *(torch.add, torch.sub, torch.mul, torch.cat, torch.concat, torch.flatten, torch.mean, torch.stack, torch.chunk),
    *(torch.split, torch.transpose, torch.permute, torch.reshape, torch.squeeze, torch.unsqueeze, torch.sigmoid),
    *(torch.sum, torch._assert, F.adaptive_avg_pool2d, F.avg_pool2d, F.max_pool2d, F.adaptive_max_pool2d, F.dropout),
    *(F.batch_norm, F.conv2d, F.linear, F.pad, F.interpolate, F.softmax, F.log_softmax, F.sigmoid, F.hardsigmoid),
    *(F.group_norm, F.layer_norm, F.instance_norm),
}
KNOWN_METHODS = {
    *("add", "add_", "sub", "mul", "mul_", "div", "flatten", "view", "reshape", "size", "dim", "mean", "sum", "chunk"),
    *("split", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "expand", "sigmoid", "float", "to"),
    *("detach", "clone"),  # as hooks keep features
}


def with_separate_relus(model: Classifier, pools: bool = False) -> Classifier:
    """A copy that shares the weights, whose ReLUs neither work in place nor serve twice: captum hooks each of them.

    Args:
        model: the classifier; its copy is kept until a weight, a module or a hook is replaced.
        pools: take max pooling apart into ReLUs as well.

    Raises:
        UserError: the network cannot be traced, or its scores change so.
    """
    tensors = [id(t) for t in [*model.parameters(), *model.buffers()]]
    key = pools, tensors, [(name, type(m), _hooks(m)) for name, m in model.named_modules()]
    if (kept := _KEPT.get(model)) is not None and kept[0] == key:
        return kept[1]
    copied = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
    traced = _traced(copied.network)
    if pools:
        for parent in list(traced.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.MaxPool2d):
                    setattr(parent, name, ReluMaxPool(child))
    traced.train(model.network.training)
    _compare(model, traced)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):  # of the network as a whole, which tracing leaves out
        getattr(traced, hooks).update(getattr(copied.network, hooks))
    copied.network = traced
    _KEPT[model] = key, copied
    return copied


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values(), *module._backward_hooks.values()]


def _traced(network: nn.Module) -> fx.GraphModule:
    """The network as a graph of calls, each ReLU a module of its own."""
    try:
        traced = fx.symbolic_trace(network)
    except Exception as e:  # tracing fails in as many ways as there are networks
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"the network cannot be traced, so that its ReLUs could be found ({reason})") from None
    for n, node in enumerate(list(traced.graph.nodes)):
        if _is_relu(traced, node):
            name = f"separate_relu_{n}"
            traced.add_submodule(name, nn.ReLU())
            with traced.graph.inserting_before(node):
                relu = traced.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
            node.replace_all_uses_with(relu)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), nn.ReLU)
    return (node.op == "call_function" and node.target in RELU_FUNCTIONS) or (
        node.op == "call_method" and node.target in RELU_METHODS
    )


@torch.no_grad()
def _compare(model: Classifier, traced: nn.Module) -> None:
    """Refuse a copy that scores noise otherwise: a ReLU in place may have changed what another layer read."""
    size, mean = model.spec.size, model.mean
    dtype = next((w.dtype for w in model.network.parameters()), mean.dtype)
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(mean.device)
    images = model.normalize(noise).to(dtype)
    with torch.autocast(mean.device.type, enabled=False):
        expected, made = model.network.forward(images), traced(images)
    if not torch.allclose(made, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError("its scores change once its ReLUs no longer work in place")


def foreign_activations(model: Classifier) -> str | None:
    """Why guided backpropagation cannot be had of a network: it is defined where every activation is a ReLU.

    Returns:
        None where it can: there are ReLUs, and nothing else that cuts or bends features.
    """
    try:
        traced = with_separate_relus(model).network
    except UserError as e:
        return str(e)
    found = {node.op: what for node in reversed(traced.graph.nodes) if (what := _foreign(traced, node))}
    for op in ("call_module", "call_function", "call_method"):
        if what := found.get(op):
            return f"guided backpropagation is defined for ReLUs alone, and the network has {what}"
    if not any(isinstance(module, nn.ReLU) for module in traced.modules()):
        return "guided backpropagation is defined for ReLUs, and the network has none"
    return None


def _foreign(traced: fx.GraphModule, node: fx.Node) -> str | None:
    """What a node does that might be an activation other than a ReLU."""
    if node.op == "call_function" and node.target not in KNOWN_FUNCTIONS:
        return f"the function {getattr(node.target, '__name__', node.target)}"
    if node.op == "call_method" and node.target not in KNOWN_METHODS:
        return f"the method {node.target}"
    if node.op == "call_module":
        module: Any = traced.get_submodule(str(node.target))
        if type(module).__module__ == nn.modules.activation.__name__ and not isinstance(module, (nn.ReLU, *GATES)):
            return f"{type(module).__name__} ({node.target})"
    return None


class ReluMaxPool(nn.Module):
    """Max pooling out of ReLUs, max(a, b) = a + relu(b - a), first along rows, then along columns."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self.width, self.stride, self.padding = (
            n if isinstance(n, int) else n[0] for n in (pool.kernel_size, pool.stride, pool.padding)
        )
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(2 * (self.width - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Maxima over windows."""
        relus = iter(self.relus)
        x = F.pad(x, [self.padding] * 4, mode="replicate")  # what is repeated lies in the window anyway
        for axis in (3, 2):
            x, *others = x.unfold(axis, self.width, self.stride).unbind(-1)
            for other in others:
                x = x + next(relus)(other - x)
        return x
