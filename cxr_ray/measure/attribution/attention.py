"""Attention rollout, and where it can be had.

A transformer computes its attention matrices inside fused kernels, which show none. For one pass each attention module
is told to compute them in the open: torch's ``MultiheadAttention`` by ``need_weights``, timm's by ``fused_attn``.

Shapes: B images, h heads, T tokens (a prefix of class and register tokens, then the grid), V side of the grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cxr_ray.errors import UserError
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.models import structure
from cxr_ray.models.networks import Classifier

MIXERS = (nn.modules.conv._ConvNd, nn.AvgPool2d, nn.MaxPool2d)  # which exchange what tokens hold
SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)
_KEPT: WeakKeyDictionary[Classifier, tuple[Any, Tokens | UserError]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Tokens:
    """What rollout reads of a network.

    Attributes:
        layers: dotted names of the attention modules, the first first.
        first, side: the number of the grid's first token, and V.
        read: the tokens that the scores are made of: the class token, or those of the grid, whose mean is taken.
    """

    layers: tuple[str, ...]
    first: int
    side: int
    read: slice


def attention_rollout(model: Classifier, inputs: Inputs) -> Tensor:
    """Attention rollout (Abnar & Zuidema, ACL 2020): the product over blocks of (mean over heads + identity) / 2.

    The map is the row of the class token, or the mean row of the tokens that the head pools, at the grid's tokens. It
    is the same for every target: nothing behind the attention takes part.

    Raises:
        UserError: the network has no attention that says how tokens mix.
    """
    found = tokens_of(model)
    rollout: Tensor | None = None
    with torch.no_grad(), _shown(model.network, found.layers) as matrices:
        model.network(inputs.images)
    if len(matrices) != len(found.layers):
        raise UserError(f"{len(matrices)} of {len(found.layers)} attention modules showed their matrices")
    for _, attention in matrices:
        mixed = (attention + torch.eye(attention.shape[-1], device=attention.device)) / 2
        mixed = mixed / mixed.sum(-1, keepdim=True)
        rollout = mixed if rollout is None else mixed @ rollout
    assert rollout is not None  # there is a layer
    row = rollout[:, found.read].mean(1)
    return row[:, found.first :].unflatten(1, (found.side, found.side))


def tokens_of(model: Classifier) -> Tokens:
    """The tokens of a network, found by a traced pass over noise and kept until a module is replaced.

    Raises:
        UserError: tokens are not mixed by attention alone, or attention is of a form whose matrices cannot be read.
    """
    key = [(name, type(module)) for name, module in model.network.named_modules()]
    if (kept := _KEPT.get(model)) is None or kept[0] != key:
        try:
            kept = key, _find(model)
        except UserError as e:
            kept = key, e
        _KEPT[model] = kept
    if isinstance(kept[1], UserError):
        raise kept[1]
    return kept[1]


def why_none(model: Classifier) -> str | None:
    """Why rollout cannot be had of a network; None where it can."""
    try:
        tokens_of(model)
    except UserError as e:
        return str(e)
    return None


def _layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if _is_torchs(module) or _is_timms(module)]


def _is_torchs(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def _is_timms(module: nn.Module) -> bool:
    return isinstance(getattr(module, "fused_attn", None), bool) and isinstance(
        getattr(module, "attn_drop", None), nn.Dropout
    )


@contextmanager
def _shown(
    network: nn.Module, layers: Iterator[str] | tuple[str, ...] | list[str]
) -> Iterator[list[tuple[str, Tensor]]]:
    """The attention matrices of every call inside, [B, T, T], the mean over heads, as they are made."""
    matrices: list[tuple[str, Tensor]] = []
    with ExitStack() as stack:
        for name in layers:
            module: Any = network.get_submodule(name)
            if _is_torchs(module):

                def ask(m: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                    return args[:3], {**_named(args), **kwargs, "need_weights": True, "average_attn_weights": True}

                def keep(m: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    matrices.append((name, output[1].detach().float()))

                stack.callback(module.register_forward_pre_hook(ask, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(keep).remove)
            else:

                def keep_heads(m: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                    matrices.append((name, output.detach().float().mean(1) if output.ndim == 4 else output.detach()))

                stack.callback(setattr, module, "fused_attn", module.fused_attn)
                module.fused_attn = False
                stack.callback(module.attn_drop.register_forward_hook(keep_heads).remove)
        yield matrices


def _named(args: Any) -> dict[str, Any]:
    """MultiheadAttention's arguments after query, key and value, by name."""
    return dict(zip(("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights"), args[3:], strict=False))


class _OtherAttention(TorchFunctionMode):
    """Counts attention that is computed elsewhere than in the modules that show it."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.softmax = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.fused += func is F.scaled_dot_product_attention
        self.softmax += func in SOFTMAX and isinstance(out, Tensor) and out.ndim >= 3
        return out


def _find(model: Classifier) -> Tokens:
    layers = _layers(model.network)
    if not layers:
        raise UserError("the network has no attention of the form of torch.nn.MultiheadAttention or of timm")
    size, first = model.spec.size, next(model.network.parameters(), torch.empty(0))
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = (noise * 4 - 2).to(first.device, first.dtype)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(first.device.type, enabled=False):
        images.requires_grad_()
        other = _OtherAttention()
        with _shown(model.network, layers) as matrices, other:
            calls, out = structure.traced(model.network, images)
        _check_matrices(layers, matrices, other, {call.name: call for call in calls}, model)
        names = [name for name, _ in matrices]
        return _tokens(model, names, matrices[0][1].shape[-1], calls, out)


def _check_matrices(
    layers: list[str],
    matrices: list[tuple[str, Tensor]],
    other: _OtherAttention,
    calls: dict[str, structure.Call],
    model: Classifier,
) -> None:
    """Refuse attention that is not that of all tokens to all tokens, one block after another."""
    timms = sum(_is_timms(model.network.get_submodule(name)) for name, _ in matrices)
    if sorted(layers) != sorted(name for name, _ in matrices):
        raise UserError("an attention module is called more than once, or never, or does not show its matrix")
    if other.fused or other.softmax != timms:
        raise UserError("the network computes attention in a form whose matrices cannot be read")
    shape = matrices[0][1].shape
    for name, matrix in matrices:
        read = calls[name].read
        module: Any = model.network.get_submodule(name)
        tokens = None if read is None or read.ndim != 3 else read.shape[0 if _is_sequence_first(module) else 1]
        if (
            matrix.shape != shape
            or tokens != matrix.shape[-1]
            or len(matrix) != 2
            or matrix.shape[1] != matrix.shape[2]
        ):
            raise UserError(f"the attention of {name} is not that of all tokens of an image to all, in every block")
        if not torch.allclose(matrix.sum(-1), torch.ones(()).to(matrix), atol=1e-3):
            raise UserError(f"the attention of {name} has rows that do not add up to one")
    for (before, _), (after, _) in itertools.pairwise(matrices):
        read, output = calls[after].read, calls[before].output
        assert read is not None  # as seen above
        if torch.autograd.grad(read.sum(), output, retain_graph=True, allow_unused=True)[0] is None:
            raise UserError(f"the attention of {after} does not read what that of {before} gives: they are parallel")


def _is_sequence_first(module: Any) -> bool:
    return _is_torchs(module) and not module.batch_first


def _tokens(model: Classifier, layers: list[str], tokens: int, calls: list[structure.Call], out: Tensor) -> Tokens:
    names = [call.name for call in calls]
    behind = calls[names.index(layers[0]) + 1 :]
    if mixer := next((call.name for call in behind if isinstance(call.module, MIXERS)), None):
        raise UserError(f"tokens also mix outside of attention, in {mixer}")
    prefixes = getattr(model.network, "num_prefix_tokens", None)
    prefixes = range(structure.MOST_PREFIX + 1) if prefixes is None else [prefixes]
    prefix = next((p for p in prefixes if math.isqrt(max(0, tokens - p)) ** 2 == tokens - p > 1), None)
    if prefix is None:
        raise UserError(f"its {tokens} tokens lie on no square grid")
    return Tokens(tuple(layers), prefix, math.isqrt(tokens - prefix), _read(model, prefix, tokens, behind, out))


def _read(model: Classifier, prefix: int, tokens: int, calls: list[structure.Call], out: Tensor) -> slice:
    """The tokens that the head reads: one before the grid, or the mean of some."""
    heads = [c for c in calls if isinstance(c.module, nn.Linear) and c.module.out_features == out.shape[1]]
    if len(heads) > 1:  # as behind a class and a distillation token
        raise UserError(f"the scores come from several heads ({', '.join(call.name for call in heads)})")
    head = next((call for call in heads if call.name == model.structure.head), None)
    end = out if head is None or head.read is None else head.read  # a head may be zero before it is trained
    weights = torch.rand(end.shape, generator=torch.Generator().manual_seed(0)).to(end)
    for call in reversed(calls):
        if call.output.ndim != 3 or call.output.shape[:2] != (2, tokens):
            continue
        gradient = torch.autograd.grad((end * weights).sum(), call.output, retain_graph=True, allow_unused=True)[0]
        if gradient is None or not gradient.any():
            continue
        used = gradient[0].abs().sum(-1) > 0
        places = used.nonzero()[:, 0].tolist()
        is_mean = torch.allclose(gradient[0][used], gradient[0][used][:1].expand(len(places), -1), rtol=1e-3, atol=1e-7)
        if len(places) == 1 and places[0] < prefix:
            return slice(places[0], places[0] + 1)
        if is_mean and places in (list(range(prefix, tokens)), list(range(tokens))):
            return slice(places[0], tokens)
        break
    raise UserError("the scores read neither one class token nor the mean of the tokens")
