"""Plain forward passes in the fastest form: what the other benchmarks are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cxr_ray.models import backend_choice, backends, networks
from cxr_ray.models.backend_choice import InferenceBackend
from cxr_ray.models.backends import Forward, layout_of
from cxr_ray.models.networks import Classifier, ModelSpec

MANY = 10**7  # passes, in which every form's start-up pays
PRECISION = (str, "float32", "float32, tf32, half or auto")


@dataclass(frozen=True)
class Plain:
    """A network of random weights on this machine's device, in the form that a long run would choose.

    Attributes:
        model: eager.
        batch_size: images in a pass.
        form, forward: the form that was chosen.
    """

    model: Classifier
    batch_size: int
    form: InferenceBackend
    forward: Forward

    @classmethod
    def of(cls, size: int, precision: str = "float32", arch: str = "resnet18") -> Plain:
        """Chosen by measurement, or as an earlier run measured."""
        backends.full_float32()
        torch.manual_seed(0)
        model = networks.build(arch, ModelSpec(arch, size)).requires_grad_(False)
        model = model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch_size = backend_choice.batch_size(model, size)
        form, forward = backend_choice.choose(model, size, batch_size, MANY, precision)
        return cls(model, batch_size, form, forward)

    def passes(self, forward: Forward, batches: int = 1) -> Callable[[], int]:
        """So many passes of a batch that lies ready in the form's own type and memory format."""
        ready = laid_out(torch.rand(self.batch_size, 3, self.model.spec.size, self.model.spec.size), forward)

        @torch.no_grad()
        def run() -> int:
            for _ in range(batches):
                forward(ready)
            done()
            return batches * len(ready)

        return run


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def done() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def laid_out(images: Tensor, forward: Forward) -> Tensor:
    """Images on the device as a form reads them."""
    layout = layout_of(forward)
    order = torch.channels_last if layout.channels_last else torch.contiguous_format
    return images.to(device(), layout.dtype).contiguous(memory_format=order)
