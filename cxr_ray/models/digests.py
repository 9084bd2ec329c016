"""A digest inside safetensors files that we write: the format has none, and reads a flipped bit as another weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

KEY = "sha256"  # of the file's metadata


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Tensors as safetensors, with metadata and a digest of both."""
    bare = safetensors.torch.save(dict(tensors), dict(metadata))
    header = _header(bare)
    header["__metadata__"][KEY] = _digest(bare)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + bare[_start(bare) :]


def is_intact(data: bytes, *, needed: bool = False) -> bool:
    """Whether a file is as ``save`` made it. One without a digest, of others, is, unless the digest is needed."""
    try:
        known = _header(data)["__metadata__"][KEY]
    except (ValueError, LookupError, TypeError, RecursionError):
        return not needed
    try:
        return bool(known == _digest(data))
    except (LookupError, TypeError):
        return False


def _header(data: bytes) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(data[8 : _start(data)])
    return found


def _start(data: bytes) -> int:
    """Where the tensors' bytes begin."""
    return 8 + int.from_bytes(data[:8], "little")


def _digest(data: bytes) -> str:
    """Of names, kinds, places and metadata, in an order of their own, and of the tensors' bytes."""
    header = _header(data)
    header["__metadata__"].pop(KEY, None)
    content = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    content.update(memoryview(data)[_start(data) :])
    return content.hexdigest()
