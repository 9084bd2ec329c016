"""A GPU with more memory holds more of a shard at a time; a CPU always as much as it did."""

import pytest
import torch

from cxr_ray.measure.capacity import Capacity

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def memory(monkeypatch):
    """Free bytes of the GPU, to be set."""
    free = [0.0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free[0]), int(free[0])))
    return free


def test_a_cpu_holds_what_it_always_did_and_has_nothing_to_tell():
    held = Capacity.of(CPU, 224, 2)
    assert (held.images, held.places, held.note) == (16, 2**23, "")
    assert [held.scored_together(n) for n in (1, 16, 256)] == [16, 16, 16]


@pytest.mark.parametrize(("gib", "images", "places"), [(4, 16, 2**24), (20, 32, 2**26), (139, 64, 2**26)])
def test_a_gpu_holds_twice_as_much_as_often_as_there_is_room(memory, gib, images, places):
    memory[0] = gib * 2**30
    held = Capacity.of(GPU, 224, 2)
    assert (held.images, held.places) == (images, places)
    assert held.note == f"images explained together: {images}; places of rankings: {places:,}"
    assert images * 2 * 3 * 224**2 * 4 * 100 <= max(memory[0] / 4, 16 * 2 * 3 * 224**2 * 4 * 100)
    assert places * 32 <= memory[0] / 8
    assert Capacity.of(GPU, 448, 2).images <= images


def test_a_shard_on_a_gpu_is_scored_in_four_pieces_or_in_pieces_of_eight(memory):
    memory[0] = 139 * 2**30
    held = Capacity.of(GPU, 224, 1)
    assert [held.scored_together(n) for n in (3, 16, 64, 100, 256)] == [8, 8, 16, 25, 64]
