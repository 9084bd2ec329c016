"""A network that hangs in training."""

import threading

from torch import Tensor

from tests.builders.networks import Small


class Hanging(Small):
    """Hangs in one forward pass of training, until it may go on.

    Attributes:
        at: the pass that hangs, counted over all networks.
        goes_on: whether it may; it raises then.
    """

    at = 1
    passes = 0
    goes_on = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Hanging.passes += 1
            if Hanging.passes == Hanging.at:
                assert self.goes_on.wait(60)
                raise TimeoutError("it hung")
        return super().forward(x)
