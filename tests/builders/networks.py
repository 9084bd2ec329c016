"""Networks that are small enough to count and compare in milliseconds."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from cxr_ray.models.networks import Classifier, ModelSpec

CHANNELS = 16  # of the last block


class Small(nn.Module):
    """A ResNet of one block with the names of torchvision's; the last block has side / 8 places a side."""

    def __init__(self, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        down = nn.Sequential(nn.Conv2d(8, CHANNELS, 1, stride=2), nn.BatchNorm2d(CHANNELS))
        self.layer4 = nn.Sequential(BasicBlock(8, CHANNELS, 2, down))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(CHANNELS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer4(x)).flatten(1))


def small(outputs: int = 2, size: int = 56) -> Classifier:
    """A classifier of random weights, in eval mode, without gradients of its weights."""
    torch.manual_seed(0)
    return Classifier(Small(outputs), ModelSpec("resnet18", size, outputs)).eval().requires_grad_(False)
