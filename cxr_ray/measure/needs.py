"""What explainers need of a network, and whether a network has it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from cxr_ray.errors import CxrRayError, UserError, first_line
from cxr_ray.measure.attribution import attention
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.scoring_only import ScoringOnly
from cxr_ray.models.structure import NO_GRADIENT

KNOWN, KNOWN_HAS = "resnet18", {"feature maps", "gradients", "relus", "rescale rule"}  # without being asked
INCOMPLETE = 0.02  # of the difference of two scores, that DeepLIFT's map may be off


def features(model: Classifier) -> str | None:
    """Class activation maps read a module with a spatial output."""
    return model.structure.why_none or None


def gradients(model: Classifier) -> str | None:
    """The score has a gradient at the image."""
    images = _noise(model).images.requires_grad_()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            (gradient,) = torch.autograd.grad(model(images)[:, 1].sum(), images, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        gradient = None
    return f"no gradient reaches the image, {NO_GRADIENT}" if gradient is None else None


def relus(model: Classifier) -> str | None:
    """Guided backpropagation finds every activation, and each is a ReLU."""
    from cxr_ray.measure.attribution.relus import foreign_activations

    return foreign_activations(model)


def rescale(model: Classifier) -> str | None:
    """DeepLIFT's rescale rule covers every layer: the map of noise adds up to the difference of the scores."""
    model = copy.deepcopy(model).double()  # scores of random weights may differ by less than float32 tells
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if not weights.any():  # as heads are before they are trained
                weights.copy_(torch.randn(weights.shape, generator=generator))
    inputs = _noise(model)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            attributions = EXPLAINERS["deeplift"].explain(model, inputs)
    except UserError as e:
        return str(e)
    except Exception as e:  # captum fails in its own ways on layers that it does not know
        return f"captum cannot do it ({(str(e).splitlines() or [type(e).__name__])[0]})"
    with torch.no_grad():
        z, black = (model(x)[:, 1].double() for x in (inputs.images, inputs.black.expand_as(inputs.images)))
    total, difference = float(attributions.double().sum()), float((z - black).sum())
    if abs(total - difference) <= INCOMPLETE * abs(difference) + 1e-4 * float(attributions.abs().sum()):
        return None
    return (
        f"a layer has no rescale rule: the map of noise adds up to {total:.3g}, and the scores differ by "
        f"{difference:.3g}"
    )


def _noise(model: Classifier) -> Inputs:
    """One image of noise and its second class."""
    size, device = model.spec.size, model.mean.device
    dtype = next((weights.dtype for weights in model.network.parameters()), torch.float32)
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    black = model.normalize(torch.zeros(3, 1, 1, device=device, dtype=dtype))
    return Inputs(model.normalize(noise), noise, black, torch.ones(1, dtype=torch.int64, device=device), ["noise"], 0)


NEEDS: dict[str, Callable[[Classifier], str | None]] = {
    "feature maps": features,
    "gradients": gradients,
    "relus": relus,
    "rescale rule": rescale,
    "attention": attention.why_none,
}


def _why_not(need: str, model: Classifier) -> str | None:
    """Why a network lacks what an explainer needs; None: it has it."""
    try:
        return NEEDS[need](model)
    except (CxrRayError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # a caller's network fails in its own ways, such as .numpy() where gradients are kept
        if "does not require grad" in str(e):
            return f"no gradient reaches its layers, {NO_GRADIENT}"
        return f"its layers cannot be traced ({first_line(e)})"


def missing(model: Classifier, explainers: Sequence[str], has: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Explainers that a network cannot have, each with the reason; ``has``: needs that are known to be met."""
    if isinstance(model.network, ScoringOnly):
        only = f"{model.network.kind} scores images and shows neither layers nor gradients"
        yield from ((explainer, only) for explainer in explainers if EXPLAINERS[explainer].needs)
        return
    known: dict[str, str | None] = dict.fromkeys(has)
    for explainer in explainers:
        for need in EXPLAINERS[explainer].needs:
            if need not in known:
                known[need] = _why_not(need, model)
            if reason := known[need]:
                yield explainer, reason
                break


def require(model: Classifier, explainers: Sequence[str]) -> None:
    """Refuse explainers that a network in memory cannot have. Raises UserError, a line for each."""
    refused = [
        f"got the explainer {e} for a model that cannot have it: {why}; expected one that it can have; give another "
        "(cxr-ray list)."
        for e, why in missing(model, explainers)
    ]
    if refused:
        raise UserError("\n".join(refused))


def channels(model: Classifier) -> int:
    """Channels of the feature maps; 0 without any."""
    return 0 if model.structure.features is None else model.structure.features.channels


@lru_cache(maxsize=32)
def _channels_of(spec: ModelSpec) -> int:
    return channels(networks.build(spec.arch, spec))


def of_trained(spec: ModelSpec) -> int:
    """Channels of a network that is to be trained."""
    return _channels_of(replace(spec, variant=""))


def possible(name: str, model: Classifier) -> Iterator[str]:
    """Which explainers a network can have, and for which reason not the others."""
    why = dict(missing(model, list(EXPLAINERS), _known(model.spec.arch, model.spec.cam_layer)))
    yield f"{name} ({model.spec.arch}) can have {len(EXPLAINERS) - len(why)} of {len(EXPLAINERS)} explainers"
    for reason in dict.fromkeys(why.values()):
        yield f"  not {', '.join(e for e in why if why[e] == reason)}: {reason}"


def has_all(arch: str, cam_layer: str | None, explainers: Sequence[str]) -> bool:
    """Whether a network is known to have what the explainers need, so that it need not be built to be asked."""
    return all(_known(arch, cam_layer).issuperset(EXPLAINERS[e].needs) for e in explainers)


def _known(arch: str, cam_layer: str | None) -> set[str]:
    """What a network of this package's own is known to have; a caller's may only be called so."""
    return KNOWN_HAS if arch == KNOWN and cam_layer is None else set()


def check(name: str, model: Classifier, explainers: Sequence[str]) -> list[str]:
    """Sentences on what explainers read of a network; none for a plain ResNet-18.

    Raises:
        UserError: the network cannot have all of the explainers; a line for each that it cannot have.
    """
    spec = model.spec
    notes = [f"{name} ({spec.arch}): {note}." for note in model.notes]
    refused = [
        f"explain.explainers: got {explainer} for {name} ({spec.arch}); {reason}; leave it out, or give another "
        "network."
        for explainer, reason in missing(model, explainers, _known(spec.arch, spec.cam_layer))
    ]
    if refused:
        raise UserError("\n".join(refused))
    if not _known(spec.arch, spec.cam_layer) and any("feature maps" in EXPLAINERS[e].needs for e in explainers):
        found = model.features
        notes.append(
            f"{name} ({spec.arch}): class activation maps read {found.layer} ({found.channels} channels of "
            f"{found.side} x {found.side} places)."
        )
    return notes
