"""The rate of forward passes that a dry run tells, by a clock of its own."""

import pytest
import torch

from cxr_ray.models import networks
from cxr_ray.run import passes


class Counted(torch.nn.Module):
    """A network that counts the images of its passes, each of which takes a tenth of a second."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock, self.seen = clock, 0

    def log_odds(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen += len(batch)
        self.clock[0] += 0.1
        return batch.sum((1, 2, 3))


def test_the_rate_is_images_over_seconds_without_the_first_pass(monkeypatch):
    clock = [0.0]
    network = Counted(clock)
    monkeypatch.setattr(networks, "build", lambda arch, spec: network)
    monkeypatch.setattr(passes.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert passes.forward_rate(32) == pytest.approx(80)  # 8 images in a tenth of a second
    assert network.seen == 8 * 12, "one pass to warm up, and then until a second is over"
