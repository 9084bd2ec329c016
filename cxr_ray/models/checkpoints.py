"""Checkpoints: weights read from files, safely, and saved with what they mean."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import safetensors.torch
import torch
from pyarrow import ArrowException
from pydantic import TypeAdapter
from torch import Tensor

from cxr_ray.data.images import PREPROCESS
from cxr_ray.errors import CheckpointError, WeightsError
from cxr_ray.models.networks import NETWORKS, Classifier, ModelSpec, build
from cxr_ray.registry import did_you_mean
from cxr_ray.results import filesystem


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
        return read_state(weights)
    network = NETWORKS[arch]
    try:
        return network.imagenet()
    except (OSError, RuntimeError, http.client.HTTPException) as e:
        reason = _first_line(getattr(e, "reason", e))
        raise WeightsError(
            f"model.weights: got imagenet, which could not be downloaded ({reason}); expected weights of {arch}; try "
            f"again with network access, give a file (--set model.weights=path/to/{arch}.pth) or train from scratch "
            "(--set model.weights=none)."
        ) from None


def start_from(classifier: Classifier, state: Mapping[str, Tensor], origin: str) -> None:
    """Loads a pretrained state dict in place; a head of another shape is left as it is.

    Counters of batches may be missing, as in older files: nothing reads them.

    Raises:
        CheckpointError: other weights are missing or of another shape.
    """
    own = classifier.network.state_dict()
    body = {k: v for k, v in state.items() if not k.startswith("fc.") or (k in own and own[k].shape == v.shape)}
    missing = [k for k in own if k not in body and not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    wrong = [k for k, v in body.items() if k not in own or own[k].shape != v.shape]
    if missing or wrong:
        raise CheckpointError(
            f"got {origin}, of whose weights {len(missing)} are missing and {len(wrong)} are unknown or of another "
            f"shape (such as {(missing + wrong)[0]}); expected a state dict of {classifier.spec.arch}; give one."
        )
    try:
        classifier.network.load_state_dict(body, strict=False)
    except RuntimeError:
        raise CheckpointError(
            f"got {origin}, whose weights cannot be copied into {classifier.spec.arch} (sparse, quantized or the "
            "like); expected plain ones; save them with torch.save(model.state_dict(), path)."
        ) from None


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_state(path: str) -> dict[str, Tensor]:
    """The state dict in a file, bare or under ``model``, ``state_dict`` or ``model_state_dict``; nothing is executed.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or holds anything else.
    """
    try:
        fs, inside = filesystem(path)
        with fs.open_input_stream(inside) as f:
            data = f.read()
    except FileNotFoundError:
        raise CheckpointError(
            f"got {path}, which is no file; expected a checkpoint; give a .pt or .safetensors file."
        ) from None
    except (OSError, ArrowException) as e:
        raise CheckpointError(
            f"got {path}, which cannot be read ({_first_line(e)}); expected a checkpoint; give a .pt or .safetensors "
            "file."
        ) from None
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        # weights_only: a checkpoint must never run code
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch and safetensors raise whatever their parser meets in a broken file
        raise CheckpointError(
            f"got {path}, which cannot be loaded safely ({len(data)} bytes); expected safetensors or a torch state "
            "dict (tensors only); save one with torch.save(model.state_dict(), path)."
        ) from None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    items = state.items() if isinstance(state, dict) else []
    if not items or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items):
        raise CheckpointError(
            f"got {path} without a state dict; expected one; save it with torch.save(model.state_dict(), path)."
        )
    return {k.removeprefix("module."): v for k, v in items}


def load(path: str, spec: ModelSpec | None = None) -> Classifier:
    """A checkpoint to a classifier in eval mode, on the CPU, with one forward pass tried.

    Args:
        path: local or a URI; ``.safetensors`` files that we saved carry their spec.
        spec: needed for other files; its ``outputs`` is replaced by what the file has (1 or 2).

    Raises:
        CheckpointError: not a checkpoint, or of another shape.
    """
    state = read_state(path)
    spec = _known_spec(path, spec or saved_spec(path))
    classifier = build(spec.arch, replace(spec, outputs=_outputs(path, state, spec.arch)))
    own = classifier.network.state_dict()
    for name in ("fc.weight", "fc.bias"):  # start_from would leave such a head random
        if state[name].shape != own[name].shape:
            got, expected = (" x ".join(map(str, t.shape)) or "a number" for t in (state[name], own[name]))
            raise CheckpointError(
                f"got {path}, whose {name} is {got}; expected {expected}, as in {spec.arch}; give a file of "
                "that network."
            )
    start_from(classifier, state, path)
    _try(path, classifier)
    return classifier


def _known_spec(path: str, spec: ModelSpec | None) -> ModelSpec:
    """The spec, whose network and preprocessing exist."""
    if spec is None:
        raise CheckpointError(
            f"got {path}, which does not say what its weights mean; expected its arch and size; name them under "
            "checkpoints."
        )
    if spec.arch not in NETWORKS:
        raise CheckpointError(f"got {path}, which says it is a {spec.arch!r}.{did_you_mean(spec.arch, NETWORKS)}")
    if spec.preprocess not in PREPROCESS:
        raise CheckpointError(
            f"got {path}, whose images go through {spec.preprocess!r}.{did_you_mean(spec.preprocess, PREPROCESS)}"
        )
    return spec


def _outputs(path: str, state: Mapping[str, Tensor], arch: str) -> int:
    """How many outputs the head in a state dict has, 1 or 2."""
    if "fc.weight" not in state or "fc.bias" not in state:
        raise CheckpointError(f"got {path} without fc.weight or fc.bias; expected the state dict of {arch}; give one.")
    head = tuple(state["fc.weight"].shape)
    outputs = head[0] if head else 0
    if outputs not in (1, 2):
        raise CheckpointError(
            f"got {path} with a head of {outputs} outputs; expected 1 or 2 (NORMAL, PNEUMONIA); give a file of such a "
            "network."
        )
    return outputs


@torch.inference_mode()
def _try(path: str, classifier: Classifier) -> None:
    """Refuse weights that give no finite score for a constant image or for noise."""
    size = classifier.spec.size
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    scores = classifier.log_odds(torch.cat([torch.zeros_like(noise), classifier.normalize(noise)]))
    if not torch.isfinite(scores).all():
        values = " and ".join(f"{score:g}" for score in scores.tolist())
        raise CheckpointError(
            f"got {path}, which gives {values} for a constant image and for noise; expected finite scores; give "
            "weights, mean and std that are finite and not too large."
        )


def to_bytes(classifier: Classifier) -> bytes:
    """The weights as safetensors, with their spec in the file's metadata."""
    state = {k: v.detach().cpu().contiguous() for k, v in classifier.network.state_dict().items()}
    return safetensors.torch.save(state, metadata={"cxr_ray": json.dumps(asdict(classifier.spec))})


def saved_spec(path: str) -> ModelSpec | None:
    """The spec in a safetensors file that we saved; None for any other file."""
    if not path.endswith(".safetensors"):
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
