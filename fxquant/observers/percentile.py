"""What all but a few values lie in:  [Q(1 - p), Q(p)], with p = percent / 100.

Q is the quantile function of a histogram, linear inside each bin. Source: Li et al. 2019, "Fully
Quantized Network for Object Detection", section 3.2; Wu et al. 2020, "Integer Quantization for Deep
Learning Inference", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.fields import check_fields
from fxquant.observers.base import Statistical
from fxquant.observers.histogram import Bins, Histogram, bins_of
from fxquant.schemes import QuantScheme


@dataclass(frozen=True)
class Percentile(Statistical):
    """Leaves out 100 - `percent` of a hundred values at either end."""

    statistic = Histogram()
    percent: float = 99.9

    def __post_init__(self) -> None:
        check_fields(self)
        if not 50.0 < self.percent <= 100.0:
            raise ConfigError(f"percent lies in (50, 100], got {self.percent}")

    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        bins, share = bins_of(statistics), self.percent / 100
        return quantile(bins, 1 - share), quantile(bins, share)


def quantile(bins: Bins, share: float) -> float:
    """The number below which `share` of the values lie, as far as bins tell."""
    below = torch.cumsum(bins.counts, 0)
    wanted = share * below[-1]
    k = min(int(torch.searchsorted(below, wanted)), len(below) - 1)
    inside = (wanted - below[k] + bins.counts[k]) / bins.counts[k]
    return (bins.first + k + float(inside)) * bins.width
