"""Safetensors files that we write say whether they are as they were written."""

import random

import pytest
import safetensors.torch
import torch

from cxr_ray.errors import CheckpointError
from cxr_ray.models import checkpoints, digests
from tests.builders.networks import varied

TENSORS = {"b": torch.arange(5.0), "a": torch.ones(2, 3, dtype=torch.int64)}


def test_tensors_and_metadata_come_back():
    data = digests.save(TENSORS, {"note": "x"})
    back = safetensors.torch.load(data)
    assert all(torch.equal(back[name], TENSORS[name]) for name in TENSORS)
    assert digests.is_intact(data, needed=True)
    assert digests.is_intact(digests.save({}, {"note": "x"}), needed=True)


def test_a_flipped_bit_anywhere_is_noticed():
    data = digests.save(TENSORS, {"note": "x"})
    for at in range(len(data)):
        for bit in (0, 5):
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            if digests.is_intact(flipped, needed=True):  # a space and another one, between two entries
                assert (data[at : at + 1] + flipped[at : at + 1]).isspace(), at


def test_files_of_others_have_no_digest_and_are_read():
    data = safetensors.torch.save(TENSORS)
    assert digests.is_intact(data)
    assert not digests.is_intact(data, needed=True)


def test_a_checkpoint_with_a_changed_weight_is_refused(tmp_path):
    data = bytearray(checkpoints.to_bytes(varied("resnet18", 32)))
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    checkpoints.load(str(path))
    data[-random.Random(0).randrange(1, 10_000)] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not as it was written"):
        checkpoints.load(str(path))
