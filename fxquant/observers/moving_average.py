"""Extremes that follow the training:  low += momentum · (min x - low), high likewise.

The first batch sets the range. Source: Jacob et al. 2018, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.observers.base import Observer


class MovingAverage(Observer):
    """An exponential moving average of each batch's minimum and maximum."""

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        if not 0.0 < momentum <= 1.0:
            raise ConfigError(f"momentum must lie in (0, 1], got {momentum}")
        self.momentum = momentum

    def update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Move the range towards the batch's extremes."""
        first = self.low > self.high
        new_low = torch.where(first, low, torch.lerp(self.low, low, self.momentum))
        new_high = torch.where(first, high, torch.lerp(self.high, high, self.momentum))
        return new_low, new_high

    def extra_repr(self) -> str:
        """The momentum, for print(model)."""
        return f"momentum={self.momentum}"
