"""Networks of other packages and files by name: torchvision:NAME, timm:NAME, torchxrayvision:NAME, factory:..., onnx.

Packages are imported where a network of theirs is asked for: a second, which a mistake need not wait for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cxr_ray.errors import MissingPackageError, UnknownNameError, UserError, WeightsError
from cxr_ray.models import xrayvision
from cxr_ray.models.scoring_only import FILES, not_trained
from cxr_ray.registry import Registry, did_you_mean

FAMILIES = ("torchvision", "timm", "torchxrayvision", "factory")
WITHOUT_AUXILIARY = {"googlenet": {"aux_logits": False, "init_weights": True}, "inception_v3": {"aux_logits": False}}


@dataclass(frozen=True)
class Network:
    """One kind of network.

    Attributes:
        build: the number of outputs to the network with random weights. Raises UserError.
        imagenet: the state dict that was published for it. Raises WeightsError where nobody has published one, and
            what the download raises.
        caption: what it is, in a sentence.
        normalization: mean and std of each channel, where the network takes no other.
    """

    build: Callable[[int], nn.Module]
    imagenet: Callable[[], dict[str, Tensor]]
    caption: str
    normalization: float | None = None


class Networks(Registry[Network]):
    """Networks by name; a name with a family before a colon is looked up in that family's package.

    >>> "torchvision:densenet121" in Networks("network", {})
    True
    """

    pattern = rf"^(({'|'.join(FAMILIES)}):\S+|{'|'.join(FILES)})$"  # of names beyond the entries, for schemas

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name) or not isinstance(name, str):
            return super().__contains__(name)
        family, _, rest = name.partition(":")
        return name in FILES or (family in FAMILIES and bool(rest.strip()))

    def __missing__(self, name: str) -> Network:
        family, _, rest = name.partition(":")
        if name not in self:
            raise UnknownNameError(f"got the {self.kind} {name!r}.{expected(name, self)}")
        if name in FILES:
            return Network(not_trained(name), _without_weights(name), FILES[name][1])
        return _FAMILIES[family](rest)


def expected(name: object, known: Mapping[str, Network]) -> str:
    """The nearest known name, all of them, and the families."""
    text = did_you_mean(name, known)
    families = "torchvision:NAME, timm:NAME, torchxrayvision:NAME, factory:MODULE:FUNCTION"
    return f"{text.removesuffix('.')}, {families}, {', '.join(FILES)}."


def _torchvision(name: str) -> Network:
    def known() -> Any:
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise UnknownNameError(f"got the network 'torchvision:{name}'.{_near(name, names)}")
        return models

    def build(outputs: int) -> nn.Module:
        arguments = WITHOUT_AUXILIARY.get(name, {})
        network: nn.Module = known().get_model(name, weights=None, num_classes=outputs, **arguments)
        return network

    def imagenet() -> dict[str, Tensor]:
        weights = known().get_model_weights(name).DEFAULT
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        return {key: value for key, value in state.items() if not key.lower().startswith("aux")}

    return Network(build, imagenet, f"{name} of torchvision.")


def timm_package(arch: str) -> Any:
    """The package timm.

    Raises:
        MissingPackageError: it is not installed.
    """
    return _package("timm", arch)


def _package(package: str, arch: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        extra = {"timm": "timm", "torchxrayvision": "lungs"}[package]
        raise MissingPackageError(
            f"got {arch}, a network of {package}; expected {package} to be installed; install it: "
            f"pip install 'cxr-ray[{extra}]'."
        ) from None


def of_timm(name: str, caption: str | None = None, arch: str | None = None) -> Network:
    """A network of timm; ``arch``: as the user names it."""
    arch = arch or name

    def known() -> Any:
        timm = timm_package(arch)
        if not timm.is_model(name):
            raise UnknownNameError(f"got the network {arch!r}.{_near(name.split('.')[0], timm.list_models())}")
        return timm

    def build(outputs: int) -> nn.Module:
        network: nn.Module = known().create_model(name, num_classes=outputs)
        return network

    def imagenet() -> dict[str, Tensor]:
        timm = known()
        if not timm.models.is_model_pretrained(name):
            raise WeightsError(
                f"model.weights: got imagenet, which timm does not have for {arch}; expected a file or none; give a "
                f"file (--set model.weights=path/to/{name}.pth) or train from scratch (--set model.weights=none)."
            )
        # without the hub's id timm takes the file's address, and fails at once where there is no network
        without_hub = {"hf_hub_id": None} if timm.get_pretrained_cfg(name).url else {}
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=without_hub)
        return dict(network.state_dict())

    return Network(build, imagenet, caption or f"{name} of timm.")


def _torchxrayvision(name: str) -> Network:
    arch = f"torchxrayvision:{name}"

    def build(outputs: int) -> nn.Module:
        models = importlib.import_module(f"{_package('torchxrayvision', arch).__name__}.models")
        if not name.startswith("densenet121"):
            raise UnknownNameError(f"got the network {arch!r}; expected one of its DenseNet-121s; give another.")

        class Grey(models.DenseNet):  # type: ignore[name-defined]
            """On RGB in [-1, 1]: the mean of the channels, in the package's own range of [-1024, 1024]."""

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = super().forward(images.mean(1, keepdim=True) * xrayvision.RANGE)
                return logits

        return Grey(num_classes=outputs, in_channels=1, apply_sigmoid=False)

    def published() -> dict[str, Tensor]:
        raise WeightsError(
            f"model.weights: got imagenet for {arch}, whose weights the package reads as a pickle, which may run code; "
            f"expected a file or none; save them once (torch.save(torchxrayvision.models.DenseNet(weights={name!r})."
            "state_dict(), PATH)) and give the file (--set model.weights=PATH)."
        )

    return Network(build, published, f"{name} of torchxrayvision.", xrayvision.NORMALIZATION)


def _factory(target: str) -> Network:
    arch = f"factory:{target}"

    def build(outputs: int) -> nn.Module:
        network = _function(target, arch)(outputs)
        if not isinstance(network, nn.Module):
            _refuse(arch, f"which gives a {type(network).__name__}")
        return network

    return Network(build, _without_weights(arch), "A network of your own.")


def _without_weights(arch: str) -> Callable[[], dict[str, Tensor]]:
    def imagenet() -> dict[str, Tensor]:
        raise WeightsError(
            f"model.weights: got imagenet, which {arch} does not have; expected a file or none; give a file "
            "(--set model.weights=path/to/weights.pth) or train from scratch (--set model.weights=none)."
        )

    return imagenet


def _function(target: str, arch: str) -> Callable[[int], Any]:
    """The function that a factory names, as one of the number of outputs."""
    module, colon, name = target.rpartition(":")
    if not colon:
        _refuse(arch, "without a function")
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as e:  # a user's module fails in its own ways
        _refuse(arch, f"which cannot be imported ({type(e).__name__}: {(str(e).splitlines() or [''])[0]})")
    if not callable(function):
        _refuse(arch, "which is no function")
    takes = inspect.signature(function).parameters.values()
    asks = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in takes)

    def call(outputs: int) -> Any:
        try:
            return function(outputs) if asks else function()
        except Exception as e:  # likewise
            _refuse(arch, f"which fails ({type(e).__name__}: {(str(e).splitlines() or [''])[0]})")

    return call


def _refuse(arch: str, what: str) -> NoReturn:
    raise UserError(
        f"got {arch}, {what}; expected factory:MODULE:FUNCTION, a function of the number of outputs that gives a "
        "torch.nn.Module; put the module on the path (PYTHONPATH) and name it."
    )


def _near(name: str, names: list[str]) -> str:
    """The nearest of many names, and a few of them."""
    import difflib

    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Expected one of its {len(names)} networks" + (f", such as {', '.join(near)}." if near else ".")


_FAMILIES: dict[str, Callable[[str], Network]] = {
    "torchvision": _torchvision,
    "timm": lambda name: of_timm(name, arch=f"timm:{name}"),
    "torchxrayvision": _torchxrayvision,
    "factory": _factory,
}


def outputs_of(network: nn.Module, size: int) -> int:
    """How many numbers a network gives an image.

    Raises:
        UserError: it takes no such images, or gives no logits.
    """
    first = next(network.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            out = network(torch.zeros(1, 3, size, size, device=first.device, dtype=first.dtype))
    except Exception as e:  # networks fail in as many ways as there are networks
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"got a network that cannot score images of {size} x {size} ({reason}); expected one that takes "
            "[B, 3, S, S]; give the size that it was made for."
        ) from None
    return require_outputs(out, 1)


def require_outputs(out: Any, images: int) -> int:
    """How many numbers an image has in a network's output. Raises UserError where it is no tensor [images, outputs]."""
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != images or not out.shape[1]:
        kind = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(
            f"got a network whose output for {images} images is {kind}; expected one tensor of logits [{images}, "
            "outputs]; give such a network."
        )
    return out.shape[1]
