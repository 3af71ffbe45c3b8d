"""The average of each batch's extremes:  low = Σ min x_i / n,  high = Σ max x_i / n.

Rare outliers widen the range less than with `MinMax`, the more batches there are. Source: Distiller
(Zmora et al. 2019), post-training quantization, "averaging" clipping; there of each sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.observers.base import Statistic, Statistical
from fxquant.schemes import QuantScheme


class _SumsOfExtremes(Statistic):
    """Batches, Σ min x, Σ max x."""

    def empty(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64)

    def of(self, x: Tensor) -> Tensor:
        low, high = torch.aminmax(x)
        return torch.stack([torch.ones_like(low), low, high]).double()

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


@dataclass(frozen=True)
class AverageMinMax(Statistical):
    """The averages of the smallest and of the largest value of each batch."""

    statistic = _SumsOfExtremes()

    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        batches, low, high = statistics.tolist()
        return low / batches, high / batches
