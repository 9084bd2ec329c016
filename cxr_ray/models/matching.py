"""A state dict as people have it to a network: prefixes, heads of several layers, first layers of one channel.

What is done to the weights is told in notes; what cannot be done without a guess is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

import torch
from torch import Tensor, nn

from cxr_ray.errors import CheckpointError, UserError
from cxr_ray.models.networks import NETWORKS

OTHER_OUTPUTS = 3  # of a second network, whose head alone has another shape
FASTAI_HEAD = "1."
HEADS = ("classifier", "fc", "head", "output", "linear", "last_linear")  # as people call them


@dataclass
class Matched:
    """Weights that fit a network.

    Attributes:
        state: its names to tensors.
        outputs: how many the head has; None: as many as the network has, whose head is not known.
        notes: what was done, each a sentence.
        head: what replaces the network's last layer; None: nothing.
        concat_pool: whether the head reads maxima and means of the features, as fastai's does.
    """

    state: dict[str, Tensor]
    outputs: int | None
    notes: list[str] = field(default_factory=list)
    head: nn.Sequential | None = None
    concat_pool: bool = False


class ConcatPool(nn.Module):
    """Global maxima and means, as fastai pools: [B, K, H, W] to [B, 2 K, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Maxima first."""
        return torch.cat([nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)], 1)


@lru_cache(maxsize=32)
def _shapes(arch: str, outputs: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's weights."""
    network = NETWORKS[arch]
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                state = network.build(outputs).state_dict()
        except UserError:
            raise
        except Exception:  # some networks compute with numbers while they are built
            state = network.build(outputs).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


@lru_cache(maxsize=32)
def _children(arch: str) -> tuple[str, ...]:
    with torch.random.fork_rng(devices=[]):
        return tuple(name for name, _ in NETWORKS[arch].build(2).named_children())


def head_of(arch: str) -> str | None:
    """The dotted name of a network's last layer, whose shape follows the number of outputs.

    None where there is no such layer, or several: as where a factory ignores the number.
    """
    two, other = _shapes(arch, 2), _shapes(arch, OTHER_OUTPUTS)
    owners = {name.rpartition(".")[0] for name in two if two[name] != other.get(name)}
    return owners.pop() if len(owners) == 1 else None


def match(path: str, state: Mapping[str, Tensor], arch: str) -> Matched:
    """The weights of a file under the names of a network.

    Raises:
        CheckpointError: the head is missing, or of a form that is not known.
    """
    head = head_of(arch)
    found, notes = _renamed(path, state, arch, head)
    matched = Matched(found, None) if head is None else _with_head(path, found, arch, head)
    matched.notes = notes + matched.notes
    matched.state = _widened(matched.state, arch, matched.notes)
    return matched


def body(path: str, state: Mapping[str, Tensor], arch: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a file under the names of a network, whatever its head; and what was done, each a sentence.

    Raises:
        CheckpointError: they stand in it more than once.
    """
    found, notes = _renamed(path, state, arch, head_of(arch))
    return _widened(found, arch, notes), notes


def _renamed(
    path: str, state: Mapping[str, Tensor], arch: str, head: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the network's names, without prefixes and what is not of the network; and what was done."""
    own = _shapes(arch, 2)
    state, notes = _modern(state)
    weights = [name for name in own if not name.endswith("num_batches_tracked")]
    expected = [n for n in weights if not (head and n.startswith(f"{head}."))] or weights  # or: it is all head
    counts = {prefix: sum(f"{prefix}{n}" in state for n in expected) for prefix in _prefixes(state, expected)}
    best = max(counts.values(), default=0)
    if best < len(expected) / 2:
        by_position = _by_position(state, own, arch)
        return (dict(state), notes) if by_position is None else (by_position[0], notes + by_position[1])
    chosen = [prefix for prefix, n in counts.items() if n == best]
    if len(chosen) > 1:
        raise CheckpointError(
            f"got {path} with the weights of {arch} {len(chosen)} times, under {', '.join(map(repr, chosen))}; "
            "expected them once; save those that are meant."
        )
    prefix = chosen[0]
    children = {name.split(".")[0] for name in own}
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    inside = {name: value for name, value in inside.items() if name.split(".")[0] in {*children, *HEADS}}
    if prefix:  # a head may stand beside the body
        inside |= {n: v for n, v in state.items() if n.split(".")[0] in {head, *HEADS} and n not in inside}
    left = [name for name in state if name not in inside and name.removeprefix(prefix) not in inside]
    notes += [f"the names of its layers begin with {prefix!r}, which was taken off"] if prefix else []
    notes += [f"it also holds {_some(left)}, of no layer of {arch}: left out"] if left else []
    return inside, notes


def _modern(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """The weights of a DenseNet under the names that PyTorch allows since 0.4, norm1 for norm.1; and a note."""
    renamed = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name): value for name, value in state.items()
    }
    if renamed.keys() == state.keys() or len(renamed) < len(state):
        return state, []
    return renamed, ["its dense layers have the names of PyTorch before 0.4 (norm.1), and were renamed (norm1)"]


def _prefixes(state: Mapping[str, Tensor], body: list[str]) -> list[str]:
    """What stands before the name of one of the network's weights, the shortest first."""
    probes = [*body[:2], *body[-2:]]
    found = {name[: -len(probe)] for name in state for probe in probes if name.endswith(f".{probe}") or name == probe}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _by_position(
    state: Mapping[str, Tensor], own: Mapping[str, tuple[int, ...]], arch: str
) -> tuple[dict[str, Tensor], list[str]] | None:
    """Weights of nn.Sequential(*network.children()), alone, under a name, or as fastai saves them."""
    children = _children(arch)
    prefixes = {name[: m.start()] for name in state for m in re.finditer(r"(?<![^.])\d+\.", name)}
    for prefix in sorted(prefixes, key=len):
        out = {}
        for name, value in state.items():
            if (m := re.match(rf"{re.escape(prefix)}(\d+)\.(.+)", name)) and int(m[1]) < len(children):
                out[f"{children[int(m[1])]}.{m[2]}"] = value
        hits = sum(name in out and tuple(out[name].shape) == shape for name, shape in own.items())
        if hits >= 0.8 * sum(not name.endswith("num_batches_tracked") for name in own):
            rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
            known = {name: value for name, value in out.items() if name in own}
            return {**rest, **known}, [f"its layers are numbered under {prefix!r}, and were named by their order"]
    return None


def _with_head(path: str, state: dict[str, Tensor], arch: str, head: str) -> Matched:
    """The weights with their head, in whichever form it is."""
    weight = state.get(f"{head}.weight")
    if weight is not None:
        outputs = weight.shape[0] if weight.ndim else 0
        if f"{head}.bias" in state or f"{head}.bias" not in _shapes(arch, 2) or weight.ndim != 2:
            return Matched(state, outputs)
        without = nn.Sequential(nn.Linear(weight.shape[1], outputs, bias=False))
        rest = {name: value for name, value in state.items() if name != f"{head}.weight"}
        return Matched({**rest, f"{head}.0.weight": weight}, outputs, [], without)
    if f"{FASTAI_HEAD}8.weight" in state and f"{FASTAI_HEAD}2.weight" in state:
        return _with_layers(state, FASTAI_HEAD, head, concat_pool=True) or _no_head(path, state, arch, head)
    if layers := _with_layers(state, f"{head}.", head):
        return layers
    other = next((name for name in HEADS if name != head and f"{name}.weight" in state), None)
    if other is None:
        return _no_head(path, state, arch, head)
    renamed = {re.sub(rf"^{other}\.", f"{head}.", name): value for name, value in state.items()}
    matched = _with_head(path, renamed, arch, head)
    matched.notes.insert(0, f"its head is called {other}, and is taken for {head}")
    return matched


def _no_head(path: str, state: Mapping[str, Tensor], arch: str, head: str) -> NoReturn:
    raise CheckpointError(
        f"got {path} without {head}.weight; expected the state dict of {arch} (it has {_some(list(state))}); give one, "
        "or name the network that it is of (arch)."
    )


def _with_layers(state: Mapping[str, Tensor], prefix: str, head: str, concat_pool: bool = False) -> Matched | None:
    """The weights with a head of several layers that stands under a prefix; None where there is none."""
    parts = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    made = _sequential(parts)
    if made is None:
        return None
    layers, outputs, notes = made
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    named = {f"{head}.{name}": value for name, value in parts.items()}
    return Matched({**rest, **named}, outputs, notes, layers, concat_pool)


def _sequential(parts: Mapping[str, Tensor]) -> tuple[nn.Sequential, int, list[str]] | None:
    """The layers of a head from their weights: linear ones, norms, and ReLUs between where places are free."""
    numbered = {int(m[1]) for name in parts if (m := re.match(r"(\d+)\.[a-z_]+$", name))}
    if not numbered or any(not re.match(r"\d+\.[a-z_]+$", name) for name in parts):
        return None
    layers: list[nn.Module] = []
    linear = [n for n in sorted(numbered) if parts[f"{n}.weight"].ndim == 2]
    if not linear:
        return None
    assumed, is_bent = [], True  # before the first layer nothing has to be bent
    for n in range(max(numbered) + 1):
        weight = parts.get(f"{n}.weight")
        if weight is None:
            between = linear[0] < n < linear[-1]
            layers.append(nn.ReLU() if between and not is_bent else nn.Identity())
            if between and not is_bent:
                assumed.append(n)
            is_bent = True
        elif weight.ndim == 2:
            layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=f"{n}.bias" in parts))
            is_bent = False
        elif f"{n}.running_mean" in parts:
            layers.append(nn.BatchNorm1d(len(weight)))
        else:
            layers.append(nn.LayerNorm(len(weight)))
    outputs = parts[f"{linear[-1]}.weight"].shape[0]
    places = ", ".join(map(str, assumed))
    note = f"its head has {len(linear)} linear layers, and place {places} between them is taken for a ReLU"
    return nn.Sequential(*layers), outputs, [note] if assumed else []


def _widened(state: Mapping[str, Tensor], arch: str, notes: list[str]) -> dict[str, Tensor]:
    """The weights, in which a first layer of one channel has become one of three that reads their mean."""
    out = dict(state)
    for name, shape in _shapes(arch, 2).items():
        value = state.get(name)
        if value is not None and value.ndim == len(shape) == 4 and (value.shape[1], shape[1]) == (1, 3):
            out[name] = value.repeat(1, 3, 1, 1) / 3
            notes.append(
                f"its {name} reads one channel, and now the mean of three: give mean and std as it was trained with"
            )
    return out


def install_head(network: nn.Module, arch: str, matched: Matched) -> None:
    """Put a file's own head into a network, in place.

    Raises:
        CheckpointError: the head pools as fastai's does, and the network has no pooling layer of its own.
    """
    place = head_of(arch)
    if matched.head is None or place is None:
        return
    parent, _, name = place.rpartition(".")
    setattr(network.get_submodule(parent), name, matched.head)
    if matched.concat_pool:
        pool = next((n for n in ("avgpool", "global_pool") if hasattr(network, n)), None)
        if pool is None:
            raise CheckpointError(
                f"got a head of fastai's for {arch}, which has no pooling layer to replace; expected a ResNet; use one."
            )
        setattr(network, pool, ConcatPool())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
