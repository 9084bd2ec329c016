"""What a network's outputs are: logits, or probabilities, whose differences are no log-odds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxr_ray.errors import CheckpointError, UserError, first_line
from cxr_ray.models import families, origins
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.scoring_only import ScoringOnly, looks_like_probabilities

CONTRASTS = (1, 30, 1000, 30000)  # of images of noise in model space, under which logits grow and probabilities cannot
STEADY = 1e-3  # of the largest score, and a tenth of that in log-odds: more than rounding in batches of another size
STEADY_ROUGH = 1e-2  # likewise on GPUs and in half precision
ROUNDING = 64  # times the resolution of the largest output
REPEATS = 32  # passes of a network that draws random numbers


def origins_of(network: nn.Module | Callable[[Tensor], Tensor], outputs: Tensor) -> frozenset[str]:
    """The operations that outputs come from, as ``origins.origins`` names them; none where it cannot be seen.

    >>> origins_of(torch.sigmoid, 1 - torch.ones(1, 2, requires_grad=True).sigmoid()[:, 1:])
    frozenset({'sigmoid'})
    """
    if isinstance(network, ScoringOnly):
        return network.origins
    if outputs.grad_fn is None:
        return frozenset()
    return origins.origins(outputs.grad_fn, lambda node: origins.letters(node.name()), _before)


def _before(node: Any) -> list[Any]:
    """The nodes of autograd's graph that give another its inputs, without weights."""
    parents = [parent for parent, _ in node.next_functions if parent is not None]
    return [p for p in parents if not isinstance(getattr(p, "variable", None), nn.Parameter)]


def scored(network: nn.Module | Callable[[Tensor], Tensor], images: Tensor) -> Any:
    """The outputs for images, with autograd's graph where there is one."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return network(images.clone().requires_grad_())
    except RuntimeError:  # a function may take its images to numpy
        with torch.no_grad():
            return network(images)


def require_logits(what: str, classifier: Classifier, images: Tensor, outputs: Tensor) -> list[str]:
    """Refuse outputs that are no logits, or not those of the columns' meaning.

    Args:
        what: for the message.
        classifier: that gave them, with its spec.
        images: of the outputs, in model space.
        outputs: of ``scored``, [B, K].

    Returns:
        What is taken for granted and cannot be seen, each a sentence.

    Raises:
        CheckpointError: probabilities; or one class of a softmax, whose log-odds are against all the others.
    """
    network, spec = classifier.network, classifier.spec
    found = origins_of(network, outputs)
    if isinstance(network, ScoringOnly) and network.is_undone:
        found = frozenset({"logsoftmax"}) if "softmax" in found else origins.LAYERS
    if found & origins.PROBABILITIES and found <= origins.PROBABILITIES:
        _refuse_probabilities(what, f"it ends in a {min(found)}", min(found))
    if looks_like_probabilities(outputs.detach()):
        _refuse_probabilities(what, "none below 0, and they add up to 1", "softmax")
    if looks_like_probabilities((-outputs.detach()).exp()):
        raise CheckpointError(
            f"got {what}, whose outputs are negative log-probabilities; expected logits; leave out what makes them."
        )
    if found and found <= {"logsoftmax", "logsigmoid"}:
        _require_both_classes(what, min(found), outputs.shape[1], spec)
    if found and found <= origins.LAYERS:
        return []
    return _note_on_range(what, classifier, images, found)


def _refuse_probabilities(what: str, known: str, end: str) -> None:
    raise CheckpointError(
        f"got {what}, whose outputs are probabilities ({known}); expected logits; leave the {end} at its end out."
    )


def _require_both_classes(what: str, end: str, outputs: int, spec: ModelSpec) -> None:
    """Refuse log-probabilities of one class alone. Raises CheckpointError."""
    named = {"logsoftmax": "log-softmax", "logsigmoid": "log-sigmoid"}[end]
    if outputs == 1:
        raise CheckpointError(
            f"got {what}, whose output is the {named} of one class alone; expected log-odds; give the outputs of "
            "both classes, or log(p / (1 - p))."
        )
    if spec.columns is not None and not all(spec.columns):
        are = "one softmax" if end == "logsoftmax" else "log-sigmoids"
        raise CheckpointError(
            f"got {what}, whose {outputs} outputs are {are}, with columns of one class alone "
            f"({spec.columns}); expected those of both classes, since its log-odds are against all others; name the "
            "outputs of the other class as well (outputs, ModelSpec.columns)."
        )


def _note_on_range(what: str, classifier: Classifier, images: Tensor, found: frozenset[str]) -> list[str]:
    """What outputs of images of any contrast tell, where the end of a network is no layer, or cannot be seen.

    Raises:
        CheckpointError: they stay between 0 and 1, or 0 and 100, and the network is seen to end in what keeps them so.
    """
    varied = _contrasts(images)
    try:
        with torch.no_grad(), np.errstate(all="ignore"):
            outputs = classifier.network(varied)
    except Exception:  # a function may ask for images in a range
        with torch.no_grad():
            outputs = classifier.network(varied := images.clone())
    read = [n for part in classifier.spec.columns or () for n in part]
    z = (outputs[:, read] if read else outputs).float()
    is_finite = torch.isfinite(z).all(1) & torch.isfinite(outputs).all(1)
    if not is_finite.any():
        return []
    z, outputs = z[is_finite], outputs[is_finite]
    low, high = float(z.min()), float(z.max())
    total = outputs.double().sum(1)
    is_share = low >= 0 and outputs.shape[1] > 1 and bool(((total - total[0]).abs() <= 1e-4 * total[0]).all())
    if low >= 0 and (high <= 1 or 99 <= high <= 100 or (is_share and high > low)):
        if high > low and found & origins.BOUNDED and not found & origins.LAYERS:
            _refuse_probabilities(what, f"from {low:.3g} to {high:.3g} whatever the contrast", min(found))
        between = f"lie between {low:.3g} and {high:.3g} for {len(z)} images"
        return [f"its outputs {between}, and are taken for logits; if they are probabilities p, give log(p / (1 - p))"]
    if high <= 0 and low < 0 and len(read or z[0]) == 1:
        return [
            f"its output is never above 0 for {len(z)} images, and is taken for log-odds; if it is log p, give "
            "log(p / (1 - p))"
        ]
    return []


def _contrasts(images: Tensor) -> Tensor:
    """Noise of CONTRASTS and its negatives, of the size of some images, [8, C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(CONTRASTS), *images.shape[1:], generator=generator)
    noise = (noise + torch.randn(len(CONTRASTS), 1, 1, 1, generator=generator)) / 2  # means differ as well
    scaled = noise * torch.tensor(CONTRASTS).view(-1, 1, 1, 1)
    return torch.cat([scaled, -scaled]).to(images)


def require_steady(what: str, classifier: Classifier, images: Tensor, outputs: Tensor) -> None:
    """Refuse a network whose scores of an image change from pass to pass, or with the other images of a batch.

    Args:
        what: for the message.
        classifier: that gave the outputs, with its spec.
        images: of the outputs, in model space.
        outputs: of ``scored``.

    Raises:
        CheckpointError: they do, it cannot score several images at a time, or it changes its images.
    """
    network = classifier.network
    other = images[-1:].flip(-1) / 2  # each of the others stands twice, which hides a mean over the batch
    before = torch.cat([images, images.flip(0), other])
    twice = before.clone()
    state = _random_state()
    try:
        again, alone = _plainly(network, twice), _plainly(network, other.clone())
    except Exception as e:  # networks fail in as many ways as there are networks
        raise CheckpointError(
            f"got {what}, which cannot score {len(twice)} images at a time ({first_line(e)}); expected a network "
            "of [B, 3, S, S]; let it take any number of images."
        ) from None
    if not torch.equal(twice, before):
        raise CheckpointError(
            f"got {what}, which changes the images that it scores; expected them to stay; let it work on a copy."
        )
    expected = torch.cat([outputs, outputs.flip(0), alone]).detach()
    if again.shape == expected.shape:
        draws = _random_state() != state  # chance may matter seldom, as in dropout of few
        passes = (_plainly(network, before.clone()) for _ in range(REPEATS if draws else 1))
        if all(_same(classifier, expected, found) for found in (again, *passes)):
            return
    raise CheckpointError(
        f"got {what}, whose logits of one image differ from pass to pass or with the other images of a batch; "
        "expected the same ones; turn off what is random or reads the batch, as in F.dropout(x, "
        "training=self.training)."
    )


def _plainly(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = network(images)
    return outputs


def _same(classifier: Classifier, expected: Tensor, found: Tensor) -> bool:
    """Whether outputs give the same log-odds, but for rounding."""
    is_rough = found.is_cuda or torch.finfo(found.dtype).bits < 32 if found.is_floating_point() else False
    is_rough |= any(weights.dtype.itemsize < 4 for weights in classifier.network.parameters())
    share = STEADY_ROUGH if is_rough else STEADY
    columns = [n for part in classifier.spec.columns or () for n in part] or slice(None)
    resolution = torch.finfo(torch.float32).eps * float(expected[:, columns].nan_to_num().abs().max())
    z, again = (_log_odds(classifier, outputs).nan_to_num() for outputs in (expected, found))
    allowed = share * (0.1 + float(z.abs().max())) + ROUNDING * resolution
    return bool(((z - again).abs() <= allowed).all())


def _log_odds(classifier: Classifier, outputs: Tensor) -> Tensor:
    z = classifier.logits(outputs.float())
    return z[:, 1] - z[:, 0] if classifier.spec.outputs > 1 else z[:, 1]


def _random_state() -> list[Any]:
    """The state of every generator that a network may draw from without naming one."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torchs = [state.numpy().tobytes() for state in (torch.get_rng_state(), *on_gpus)]
    return [*torchs, str(np.random.get_state(legacy=False)), random.getstate()]


def require_trainable(classifier: Classifier) -> None:
    """Refuse a network that does not give as many logits as it was built for.

    Raises:
        UserError: it cannot score images, or gives something else.
        CheckpointError: it gives probabilities.
    """
    spec = classifier.spec
    noise = torch.rand(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    try:
        outputs = scored(classifier.network, noise)
    except Exception as e:  # networks of users fail in their own ways
        raise UserError(
            f"got {spec.arch}, which cannot score images of {spec.size} x {spec.size} ({first_line(e)}); expected a "
            "network of images [B, 3, S, S]; correct it, or give the size that it was made for (data.size)."
        ) from None
    if (given := families.require_outputs(outputs, len(noise))) != spec.outputs:
        raise UserError(
            f"got {spec.arch}, which gives {given} outputs where {spec.outputs} were asked for; expected as many as "
            "its function is told; build the head from that number."
        )
    classifier.notes = (*classifier.notes, *require_logits(spec.arch, classifier, noise, outputs))
    require_steady(spec.arch, classifier, noise, outputs)
