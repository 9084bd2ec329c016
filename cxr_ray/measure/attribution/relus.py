"""Copies of a network whose ReLUs and max pooling can be hooked one by one."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from cxr_ray.models.networks import Classifier


class _Block(BasicBlock):
    """torchvision's block with a second ReLU in place of a second call of the first."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


def with_separate_relus(model: Classifier) -> Classifier:
    """A copy that shares the weights, whose ReLUs neither work in place nor serve twice: captum hooks each of them."""
    copied = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
    for module in list(copied.modules()):
        if type(module) is BasicBlock:
            module.__class__ = _Block
            module.relu2 = nn.ReLU()
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return copied


class ReluMaxPool(nn.Module):
    """Max pooling out of ReLUs, max(a, b) = a + relu(b - a), first along rows, then along columns."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self.width, self.stride, self.padding = (
            n if isinstance(n, int) else n[0] for n in (pool.kernel_size, pool.stride, pool.padding)
        )
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(2 * (self.width - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Maxima over windows."""
        relus = iter(self.relus)
        x = F.pad(x, [self.padding] * 4, mode="replicate")  # what is repeated lies in the window anyway
        for axis in (3, 2):
            x, *others = x.unfold(axis, self.width, self.stride).unbind(-1)
            for other in others:
                x = x + next(relus)(other - x)
        return x
