"""What is made on the device comes to the host together, and little else does."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from cxr_ray.measure import transfer
from tests.builders.networks import small
from tests.builders.shards import shard, sweep, worker

WAITS = {"cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"}


@pytest.fixture
def copies(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what comes to the host by ``Results``."""
    shapes: list[tuple[int, ...]] = []
    to_host = transfer.to_host

    def counted(values):
        shapes.append(tuple(values.shape))
        return to_host(values)

    monkeypatch.setattr(transfer, "to_host", counted)
    return shapes


def test_results_come_in_one_copy_when_the_first_is_read(copies):
    results, given = transfer.Results(), [torch.rand(2, 3), torch.rand(4), torch.empty(0, 5), torch.rand(1, 1, 1)]
    waiting = [results.put(values) for values in given]
    assert not copies
    for values, result in zip(given, waiting, strict=True):
        assert result.array().dtype == np.float32
        assert np.array_equal(result.array(), values.numpy())
    assert copies == [(11,)]
    late = results.put(torch.ones(2))
    assert late.array().tolist() == [1, 1]
    assert copies == [(11,), (2,)]


def test_an_array_on_the_device_is_a_copy():
    array = np.arange(3)
    tensor = transfer.to_device(array, torch.device("cpu"))
    array[:] = 9
    assert tensor.tolist() == [0, 1, 2]


class _Waits(TorchFunctionMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in WAITS:
            self.seen.append(name)
        elif name == "__getitem__" and _is_mask(args[1]):
            self.seen.append("mask")
        return func(*args, **(kwargs or {}))


def _is_mask(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


@pytest.mark.parametrize("explainers", [["gradcam"], ["gradcam", "layercam", "intensity"]])
def test_a_shards_host_copies_do_not_grow_with_explainers_grids_fills_and_draws(copies, monkeypatch, explainers):
    """Until all is under way the host waits for the images' scores, and for where their regions are."""
    made = worker(
        sweep(
            explain={"explainers": explainers, "targets": ["pneumonia", "predicted"]},
            perturb={"grids": ["pixel", "7"], "fills": ["mean", "grey"]},
            controls={"pixel_random": 3, "cell_random": 3, "shifted": 3, "random_cam": 2},
            regions={"names": ["border", "corners", "centre"], "draws": 2},
        ),
        small(),
    )
    made.forward("m")  # a backend is chosen once
    _ = made.network("m").model.structure, made.hooked("m").structure  # read once
    waits, at_first_read = _Waits(), []
    fetch = transfer.Results.fetch

    def marked(results):
        at_first_read.append(list(waits.seen))
        fetch(results)

    monkeypatch.setattr(transfer.Results, "fetch", marked)
    with waits:
        made(shard())
    assert len(at_first_read) == 1  # scores, overlaps and shares of area of the whole shard
    assert len(copies) == 1
    on_host = {"numpy", "__int__"}  # of what .cpu() gave, and of regions' geometry, which never was on a device
    before = [name for name in at_first_read[0] if name not in on_host]
    assert before == ["cpu"] * 2
