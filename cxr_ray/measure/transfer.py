"""Between host and device: whole numbers and masks go there without a wait, results come back together.

A copy from the device to the host waits for all that the device was asked to do. So results stay where they are until
one of them is read, and then all come in one copy.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray, device: torch.device) -> Tensor:
    """A copy of an array on the device; the host does not wait for it."""
    return torch.from_numpy(np.array(values)).to(device, non_blocking=True)


def to_host(values: Tensor) -> NDArray:
    """An array of a tensor: waits for the device."""
    array: NDArray = values.cpu().numpy()
    return array


class Result:
    """A tensor, float32 on the device, that is an array on the host once it is read."""

    def __init__(self, results: Results, values: Tensor):
        self._results, self.values = results, values
        self._array: NDArray[np.float32] | None = None

    def array(self) -> NDArray[np.float32]:
        """The values on the host; brings those of all results that wait."""
        if self._array is None:
            self._results.fetch()
        assert self._array is not None  # it was among those that wait
        return self._array


class Results:
    """The results of a shard."""

    def __init__(self) -> None:
        self._waiting: list[Result] = []

    def put(self, values: Tensor) -> Result:
        """A result that waits."""
        result = Result(self, values)
        self._waiting.append(result)
        return result

    def fetch(self) -> None:
        """Bring all that wait to the host, in one copy."""
        waiting, self._waiting = self._waiting, []
        flat = to_host(torch.cat([result.values.flatten().float() for result in waiting]))
        ends = np.cumsum([result.values.numel() for result in waiting])[:-1]
        for result, part in zip(waiting, np.split(flat, ends), strict=True):
            result._array = part.reshape(result.values.shape)
            del result.values
