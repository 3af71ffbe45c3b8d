"""A network that the command line is told of as 'tests.command.small:network'."""

import torch
from torch import nn


def network() -> nn.Module:
    """For digits of 16 × 16 in grey, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )


def number() -> int:
    """No network."""
    return 3
