"""A range that is known beforehand, as that of a sigmoid is: [0, 1], whatever comes by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.fields import check_fields
from fxquant.observers.base import Extremes
from fxquant.schemes import LARGEST, Number


@dataclass(frozen=True)
class Fixed(Extremes):
    """Proposes one range from the first finite batch on: until then there is no data."""

    low: float
    high: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not -LARGEST <= self.low <= self.high <= LARGEST:
            raise ConfigError(
                f"a fixed range is finite and not empty, got {self.low:g} to {self.high:g}"
            )

    def first(self, batch: tuple[Number, Number]) -> tuple[Number, Number]:
        """The fixed range, whatever the batch's extremes."""
        return self.next(batch, batch)

    def next(
        self, before: tuple[Number, Number], batch: tuple[Number, Number]
    ) -> tuple[Number, Number]:
        """The fixed range still."""
        if isinstance(batch[0], Tensor):
            return torch.full_like(batch[0], self.low), torch.full_like(batch[1], self.high)
        return self.low, self.high
