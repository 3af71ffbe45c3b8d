"""The extremes of everything seen:  low = min(low, min x),  high = max(high, max x)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.observers.base import Extremes
from fxquant.schemes import Number


@dataclass(frozen=True)
class MinMax(Extremes):
    """The smallest and the largest value ever seen. Exact across batches and ranks."""

    def next(
        self, before: tuple[Number, Number], batch: tuple[Number, Number]
    ) -> tuple[Number, Number]:
        """Widen the range to the batch's extremes."""
        (low, high), (batch_low, batch_high) = before, batch
        if isinstance(low, Tensor):
            return torch.minimum(low, batch_low), torch.maximum(high, batch_high)
        return min(low, batch_low), max(high, batch_high)
