"""Checkpoints: weights read from files, safely, and saved with what they mean."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from pyarrow import ArrowException
from pydantic import TypeAdapter
from torch import Tensor

from cxr_ray.config import Classes
from cxr_ray.data.images import PREPROCESS
from cxr_ray.errors import CheckpointError, WeightsError, first_line
from cxr_ray.models import digests, ends, families, matching, xrayvision
from cxr_ray.models.networks import NETWORKS, Classifier, ModelSpec, build
from cxr_ray.models.outputs import names_in, outputs_of_classes
from cxr_ray.models.scoring_only import FILES
from cxr_ray.models.statefiles import read_state_file
from cxr_ray.registry import did_you_mean
from cxr_ray.results import filesystem, split_options
from cxr_ray.schemas import CLASSES

TRANSFORMED = ("torchvision:googlenet", "torchvision:inception_v3")  # which normalise again after ImageNet's weights


def pretrained_state(weights: str, arch: str = "resnet18") -> dict[str, Tensor] | None:
    """The state dict that training of an ``arch`` starts from: ``imagenet``, a file, or ``none`` (None).

    Raises:
        WeightsError: the download failed, or nobody has published any.
        CheckpointError: the file is no state dict.
        UnknownNameError: no network of that name.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        return read_state_file(weights).state
    network = NETWORKS[arch]
    try:
        return network.imagenet()
    except (OSError, RuntimeError, http.client.HTTPException) as e:
        reason = first_line(reason if isinstance(reason := getattr(e, "reason", e), Exception) else OSError(reason))
        raise WeightsError(
            f"model.weights: got imagenet, which could not be downloaded ({reason}); expected weights of {arch}; try "
            f"again with network access, give a file (--set model.weights=path/to/{arch}.pth) or train from scratch "
            "(--set model.weights=none)."
        ) from None


def start_from(classifier: Classifier, state: Mapping[str, Tensor], origin: str) -> list[str]:
    """Loads a pretrained state dict in place; a head of another shape is left as it is.

    Prefixes and a first layer of one channel are seen to. Counters of batches may be missing, as in older files:
    nothing reads them.

    Returns:
        What was done, each a sentence.

    Raises:
        CheckpointError: other weights are missing or of another shape.
    """
    arch, network = classifier.spec.arch, classifier.network
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    head = f"{matching.head_of(arch)}."
    body, notes = matching.body(origin, state, arch)
    fitting = {k: v for k, v in body.items() if not k.startswith(head) or own.get(k) == v.shape}
    _copy(classifier, fitting, head, origin)
    if not any(k.startswith(head) for k in fitting):
        notes.append(f"its head is left out: that of {arch} begins with random weights")
    return notes


def starting_notes(weights: str, classifier: Classifier) -> list[str]:
    """What becomes of a file that training starts from, each a sentence; none of published or no weights.

    Raises:
        CheckpointError: the file does not fit the network.
    """
    if weights in ("none", "imagenet"):
        return []
    file = read_state_file(weights)
    return [*file.notes, *start_from(classifier, file.state, f"model.weights={weights}")]


def _copy(classifier: Classifier, body: Mapping[str, Tensor], optional: str | None, origin: str) -> None:
    """Copy weights into the network; those that start with ``optional`` may be missing."""
    own = classifier.network.state_dict()
    missing = [
        k
        for k in own
        if k not in body
        and not (optional is not None and k.startswith(optional))
        and not k.endswith("num_batches_tracked")
    ]
    wrong = [k for k, v in body.items() if k not in own or own[k].shape != v.shape]
    if missing or wrong:
        raise CheckpointError(
            f"got {origin}, of whose weights {len(missing)} are missing and {len(wrong)} are unknown or of another "
            f"shape (such as {(missing + wrong)[0]}); expected a state dict of {classifier.spec.arch}; give one."
        )
    kinds = [f"{k} ({str(v.dtype).removeprefix('torch.')})" for k, v in body.items() if _changes_kind(v, own[k])]
    if kinds:
        raise CheckpointError(
            f"got {origin}, of whose weights {len(kinds)} are no real numbers (such as {kinds[0]}); expected floating "
            f"point, as in {classifier.spec.arch}; give a file of trained weights."
        )
    try:
        classifier.network.load_state_dict(body, strict=False)
    except RuntimeError:
        raise CheckpointError(
            f"got {origin}, whose weights cannot be copied into {classifier.spec.arch} (sparse, quantized or the "
            "like); expected plain ones; save them with torch.save(model.state_dict(), path)."
        ) from None


def _changes_kind(given: Tensor, own: Tensor) -> bool:
    """Whether copying would round, or drop the imaginary part."""
    return own.is_floating_point() and not given.is_floating_point() and given.layout == torch.strided


def load(path: str, spec: ModelSpec | None = None, classes: Classes | None = None) -> Classifier:
    """A checkpoint to a classifier in eval mode, on the CPU, with one forward pass tried.

    Args:
        path: local or a URI; ``.safetensors`` files that we saved carry their spec.
        spec: needed for other files; its ``outputs`` is replaced by what the file has.
        classes: those of the data, which a head of as many outputs stands for, and by whose labels the names in a file
            are matched; None: the two.

    Raises:
        CheckpointError: not a checkpoint, or of another shape.
    """
    if spec is not None and spec.arch in FILES:
        return _load_whole(path, spec, classes or Classes())
    file, saved = read_state_file(path), saved_spec(path)
    is_given = spec is not None and (saved is None or saved.arch != spec.arch)
    if spec is None and (spec := saved) is not None and chooses_code(spec):
        raise CheckpointError(
            f"got {path}, which names {spec.arch}; expected it to be named by you, since it is code that a file must "
            "not choose; name it under checkpoints (arch)."
        )
    spec = _known_spec(path, spec, is_given)
    matched = matching.match(path, file.state, spec.arch)
    outputs = matched.outputs
    if outputs is None:
        outputs = families.outputs_of(build(spec.arch, spec).network, spec.size)
    if outputs < 1:
        raise CheckpointError(
            f"got {path} with a head of {outputs} outputs; expected 1 or 2 ({', '.join(CLASSES)}), or more; give a "
            "file of such a network."
        )
    is_published = spec.arch.startswith(f"{xrayvision.FAMILY}:") and outputs == xrayvision.OUTPUTS
    if is_published and spec.columns is None:
        spec = replace(spec, columns=((), (xrayvision.PNEUMONIA,)))
        matched.notes.append(
            f"output {xrayvision.PNEUMONIA} of {outputs} is Pneumonia, as the package publishes them: its logit is the "
            "log-odds, without operating thresholds"
        )
    classes = classes or Classes()
    names = None if spec.columns is not None else names_in(path, outputs, file.named, file.others, classes)
    spec, said = outputs_of_classes(path, replace(spec, outputs=outputs), names, classes)
    classifier = build(spec.arch, spec)
    matching.install_head(classifier.network, spec.arch, matched)
    classifier.eval()  # a head of the file's own is new, and its norms would score by the batch
    own, head = classifier.network.state_dict(), matching.head_of(spec.arch)
    for name in (f"{head}.weight", f"{head}.bias"):
        if name in own and name in matched.state and matched.state[name].shape != own[name].shape:
            got, expected = (" x ".join(map(str, t.shape)) or "a number" for t in (matched.state[name], own[name]))
            raise CheckpointError(
                f"got {path}, whose {name} is {got}; expected {expected}, as in {spec.arch}; give a file of "
                "that network."
            )
    _copy(classifier, matched.state, None, path)
    said = [] if is_published else said  # its note says it
    if is_given:
        said += _normalisation_notes(classifier)
    is_own = saved is not None and not is_given and not chooses_code(spec)
    classifier.notes = (*file.notes, *matched.notes, *said, *_try(path, classifier, is_own))
    return classifier


def _normalisation_notes(classifier: Classifier) -> list[str]:
    """Where a network's own normalisation is another than the spec's: a state dict does not say which it was."""
    spec = classifier.spec
    assumed = f"its images are normalised with mean {_few(spec.mean)} and std {_few(spec.std)}"
    half = (0.5, 0.5, 0.5)
    if spec.arch in TRANSFORMED and (spec.mean, spec.std) != (half, half):
        return [
            f"{assumed}; where training began with torchvision's ImageNet weights, the network turned them into those "
            "of mean 0.5 and std 0.5 (transform_input), which a state dict does not hold; give mean and std 0.5 then"
        ]
    own = getattr(classifier.network, "pretrained_cfg", None)
    own = own if isinstance(own, Mapping) else {}
    mean, std = tuple(own.get("mean") or spec.mean), tuple(own.get("std") or spec.std)
    if (mean, std) == (spec.mean, spec.std):
        return []
    return [
        f"{assumed}, where timm has mean {_few(mean)} and std {_few(std)} for {spec.arch}; if it was trained with "
        "those, give them (mean, std)"
    ]


def _few(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _load_whole(path: str, spec: ModelSpec, classes: Classes) -> Classifier:
    """A file that is layers and weights in one, as its spec's arch says."""
    network = FILES[spec.arch][0](path)
    spec, said = outputs_of_classes(path, replace(spec, outputs=families.outputs_of(network, spec.size)), None, classes)
    classifier = Classifier(network, spec).eval()
    classifier.notes = (*network.notes, *said, *_try(path, classifier))
    return classifier


def chooses_code(spec: ModelSpec) -> bool:
    """Whether a spec names a module of the user's or a program, which must not run because a file says so."""
    return spec.arch.startswith("factory:") or spec.arch in FILES


def _known_spec(path: str, spec: ModelSpec | None, is_given: bool) -> ModelSpec:
    """The spec, whose network and preprocessing exist."""
    if spec is None:
        raise CheckpointError(
            f"got {path}, which does not say what its weights mean; expected its arch and size; name them under "
            "checkpoints."
        )
    if spec.arch not in NETWORKS:
        got = (
            f"got the network {spec.arch!r} for {path}" if is_given else f"got {path}, which says it is a {spec.arch!r}"
        )
        raise CheckpointError(f"{got}.{families.expected(spec.arch, NETWORKS)}")
    if spec.preprocess not in PREPROCESS:
        raise CheckpointError(
            f"got {path}, whose images go through {spec.preprocess!r}.{did_you_mean(spec.preprocess, PREPROCESS)}"
        )
    return spec


def _try(path: str, classifier: Classifier, is_own: bool = False) -> list[str]:
    """Refuse weights that give no finite score for a constant image or for noise; what is taken for granted.

    ``is_own``: a network of a known package from a file that we saved, which has logits of each image by itself.
    """
    size = classifier.spec.size
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.zeros_like(noise), classifier.normalize(noise)])
    try:
        outputs = ends.scored(classifier.network, images)
    except Exception as e:  # layers may not fit each other, and networks of users fail in their own ways
        raise CheckpointError(
            f"got {path}, which cannot score an image of {size} x {size} ({first_line(e)}); expected layers that fit; "
            "give the network (arch) and the size that it was trained with."
        ) from None
    families.require_outputs(outputs, 2)
    notes = []
    if not is_own:
        notes = ends.require_logits(path, classifier, images, outputs)
        ends.require_steady(path, classifier, images, outputs)
    with torch.inference_mode():
        scores = classifier.log_odds(images)
    if not torch.isfinite(scores).all():
        values = " and ".join(f"{score:g}" for score in scores.tolist())
        raise CheckpointError(
            f"got {path}, which gives {values} for a constant image and for noise; expected finite scores; give "
            "weights, mean and std that are finite and not too large."
        )
    return notes


def to_bytes(classifier: Classifier) -> bytes:
    """The weights as safetensors, with their spec and a digest in the file's metadata."""
    state = {k: v.detach().cpu().contiguous() for k, v in classifier.network.state_dict().items()}
    return digests.save(state, {"cxr_ray": json.dumps(asdict(classifier.spec))})


def saved_spec(path: str) -> ModelSpec | None:
    """The spec in a safetensors file that we saved; None for any other file."""
    if not split_options(path)[0].endswith(".safetensors"):
        return None
    try:
        fs, inside = filesystem(path)
        with fs.open_input_file(inside) as f:
            length = int.from_bytes(f.read(8), "little")
            header = f.read(length) if 0 < length < 2**24 else b""
    except (OSError, ArrowException):  # load says why
        return None
    try:
        saved = json.loads(json.loads(header)["__metadata__"]["cxr_ray"])
        return TypeAdapter(ModelSpec).validate_python(asdict(ModelSpec(**saved)))  # unknown fields are refused
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
