"""A range that is known beforehand, as that of a sigmoid is: [0, 1], whatever comes by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.observers.base import Observer


class Fixed(Observer):
    """Proposes one range from the first finite batch on: until then there is no data."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ConfigError(f"a fixed range is finite and not empty, got {low:g} to {high:g}")
        self.range = (low, high)

    def update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The fixed range, whatever the batch's extremes."""
        fixed_low, fixed_high = self.range
        return torch.full_like(low, fixed_low), torch.full_like(high, fixed_high)

    def extra_repr(self) -> str:
        """The range, for print(model)."""
        return "{:g} to {:g}".format(*self.range)
