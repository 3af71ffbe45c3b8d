"""What the examples share: scikit-learn's handwritten digits, and a small network that reads."""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("The examples read scikit-learn's handwritten digits: pip install scikit-learn")

Digits = tuple[Tensor, Tensor]  # images, float [N, 1, 8, 8] in [0, 1]; what they show, int64 [N]


def digits() -> tuple[Digits, Digits]:
    """1400 to train on, and 397 held out: others wrote them."""
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def network() -> nn.Module:
    """Three convolutions and a head: [N, 1, 8, 8] to logits [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Any loop will do; this one knows nothing of quantization."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the model reads right."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())
