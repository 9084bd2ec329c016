"""Networks that are small enough to count and compare in milliseconds."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from cxr_ray.models.networks import Classifier, ModelSpec, build

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


def varied_small(outputs: int = 2, seed: int = 0) -> nn.Module:
    """A small network in eval mode whose logits differ from image to image."""
    torch.manual_seed(seed)
    network = Small(outputs).eval()
    nn.init.normal_(network.fc.weight, std=1.0)
    return network


def varied_resnet18(outputs: int = 2, seed: int = 0) -> nn.Module:
    """A torchvision ResNet-18 in eval mode whose logits differ from image to image."""
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(num_classes=outputs).eval()
    nn.init.normal_(network.fc.weight, std=1.0)
    return network


def varied(arch: str, size: int, outputs: int = 2) -> Classifier:
    """A classifier of random weights whose batch norms do something."""
    torch.manual_seed(0)
    classifier = build(arch, ModelSpec(arch, size, outputs))
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return classifier
