"""Small networks of many kinds; a sweep names them ``factory:tests.builders.architectures:NAME``."""

from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import swin_transformer, vgg
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

SIZE = 32
FACTORY = "factory:tests.builders.architectures"


def densenet(outputs: int) -> nn.Module:
    """Functional ReLU before the pooling, which works in place."""
    return torchvision.models.DenseNet(4, (2, 2), 8, num_classes=outputs)


def vgg_small(outputs: int) -> nn.Module:
    """A head of three linear layers."""
    network = vgg.VGG(vgg.make_layers([8, "M", 16, "M"], batch_norm=True), num_classes=outputs, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(2)
    network.classifier = nn.Sequential(
        nn.Linear(64, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 12), nn.ReLU(True), nn.Linear(12, outputs)
    )
    return network


def vit(outputs: int) -> nn.Module:
    """A class token: what the last block makes of the other tokens reaches no score."""
    return torchvision.models.VisionTransformer(SIZE, 8, 2, 2, 16, 32, num_classes=outputs)


def swin(outputs: int) -> nn.Module:
    """Channels stand last inside."""
    return swin_transformer.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=outputs)


def convnext(outputs: int) -> nn.Module:
    """A norm between pooling and head."""
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=outputs, layer_scale=0.5)


class Reused(nn.Module):
    """One ReLU that serves thrice, once on a sum, and a functional one before average pooling by ``mean``."""

    def __init__(self, outputs: int, last: str = "relu"):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.three, self.four = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.relu, self.last = nn.ReLU(inplace=True), last
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.two(self.relu(self.one(x))))
        x = self.relu(self.three(x) + x)
        x = self.four(x)
        x = {"relu": F.relu, "clamp": lambda y: y.clamp(min=0), "gelu": F.gelu}[self.last](x)
        return self.fc(x.mean((2, 3)))


clamped = partial(Reused, last="clamp")


class InPlace(nn.Module):
    """A ReLU in place changes what the shortcut reads: taken apart, the network is another."""

    def __init__(self, outputs: int):
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.fc((self.two(self.relu(x)) + x).mean((2, 3)))


def varied(network: nn.Module, size: int) -> nn.Module:
    """The network with batch norms that know its features, so that none vanish, and a head that is not zero."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.out_features <= 2:
            nn.init.normal_(module.weight, std=0.5)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(images(4, size))
    return network.eval()


def images(n: int = 2, size: int = SIZE) -> Tensor:
    """Noise in model space."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(2))
