"""The parts of a network that explainers read, found by a traced forward pass: feature maps, head and stages.

Shapes: B images, K channels, V side of a feature map, T tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cxr_ray.errors import UserError

Layout = Literal["BCHW", "BHWC", "BTC"]
MOST_PREFIX = 5  # tokens before the grid: class, distillation, registers
SHOWN = 4  # names in a message
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
OF_HEADS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)
POOLS = ("SelectAdaptivePool2d", "FastAdaptiveAvgPool")  # timm's
IN_PLACE = ("torchvision.models.resnet",)  # whose cells are known to lie where they are
OUTWARD = 1.25  # sides of a cell, that its pixels may lie nearer to the edge
NO_GRADIENT = "as where its forward works under torch.no_grad or inference_mode, or detaches"
STAGES = ("layer4", "layer3", "layer2", "layer1")


@dataclass(frozen=True)
class FeatureMaps:
    """The output of one module as maps.

    Attributes:
        layer: dotted name of the module.
        layout: of its output; BTC: tokens, of which the last side x side lie on a grid.
        channels, side: K and V.
    """

    layer: str
    layout: Layout
    channels: int
    side: int

    def maps(self, output: Tensor) -> Tensor:
        """The module's output as [B, K, V, V]."""
        if self.layout == "BCHW":
            return output
        if self.layout == "BHWC":
            return output.permute(0, 3, 1, 2)
        grid = output[:, output.shape[1] - self.side**2 :]
        return grid.transpose(1, 2).unflatten(2, (self.side, self.side))


@dataclass(frozen=True)
class Structure:
    """What a traced forward pass shows of a network.

    Attributes:
        features: what class activation maps read; None where nothing is spatial, or cells lie elsewhere in the image.
        head: dotted name of the layer that gives the logits; None where there is no such layer.
        is_linear: whether global average pooling and the head, one linear layer, follow ``features``.
        stages: layer4 (the coarsest) to layer1, each with the dotted names of the modules whose output has its
            resolution; in networks of one resolution, quarters.
        why_none: why there are no features.
    """

    features: FeatureMaps | None
    head: str | None
    is_linear: bool
    stages: dict[str, tuple[str, ...]]
    why_none: str = ""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in a traced pass."""

    name: str
    module: nn.Module
    read: Tensor | None  # its first argument
    output: Tensor


def read(network: nn.Module, size: int, layer: str | None = None) -> Structure:
    """Trace a network on two images of noise and say what it is made of.

    Args:
        network: images [B, 3, size, size] to its outputs [B, outputs].
        size: side of the images.
        layer: dotted name of the module that class activation maps shall read; None: the last module with a spatial
            output before the head on which the outputs depend at every place.

    Raises:
        UserError: there is no such layer, or its output is not spatial.
    """
    training = [module for module in network.modules() if module.training]
    device = next(network.parameters(), torch.empty(0)).device.type
    network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            return _read(network, size, layer)
    finally:
        for module in training:
            module.training = True


def _read(network: nn.Module, size: int, layer: str | None) -> Structure:
    weights = next(network.parameters(), torch.empty(0))
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = (noise * 4 - 2).to(weights.device, weights.dtype).requires_grad_()
    calls, out = traced(network, images)
    head = _head(calls, out)
    times = Counter(call.name for call in calls)
    once = [call for call in calls if times[call.name] == 1]
    named = None
    if layer is not None:
        named = next((call for call in once if call.name == layer), None)
        if named is None or grid_of(named.output) is None:
            raise UserError(_no_such_layer(network, layer, once))
    chosen = named or _last_features(network, once, head, out)
    features, why_none = None, "no module in the network has a spatial output"
    if chosen is None and not _end(head, out).requires_grad:
        why_none = f"no gradient reaches its layers, {NO_GRADIENT}"
    if chosen is not None:
        layout, side, channels = grid_of(chosen.output) or _single(chosen.output)
        features = FeatureMaps(chosen.name, layout, channels, side)
        if type(network).__module__ not in IN_PLACE and (elsewhere := _elsewhere(images, chosen.output, features)):
            features, why_none = None, f"the cells of {chosen.name} lie elsewhere in the image: {elsewhere}"
        elif not _reached(network, images, features):
            features, why_none = None, f"no gradient reaches {chosen.name}, {NO_GRADIENT}"
    name = None if head is None else head.name
    is_linear = features is not None and name is not None and _is_linear(network, images, calls, features, name)
    return Structure(features, name, is_linear, dict(_stages(network, calls, name)), "" if features else why_none)


def _elsewhere(images: Tensor, output: Tensor, features: FeatureMaps) -> str | None:
    """Why cells of the feature maps do not look at their own place in the image, as gradients tell; None: they do.

    A network that crops, pads, flips or transposes its images has such cells.
    """
    if features.side < 2 or not output.requires_grad:
        return None
    maps = features.maps(output)
    weights = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1)).to(maps)

    def seen(chosen: Tensor) -> Tensor:
        """The size of the gradient of some cells at each pixel, [B, H, W]."""
        (gradient,) = torch.autograd.grad((maps * weights * chosen).sum(), images, retain_graph=True, allow_unused=True)
        return images.new_zeros(len(images), *images.shape[2:]) if gradient is None else gradient.abs().sum(1)

    try:
        return _cut_off(seen(torch.ones_like(maps)).sum(0), features.side) or _displaced(seen, maps)
    except RuntimeError:  # a layer has worked in place on what autograd keeps
        return None


def _cut_off(seen_HW: Tensor, side: int) -> str | None:
    """Whether no cell looks at the pixels of an edge, more of them than the side of a cell."""
    for what, lines in (("rows", seen_HW.sum(1)), ("columns", seen_HW.sum(0))):
        looked = lines.nonzero().flatten()
        if len(looked):
            left = max(int(looked[0]), len(lines) - 1 - int(looked[-1]))
            if left > len(lines) / side:
                return f"{left} {what} of pixels at an edge reach none of them, as where images are cropped inside"
    return None


def _displaced(seen: Callable[[Tensor], Tensor], maps: Tensor) -> str | None:
    """Whether pixels that cells near the corners look at lie nearer to the edge, or beyond the middle of the image.

    Where a cell sees most of the image, they lie near its middle.
    """
    side = maps.shape[-1]
    at: dict[tuple[int, int], float] = {}  # places from both edges, in sides of a cell
    of: dict[tuple[int, int], Tensor] = {}
    for corners in (((0, 0), (1, 1)), ((0, 1), (1, 0))):  # one in each of two images
        for k in range(side // 2):  # cells whose ReLUs are dead, or that only see padding, tell nothing
            chosen = torch.zeros_like(maps)
            for image, (y, x) in enumerate(corners):
                chosen[image, :, side - 1 - k if y else k, side - 1 - k if x else k] = 1
            pixels = seen(chosen)
            if bool((pixels.sum((1, 2)) > 0).all()):
                at |= dict.fromkeys(corners, k + 0.5)
                of |= dict(zip(corners, pixels, strict=True))
                break
    if len(of) < 4:
        return None
    farthest = side / 2 + max(0.5, side / 8)
    for corner, centre in _centres(of, side).items():
        for end, place in zip(corner, centre, strict=True):
            from_edge = side - place if end else place
            if not at[corner] - OUTWARD <= from_edge <= farthest:
                near = f"{'bottom' if corner[0] else 'top'} {'right' if corner[1] else 'left'}"
                return (
                    f"the cell {at[corner]:g} of {side} from the {near} looks at {centre[0]:.1f} from the top, "
                    f"{centre[1]:.1f} from the left, as where images are padded, flipped or transposed inside"
                )
    return None


def _centres(of: dict[tuple[int, int], Tensor], side: int) -> dict[tuple[int, int], tuple[float, float]]:
    """The centre of mass of the pixels that each cell looks at more than the others, in sides of a cell."""
    shares = {corner: pixels.double() / pixels.double().sum() for corner, pixels in of.items()}
    mean = torch.stack(list(shares.values())).mean(0)  # tokens look at all of the image, and most at their own place
    out = {}
    for corner, share in shares.items():
        own = (share - mean).clamp(min=0) ** 2
        own = own / own.sum().clamp(min=1e-300)
        places = (torch.arange(len(own), dtype=own.dtype, device=own.device) + 0.5) * side / len(own)
        out[corner] = float((own.sum(1) * places).sum()), float((own.sum(0) * places).sum())
    return out


def traced(network: nn.Module, images: Tensor) -> tuple[list[Call], Tensor]:
    """Every call of a module inside the network, in the order of their ends, and the output."""
    calls: list[Call] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                read = args[0] if args and isinstance(args[0], Tensor) else None
                calls.append(Call(name, module, read, first))

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in network.named_modules() if name]
    try:
        return calls, network.forward(images)
    finally:
        for handle in handles:
            handle.remove()


def grid_of(output: Tensor) -> tuple[Layout, int, int] | None:
    """Layout, side and channels of a module's output for two square images; None where it is not spatial."""
    shape = output.shape
    if len(shape) == 4 and shape[0] == 2:
        if shape[2] == shape[3] > 1:
            return "BCHW", shape[2], shape[1]
        if shape[1] == shape[2] > 1:
            return "BHWC", shape[1], shape[3]
    if len(shape) == 3 and shape[0] == 2:
        for prefix in range(MOST_PREFIX + 1):
            side = math.isqrt(max(0, shape[1] - prefix))
            if side > 1 and side**2 == shape[1] - prefix:
                return "BTC", side, shape[2]
    return None


def _single(output: Tensor) -> tuple[Layout, int, int]:
    """The grid of a feature map of one place."""
    return "BCHW", 1, output.shape[1]


def _last_features(network: nn.Module, calls: list[Call], head: Call | None, out: Tensor) -> Call | None:
    """The call whose output class activation maps read: what the head reads depends on all of its places."""
    if resnet := _of_resnet(network, calls):
        return resnet
    end = _end(head, out)
    if not end.requires_grad:
        return None
    before = calls[: calls.index(head)] if head is not None and end is head.read and head in calls else calls
    weights = torch.rand(end.shape, generator=torch.Generator().manual_seed(0)).to(end)  # a plain sum may be constant
    total = (end * weights).sum()
    fallback = None
    for call in _candidates(before):
        layout, side, _ = grid_of(call.output) or _single(call.output)
        if fallback is None and layout != "BTC":
            fallback = call
        if not call.output.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(total, call.output, retain_graph=True, allow_unused=True)
        if gradient is not None and bool((FeatureMaps(call.name, layout, 0, side).maps(gradient) != 0).any()):
            return call
    return fallback


def _end(head: Call | None, out: Tensor) -> Tensor:
    """What depends on the features: what the head reads, as a head may be zero before it is trained; or the outputs."""
    return out if head is None or head.read is None else head.read


def _reached(network: nn.Module, images: Tensor, features: FeatureMaps) -> bool:
    """Whether the outputs have a gradient at the feature maps."""
    try:
        gradients(network, images, features, Tensor.sum)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def _of_resnet(network: nn.Module, calls: list[Call]) -> Call | None:
    """The last block under the name that ResNets give it, whose output may be a single place in small images."""
    blocks = getattr(network, "layer4", None)
    if not isinstance(blocks, nn.Sequential) or not len(blocks):
        return None
    name = f"layer4.{len(blocks) - 1}"
    return next((call for call in calls if call.name == name and call.output.ndim == 4), None)


def _candidates(calls: list[Call]) -> Iterator[Call]:
    """Calls with a spatial output, the last first; of several modules with one output, the outermost."""
    seen: set[int] = set()
    for call in reversed(calls):
        grid = grid_of(call.output)
        if grid is None or id(call.output) in seen or type(call.module) in CONTAINERS:
            continue
        if _is_of_head(call.module):
            continue
        is_leaf = next(call.module.children(), None) is None
        if grid[0] != "BCHW" and is_leaf and "Norm" not in type(call.module).__name__:
            continue  # queries, keys and values are no features of a place
        seen.add(id(call.output))
        yield call


def _is_of_head(module: nn.Module) -> bool:
    """Whether it pools, drops or flattens, and so only passes on what the layer before it found."""
    return isinstance(module, OF_HEADS) or type(module).__name__ in POOLS


def _no_such_layer(network: nn.Module, layer: str, calls: list[Call]) -> str:
    names = [call.name for call in _candidates(calls)][:SHOWN]
    known = layer in dict(network.named_modules())
    what = "whose output is not spatial, or which is called more than once or never" if known else "which is no module"
    such = f", such as {', '.join(names)}" if names else ""
    return (
        f"cam_layer: got {layer!r}, {what}; expected a module of the network with one spatial output{such}; give such "
        "a one, or leave cam_layer out."
    )


def _head(calls: list[Call], out: Tensor) -> Call | None:
    """The last layer with weights that gives as many numbers as the network."""
    outputs = out.shape[1]
    for call in reversed(calls):
        size = getattr(call.module, "out_features", getattr(call.module, "out_channels", None))
        if isinstance(call.module, nn.Linear | nn.Conv2d):
            return call if size == outputs else None
    return None


def _is_linear(network: nn.Module, images: Tensor, calls: list[Call], features: FeatureMaps, head: str) -> bool:
    """Whether the gradient at the feature maps is the head's weights over the number of places, for noise as well."""
    layer = network.get_submodule(head)
    if not isinstance(layer, nn.Linear) or features.layout != "BCHW" or layer.in_features != features.channels:
        return False
    for call in calls[max(n for n, call in enumerate(calls) if call.name == features.layer) + 1 :]:
        is_leaf = next(call.module.children(), None) is None
        if is_leaf and not (_is_of_head(call.module) or call.name == head):
            return False
    for target in range(layer.out_features):
        _, gradient = gradients(network, images, features, lambda out, t=target: out[:, t].sum())  # type: ignore[misc]
        expected = (layer.weight[target] / features.side**2)[None, :, None, None].expand_as(gradient)
        allowed = 1e-3 * expected.abs() + 1e-6 * expected.abs().max()
        if not bool(((gradient - expected).abs() <= allowed).all()):  # nor where a weight is not finite
            return False
    return True


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def gradients(
    network: nn.Module, images: Tensor, features: FeatureMaps, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Feature maps and the gradient of a score of the outputs at them, [B, K, V, V]; no gradient goes below them."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()  # a later layer may work in place

    handle = network.get_submodule(features.layer).register_forward_hook(cut)
    try:
        with torch.no_grad():
            total = score(network(images.detach()))
            (gradient,) = torch.autograd.grad(total, leaves[0])
    finally:
        handle.remove()
    return features.maps(leaves[0].detach()), features.maps(gradient)


def feature_maps(network: nn.Module, images: Tensor, features: FeatureMaps) -> Tensor:
    """Feature maps [B, K, V, V], without a gradient."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept.append(output.detach().clone())  # a later layer may work in place

    handle = network.get_submodule(features.layer).register_forward_hook(keep)
    try:
        with torch.no_grad():
            network(images)
    finally:
        handle.remove()
    return features.maps(kept[0])


def _stages(network: nn.Module, calls: list[Call], head: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules with weights of their own, by the side of their output, the coarsest first."""
    side: dict[str, int] = {}
    for call in calls:
        if grid := grid_of(call.output):
            side[call.name] = grid[1]
    owners = [name for name, m in network.named_modules() if name and name != head and _owns(m)]
    of_owner = {name: place for name in owners if (place := _side_of(name, side))}
    sides = sorted(set(of_owner.values()))
    if len(sides) == 1:
        quarter = math.ceil(len(of_owner) / len(STAGES))
        names = list(of_owner)[::-1]
        parts = [tuple(names[n * quarter : (n + 1) * quarter]) for n in range(len(STAGES))]
    else:
        parts = [tuple(name for name in of_owner if of_owner[name] == place) for place in sides]
    yield from ((stage, names) for stage, names in zip(STAGES, parts, strict=False) if names)


def _owns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _side_of(name: str, side: dict[str, int]) -> int | None:
    """The side of a module's output, or of the innermost module around it that is spatial, as around a gate."""
    return next((side[n] for n in (name, *reversed(_ancestors(name))) if n in side), None)
