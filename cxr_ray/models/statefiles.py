"""Weights read from files, safely: nothing in a file is executed, and wrappers around the weights are taken off."""

from __future__ import annotations

import argparse
import io
import json
import operator
import pathlib
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pyarrow import ArrowException
from torch import Tensor

from cxr_ray.errors import CheckpointError, first_line
from cxr_ray.models import digests
from cxr_ray.reading import TooLargeError, read_file
from cxr_ray.results import filesystem, split_options

KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "model_state", "network_state_dict"),
    *("net_state_dict", "params", "module", "ema_state_dict", "model_ema"),
)
TO_NUMBERS = ("class_to_idx", "label2id")  # names of classes to numbers of outputs
NUMBERED = (*TO_NUMBERS, "idx_to_class", "id2label")
LISTED = ("classes", "class_names", "label_names")  # in the order of the outputs
PLACES = ("hyper_parameters", "hparams", "config", "args", "meta")  # what people keep beside the weights
DEEPEST, MOST_ENTRIES = 6, 10_000  # of what is looked through for names of classes
MOST_CLASSES = 1000
LARGEST = 2**33  # bytes of a checkpoint
LARGEST_TEXT = 2**20  # characters of a text that may be names
LARGEST_PICKLE = 2**26  # bytes, unpacked, that a message looks into
MAGICS = (b"PK", b"\x80")  # of torch.save: an archive, or pickles one after another
# plain values that people save beside weights; building one runs no code of the file's
HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    *(getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType") and name != "ObjectDType"),
    argparse.Namespace,
    pathlib.PurePosixPath,
    pathlib.PosixPath,
]


@dataclass(frozen=True)
class StateFile:
    """The weights of a file.

    Attributes:
        state: names to tensors.
        named: the classes and their columns, by the key that says so: one of NUMBERED and LISTED beside the weights.
        others: what may be such names, by its place anywhere else in the file.
        notes: what was chosen or not understood, each a sentence.
    """

    state: dict[str, Tensor]
    named: Mapping[str, dict[str, int]] = field(default_factory=dict)
    others: Mapping[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_bytes(path: str, check: Callable[[bytes], object] | None = None) -> bytes:
    """The bytes of a checkpoint, local or at a URI.

    Args:
        path: where it is.
        check: takes the first bytes of a large file, and raises where it is not what it should be.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        fs, inside = filesystem(path)
        data = read_file(fs, inside, LARGEST, check)
    except TooLargeError as e:
        raise CheckpointError(f"got {path}, which cannot be used ({e}); expected a checkpoint; give one.") from None
    except FileNotFoundError:
        raise CheckpointError(
            f"got {path}, which is no file; expected a checkpoint; give a .pt or .safetensors file."
        ) from None
    except (OSError, ArrowException) as e:
        raise CheckpointError(
            f"got {path}, which cannot be read ({first_line(e)}); expected a checkpoint; give a .pt or .safetensors "
            "file."
        ) from None
    return data


def _check_head(path: str, head: bytes) -> None:
    """Refuse a large file whose first bytes are those of no checkpoint. Raises CheckpointError."""
    is_header = 0 < int.from_bytes(head[:8], "little") < 2**27 and head[8:9] == b"{"
    if split_options(path)[0].endswith(".onnx"):
        return  # which is told apart from the rest
    if not (is_header if split_options(path)[0].endswith(".safetensors") else head.startswith(MAGICS)):
        raise CheckpointError(
            f"got {path}, which cannot be loaded safely (its first bytes are those of no checkpoint); expected "
            "safetensors or a torch state dict (tensors only); save one with torch.save(model.state_dict(), path)."
        )


def _refuse_whole_network(path: str, data: bytes) -> None:
    """Say of a file that is layers and weights in one how it is named."""
    names: list[str] = []
    if data.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:  # what follows says so
            return
    if any(name.endswith("archive_format") or "serialized_exported_program" in name for name in names):
        raise CheckpointError(
            f"got {path}, which is a program of torch.export; expected a state dict; save one of the model that it was "
            "made from with torch.save(model.state_dict(), path), or export that one as ONNX."
        )
    kind = (
        "torchscript"
        if any("/code/" in name for name in names)
        else "onnx"
        if split_options(path)[0].endswith(".onnx")
        else None
    )
    if kind is not None:
        what = {"torchscript": "TorchScript, a program that torch would run", "onnx": "ONNX"}[kind]
        raise CheckpointError(
            f"got {path}, which is {what}; expected a state dict; name it so (arch: {kind}), and it is scored without "
            "gradients or layers, or save one with torch.save(model.state_dict(), path)."
        )


def _check_unpacked(data: bytes) -> None:
    """Refuse an archive that unpacks to far more than it holds."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > max(2 * len(data), LARGEST_PICKLE):
            raise ValueError(f"an archive of {len(data)} bytes that unpacks to {size}")


def read_state_file(path: str) -> StateFile:
    """The state dict in a file, bare or under one of KEYS; nothing is executed.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or holds anything else.
    """
    data = read_bytes(path, partial(_check_head, path))
    _refuse_whole_network(path, data)
    if split_options(path)[0].endswith(".safetensors") and not digests.is_intact(data):
        raise CheckpointError(
            f"got {path}, which is not as it was written (its digest is another); expected the whole checkpoint; "
            "take it from a copy, or train it again."
        )
    try:
        _check_unpacked(data)
        if split_options(path)[0].endswith(".safetensors"):
            state, beside = safetensors.torch.load(data), _metadata(data)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                # weights_only: a checkpoint must never run code
                state, beside = None, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # torch and safetensors raise whatever their parser meets in a broken file
        raise CheckpointError(
            f"got {path}, which cannot be loaded safely ({_trouble(data, e)}); expected safetensors or a torch state "
            "dict (tensors only); save one with torch.save(model.state_dict(), path)."
        ) from None
    notes: list[str] = []
    state = _without_wrappers(beside, notes) if state is None else state
    if state is None:
        keys = [repr(key) for key in beside if isinstance(key, str)] if isinstance(beside, Mapping) else []
        what = f" (it holds {', '.join(keys[:6])})" if keys else ""
        raise CheckpointError(
            f"got {path} without a state dict{what}; expected one; save it with torch.save(model.state_dict(), path)."
        )
    named, others = _classes(beside, notes)
    return StateFile(state, named, others, tuple(notes))


def _without_wrappers(whole: Any, notes: list[str]) -> dict[str, Tensor] | None:
    """The state dict inside; None where there is none. Adds to the notes which others were not taken."""
    if not isinstance(whole, Mapping):
        return None
    for key in KEYS:
        if isinstance(whole.get(key), Mapping):
            taken = _without_wrappers(whole[key], notes)
            sizes = {str(k): len(_without_wrappers(v, []) or ()) for k, v in whole.items() if k != key}
            others = [k for k, size in sizes.items() if size and size >= len(taken or ()) / 2]
            if taken and others:
                notes.append(f"it holds several sets of weights: {key} is taken, and {', '.join(others)} left out")
            return taken
    items = {key: value for key, value in whole.items() if isinstance(value, Tensor)}
    if not items or not all(isinstance(key, str) for key in whole) or len(items) < len(whole) / 2:
        return None
    return items


Statements = dict[str, dict[str, int]]


def _metadata(data: bytes) -> dict[str, Any]:
    """What a safetensors file says beside its weights; not what we wrote."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {key: value for key, value in header.get("__metadata__", {}).items() if key != "cxr_ray"}


def _classes(whole: Mapping[Any, Any], notes: list[str]) -> tuple[Statements, Statements]:
    """The names of classes and their columns, as a file says them; and what else may be such names.

    Adds to the notes what is not understood.
    """
    found: Statements = {}
    beside = (whole.get(key) for key in PLACES)
    for place in (whole, *(vars(b) if isinstance(b, argparse.Namespace) else b for b in beside)):
        for key in (*NUMBERED, *LISTED):
            value = place.get(key) if isinstance(place, Mapping) else None
            named = _named(key, value)
            if named:
                found.setdefault(key, named)
            elif isinstance(value, set | frozenset):
                notes.append(f"its {key} has no order, and is left out")
            elif (key in NUMBERED or isinstance(value, list | tuple | Mapping)) and _is_said(value):
                notes.append(f"its {key} is not understood, and is left out")
    return found, dict(_statements(whole))


def _is_said(value: Any) -> bool:
    return not (value is None or isinstance(value, Tensor) or (isinstance(value, list | tuple | Mapping) and not value))


def _statements(whole: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """Texts and numbers, one each, that stand anywhere in a file, and where."""
    waiting: list[tuple[str, Any, int]] = [("", whole, 0)]
    for _ in range(MOST_ENTRIES):
        if not waiting:
            return
        place, value, depth = waiting.pop(0)
        value = vars(value) if isinstance(value, argparse.Namespace) else _read_text(value)
        is_short = isinstance(value, Mapping | list | tuple | np.ndarray) and _length(value) <= MOST_CLASSES
        if place and is_short and (named := _named(place.rpartition(".")[2], value)):
            yield place, named
        elif isinstance(value, Mapping) and depth < DEEPEST:
            inner = [(key, v) for key, v in value.items() if not isinstance(v, Tensor)]
            waiting += [(f"{place}.{key}" if place else str(key), v, depth + 1) for key, v in inner]


def _length(value: Any) -> int:
    return int(value.size) if isinstance(value, np.ndarray) else len(value)


def _read_text(value: Any) -> Any:
    """A text that is JSON, or a list with commas, as what it holds; anything else as it is."""
    if not isinstance(value, str) or len(value) > LARGEST_TEXT:
        return value
    if value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    parts = [part.strip() for part in re.split("[,;|]", value)]
    return parts if len(parts) > 1 and all(parts) else value


def _named(key: str, value: Any) -> dict[str, int] | None:
    """Names to numbers, from a mapping either way or a list in the order of the outputs; None: it is neither."""
    value = _read_text(value)
    value = value.tolist() if isinstance(value, np.ndarray) and value.ndim else value
    if isinstance(value, list | tuple) and key not in TO_NUMBERS:
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return None
    pairs = list(value.items())
    ways = (pairs, [(name, n) for n, name in pairs])
    return _pairs(ways[key not in TO_NUMBERS]) or (None if key in NUMBERED else _pairs(ways[0]))


def _pairs(pairs: Sequence[tuple[Any, Any]]) -> dict[str, int] | None:
    """Names and numbers as such; None where they are not."""
    try:
        numbers = [_number(n) for _, n in pairs]
    except (TypeError, ValueError):
        return None
    if not all(isinstance(name, str | int | np.integer) for name, _ in pairs) or len(dict(pairs)) < len(pairs):
        return None
    return dict(zip((str(name) for name, _ in pairs), numbers, strict=True))


def _number(n: Any) -> int:
    if isinstance(n, float) and n.is_integer():
        return int(n)
    return int(n) if isinstance(n, str) else operator.index(n)


def _trouble(data: bytes, error: Exception) -> str:
    """What in a file is no plain value, and under which key; else how long the file is."""
    found = [f"{place} is a {what}" for place, what in _unknown_entries(data)]
    if found:
        return "; ".join(found[:3])
    name = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
    return f"it holds a {name[1]}" if name else f"{len(data)} bytes"


class _Unknown:
    """Stands for an object of a class that is not plain: it keeps the class's name and runs nothing."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def append(self, item: Any) -> None:
        """Nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Inert(pickle.Unpickler):
    """Reads the shape of a pickle: every class and function is replaced by one that does nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        plain = module.split(".")[0] in ("torch", "numpy") and not module.startswith("torch.nn.modules")
        return type("_Unknown", (_Unknown,), {"name": "" if plain else f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return None


def _unknown_entries(data: bytes) -> list[tuple[str, str]]:
    """Keys whose value is of a class that is not plain, and the class; nothing of it is imported."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
            if entry.file_size > LARGEST_PICKLE:
                return []
            whole = _Inert(io.BytesIO(archive.read(entry))).load()
        return list(_walk(whole, ""))
    except Exception:  # the file may be anything
        return []


def _walk(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, _Unknown):
        if value.name and value.name not in ("argparse.Namespace", "pathlib.PosixPath"):
            yield repr(place) if place else "the whole file", value.name
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for n, inner in enumerate(value):
            yield from _walk(inner, f"{place}.{n}" if place else str(n))
