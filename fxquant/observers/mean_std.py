"""So many standard deviations around the mean:  [μ - n·σ, μ + n·σ].

μ and σ² are those of all values: mean and sum of squared deviations are merged batch by batch,
which loses nothing to cancellation. Sources: Distiller (Zmora et al. 2019), clipping "n_std"; Chan
et al. 1983, "Algorithms for Computing the Sample Variance", equation 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.fields import check_fields
from fxquant.observers.base import Statistic, Statistical
from fxquant.schemes import QuantScheme


class _Moments(Statistic):
    """Count, mean, Σ (x - mean)²."""

    def empty(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64)

    def of(self, x: Tensor) -> Tensor:
        values = x.double()
        mean = values.mean()
        count = torch.full_like(mean, values.numel())
        return torch.stack([count, mean, (values - mean).square().sum()])

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        (n, mean, squares), (m, other_mean, other_squares) = one, other
        count = n + m
        share = m / count.clamp(min=1.0)
        apart = other_mean - mean
        squares = squares + other_squares + apart.square() * n * share
        return torch.stack([count, mean + apart * share, squares])


@dataclass(frozen=True)
class MeanStd(Statistical):
    """The mean and `stds` standard deviations on either side."""

    statistic = _Moments()
    stds: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.0 < self.stds < math.inf:
            raise ConfigError(f"stds is a positive number of deviations, got {self.stds}")

    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        count, mean, squares = statistics.tolist()
        reach = self.stds * math.sqrt(squares / count)
        return mean - reach, mean + reach
