"""Extremes that follow the training:  low += momentum · (min x - low), high likewise.

The first batch sets the range. Source: Jacob et al. 2018, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxquant.errors import ConfigError
from fxquant.fields import check_fields
from fxquant.observers.base import Extremes
from fxquant.schemes import Number


@dataclass(frozen=True)
class MovingAverage(Extremes):
    """An exponential moving average of each batch's minimum and maximum. Later batches weigh more,
    so their order matters.
    """

    momentum: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.0 < self.momentum <= 1.0:
            raise ConfigError(f"momentum must lie in (0, 1], got {self.momentum}")

    def next(
        self, before: tuple[Number, Number], batch: tuple[Number, Number]
    ) -> tuple[Number, Number]:
        """Move the range towards the batch's extremes."""
        (low, high), (batch_low, batch_high) = before, batch
        m = self.momentum
        return low + m * (batch_low - low), high + m * (batch_high - high)
