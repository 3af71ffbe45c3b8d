"""A range that is known beforehand, as that of a sigmoid is: [0, 1], whatever comes by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.observers.base import Observer
from fxquant.schemes import Number


class Fixed(Observer):
    """Proposes one range from the first finite batch on: until then there is no data."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ConfigError(f"a fixed range is finite and not empty, got {low:g} to {high:g}")
        self.range = (low, high)

    def first(self, batch: tuple[Number, Number]) -> tuple[Number, Number]:
        """The fixed range, whatever the batch's extremes."""
        return self.next(batch, batch)

    def next(
        self, before: tuple[Number, Number], batch: tuple[Number, Number]
    ) -> tuple[Number, Number]:
        """The fixed range still."""
        low, high = self.range
        if isinstance(batch[0], Tensor):
            return torch.full_like(batch[0], low), torch.full_like(batch[1], high)
        return low, high

    def extra_repr(self) -> str:
        """The range, for print(model)."""
        return "{:g} to {:g}".format(*self.range)
