"""Real handwriting and small networks that read it: what benchmarks train, whatever the tool.

A DARTS_V2 network, a ResNet and a MobileNet, of 8 to 22 thousand parameters, read scikit-learn's
1797 digits of 8 × 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fxquant.darts import DARTS_V2, NetworkCIFAR

BATCH = 64
ALL, TRAINING = 1797, 1078  # digits there are, and of these three in five to train on


class Digits(NamedTuple):
    """Images, float [N, C, 8, 8] in -1..1, and labels, int64 [N]."""

    images: Tensor
    labels: Tensor


def seeded(seed: int) -> torch.Generator:
    """Numbers by chance that `seed` decides."""
    return torch.Generator().manual_seed(seed)


def digits(generator: torch.Generator, channels: int = 1) -> tuple[Digits, Digits]:
    """To train on, and held out."""
    training, held_out = divided(torch.arange(ALL), generator)
    return chosen(training, channels), chosen(held_out, channels)


def divided(which: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of the numbers of some digits, int64 [N], 1078 by chance, and the others."""
    order = which[torch.randperm(len(which), generator=generator)]
    return order[:TRAINING], order[TRAINING:]


def chosen(which: Tensor, channels: int = 1) -> Digits:
    """The digits of those numbers, int64 [N]."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = images.expand(-1, channels, -1, -1)
    return Digits(images[which], torch.tensor(found.target)[which])


class Residual(nn.Module):
    """[N, c_in, H, W] -> [N, c_out, H/stride, W/stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


def resnet() -> nn.Module:
    """Three residual blocks, [N, 1, 8, 8] -> [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        Residual(12, 12, 1), Residual(12, 24, 2), Residual(24, 24, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise, project; the last without an activation."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        c = 4 * c_in
        self.expand, self.bn1 = nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c)
        self.depthwise = nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(c), nn.BatchNorm2d(c_out)
        self.project = nn.Conv2d(c, c_out, 1, bias=False)
        self.act1, self.act2 = nn.ReLU6(), nn.ReLU6()
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.act2(self.bn2(self.depthwise(self.act1(self.bn1(self.expand(x))))))
        y = self.bn3(self.project(y))
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """Three inverted residuals, [N, 1, 8, 8] -> [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        Inverted(8, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1),
        nn.Conv2d(24, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )


def darts() -> nn.Module:
    """Three cells of DARTS_V2, [N, 3, 8, 8] -> [N, 10]."""
    return NetworkCIFAR(C=8, num_classes=10, layers=3, genotype=DARTS_V2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "DARTS_V2": (darts, 3),  # and the channels of its images
    "ResNet": (resnet, 1),
    "MobileNet": (mobilenet, 1),
}


def train(
    model: nn.Module, data: Digits, epochs: int, optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Cross entropy, learning rates that fall to 0; the model is in eval() afterwards."""
    model.train()
    steps = epochs * math.ceil(len(data.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for i in torch.randperm(len(data.labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.images[i]), data.labels[i]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of digits that are read correctly."""
    found = torch.cat([model(images).argmax(1) for images in data.images.split(256)])
    return float((found == data.labels).double().mean())
