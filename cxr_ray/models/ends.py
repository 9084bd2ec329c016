"""What a network's outputs are: logits, or probabilities, whose differences are no log-odds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cxr_ray.errors import CheckpointError, UserError, first_line
from cxr_ray.models import families
from cxr_ray.models.networks import Classifier
from cxr_ray.models.scoring_only import ScoringOnly, looks_like_probabilities

UNSTEADY = 0.01  # of the largest logit: more than rounding in batches of another size, also in reduced precision
ENDS = {"Sigmoid": "sigmoid", "Hardsigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log-softmax"}
LAYERS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution")  # whose outputs are logits
RESHAPED = "View UnsafeView Reshape ReshapeAlias Squeeze Unsqueeze Alias Clone ToCopy Clamp Expand Permute Transpose T"
CHOSEN_OR_JOINED = "Slice Select Index IndexSelect Split SplitWithSizes Unbind Rsub Mean Stack Cat"  # 1 - p: Rsub
PASSED_ON = (*RESHAPED.split(), *CHOSEN_OR_JOINED.split())


def _origins(node: Any) -> set[str]:
    """The operations that a node of autograd's graph gets its values from, behind those of PASSED_ON."""
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    if name not in PASSED_ON:
        return {name}
    return {origin for parent, _ in node.next_functions if parent is not None for origin in _origins(parent)}


def end_of(outputs: Tensor) -> str | None:
    """The function that outputs come from, where it is one of ENDS, as autograd's graph tells; None: no graph, or none.

    >>> end_of(torch.ones(1, 2, requires_grad=True).sigmoid()[:, 1:]), end_of(torch.ones(1, 2))
    ('sigmoid', None)
    """
    found = set() if outputs.grad_fn is None else {ENDS.get(name) for name in _origins(outputs.grad_fn)}
    return found.pop() if len(found) == 1 else None


def end_in_layer(outputs: Tensor) -> bool:
    """Whether outputs are seen to be those of a layer: logits, whatever their values."""
    return outputs.grad_fn is not None and _origins(outputs.grad_fn) <= set(LAYERS)


def scored(network: nn.Module | Callable[[Tensor], Tensor], images: Tensor) -> Any:
    """The outputs for images, with autograd's graph where there is one."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return network(images.clone().requires_grad_())
    except RuntimeError:  # a function may take its images to numpy
        with torch.no_grad():
            return network(images)


def require_logits(
    what: str, network: nn.Module | Callable[[Tensor], Tensor], outputs: Tensor, columns: Sequence[Sequence[int]] | None
) -> None:
    """Refuse outputs that are no logits, or not those of the columns' meaning.

    Args:
        what: for the message.
        network: that gave them.
        outputs: of ``scored``, [B, K].
        columns: of the spec.

    Raises:
        CheckpointError: probabilities; or one class of a softmax, whose log-odds are against all the others.
    """
    end = end_of(outputs)
    if isinstance(network, ScoringOnly):
        end = "log-softmax" if network.is_softmax else None
    if end in ("sigmoid", "softmax") or looks_like_probabilities(outputs.detach()):
        known = f"it ends in a {end}" if end else "none below 0, and they add up to 1"
        raise CheckpointError(
            f"got {what}, whose outputs are probabilities ({known}); expected logits; leave the {end or 'softmax'} at "
            "its end out."
        )
    if end == "log-softmax" and outputs.shape[1] == 1:
        raise CheckpointError(
            f"got {what}, whose output is the log-softmax of one class alone; expected log-odds; give the outputs of "
            "both classes, or log(p / (1 - p))."
        )
    if end == "log-softmax" and columns is not None and not all(columns):
        raise CheckpointError(
            f"got {what}, whose {outputs.shape[1]} outputs are one softmax, with columns of one class alone "
            f"({columns}); expected those of both classes, since its log-odds are against all others; name the outputs "
            "of the other class as well (outputs, ModelSpec.columns)."
        )


def require_steady(what: str, network: nn.Module | Callable[[Tensor], Tensor], images: Tensor, outputs: Tensor) -> None:
    """Refuse a network whose logits of an image change from pass to pass, or with the other images of a batch.

    Args:
        what: for the message.
        network: that gave the outputs.
        images: of the outputs.
        outputs: of ``scored``.

    Raises:
        CheckpointError: it does, cannot score several images at a time, or changes its images.
    """
    with torch.no_grad():
        other = images[-1:].flip(-1) / 2  # each of the others stands twice, which hides a mean over the batch
        before = torch.cat([images, images.flip(0), other])
        twice = before.clone()
        try:
            again, alone = network(twice), network(other.clone())
        except Exception as e:  # networks fail in as many ways as there are networks
            raise CheckpointError(
                f"got {what}, which cannot score {len(twice)} images at a time ({first_line(e)}); expected a network "
                "of [B, 3, S, S]; let it take any number of images."
            ) from None
    if not torch.equal(twice, before):
        raise CheckpointError(
            f"got {what}, which changes the images that it scores; expected them to stay; let it work on a copy."
        )
    expected = torch.cat([outputs, outputs.flip(0), alone]).detach().nan_to_num()
    changed = torch.inf if again.shape != expected.shape else (again.nan_to_num() - expected).abs().max()
    if changed > UNSTEADY * expected.abs().max():
        raise CheckpointError(
            f"got {what}, whose logits of one image differ from pass to pass or with the other images of a batch; "
            "expected the same ones; turn off what is random or reads the batch, as in F.dropout(x, "
            "training=self.training)."
        )


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
    require_logits(spec.arch, classifier.network, outputs, None)
    require_steady(spec.arch, classifier.network, noise, outputs)
