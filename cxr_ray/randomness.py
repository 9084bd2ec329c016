"""Random numbers as functions of (seed, image_id, purpose, draw, index), equal on every worker, device and batch size.

A key is hashed to 64 bits; the numbers are the SplitMix64 sequence from there (Steele, Lea & Flood, OOPSLA 2014),
computed in wrapping 64-bit integer tensor operations.
Shapes: K keys, N numbers a key.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key(seed: int, image_id: str, purpose: str, draw: int = 0) -> int:
    """A signed 64-bit key for one stream of numbers.

    >>> key(0, "00c3ae4f1d2b5a69", "pixel_random") == key(0, "00c3ae4f1d2b5a69", "pixel_random", draw=0)
    True
    >>> key(0, "00c3ae4f1d2b5a69", "pixel_random") == key(0, "00c3ae4f1d2b5a69", "pixel_random", draw=1)
    False
    """
    text = f"{seed}\0{image_id}\0{purpose}\0{draw}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _xor_shifted(x: Tensor, bits: int) -> Tensor:
    """x ^ (x >> bits), in its memory; >> alone keeps the sign."""
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (64 - bits)) - 1))


def bits(keys_K: Tensor, n: int) -> Tensor:
    """int64 [K, n], uniform over 0 .. 2^62 - 1."""
    x = keys_K[:, None] + torch.arange(1, n + 1, device=keys_K.device).mul_(_GOLDEN)
    x = _xor_shifted(x, 30).mul_(_MIX_1)
    x = _xor_shifted(x, 27).mul_(_MIX_2)
    return _xor_shifted(x, 31).bitwise_right_shift_(2).bitwise_and_((1 << 62) - 1)


def uniform(keys_K: Tensor, n: int) -> Tensor:
    """float32 [K, n] in (0, 1), on a lattice of 2^-24."""
    return ((bits(keys_K, n) >> 38).float() + 0.5) * 2.0**-24


def normal(keys_K: Tensor, n: int) -> Tensor:
    """float32 [K, n], standard normal, by the inverse of its distribution function."""
    return torch.special.ndtri(uniform(keys_K, n).double()).float()


def permutation(keys_K: Tensor, n: int) -> Tensor:
    """int64 [K, n]: a uniform permutation of 0 .. n - 1 for each key.

    >>> sorted(permutation(torch.tensor([7]), 5)[0].tolist())
    [0, 1, 2, 3, 4]
    """
    return bits(keys_K, n).argsort(dim=1, stable=True)


def first_of_permutation(keys_K: Tensor, n: int, first: int) -> Tensor:
    """int64 [K, first]: the beginning of ``permutation(keys_K, n)``, without sorting all of it.

    >>> keys = torch.tensor([7, 8])
    >>> torch.equal(first_of_permutation(keys, 50, 3), permutation(keys, 50)[:, :3])
    True
    """
    if not 0 < first < n:
        return permutation(keys_K, n)[:, :first]
    rows = []
    for row in bits(keys_K, n):
        last = row.topk(first, largest=False, sorted=False).values.max()
        (near,) = torch.where(row <= last)  # ties at the end keep their order
        rows.append(near[row[near].argsort(stable=True)[:first]])
    return torch.stack(rows)
