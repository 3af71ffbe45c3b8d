"""The extremes of everything seen:  low = min(low, min x),  high = max(high, max x)."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.observers.base import Observer


class MinMax(Observer):
    """The smallest and the largest value ever seen."""

    def update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Widen the range to the batch's extremes."""
        return torch.minimum(self.low, low), torch.maximum(self.high, high)
