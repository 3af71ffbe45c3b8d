"""A tiny network and data that it can learn, for loops of every kind."""

import hashlib

import torch
from torch import Tensor, nn


def net() -> nn.Module:
    """Two convolutions with batch norms, and a head; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip


def data(count: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 8, 8], and which of three kinds of brightness they have."""
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, (x.mean((1, 2, 3)) * 20).long().clamp(-1, 1) + 1


def state_hash(*states: object) -> str:
    """A digest of every tensor and number in state dicts."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        elif isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(repr(value).encode())

    for state in states:
        add(state)
    return digest.hexdigest()
