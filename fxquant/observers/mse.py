"""The range of which rounding and clipping together cost least:

    min over t of  Σ n_k · (c_k - fq(c_k))²        range t·[low, high],  t = 0.01 … 1

c_k are the centres of a histogram's bins, n_k their counts, fq rounds to the grid of the range.
Source: Sung et al. 2015, "Resiliency of Deep Neural Networks under Quantization", section 3;
Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.observers.base import Statistical
from fxquant.observers.histogram import Bins, Histogram, bins_of
from fxquant.schemes import QuantScheme, range_to_numbers, round_half_up

_STEPS = 100


@dataclass(frozen=True)
class MSE(Statistical):
    """The part of the extremes' range with the least mean squared error."""

    statistic = Histogram()

    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        bins = bins_of(statistics)
        shares = [(i + 1) / _STEPS for i in range(_STEPS)]
        ranges = [(share * bins.low, share * bins.high) for share in shares]
        return min(ranges, key=lambda ends: squared_error(bins, ends[0], ends[1], scheme))


def squared_error(bins: Bins, low: float, high: float, scheme: QuantScheme) -> float:
    """What rounding to the grid of [low, high] costs: Σ (x - fq(x))², as far as bins tell."""
    scale, zero = range_to_numbers(low, high, scheme)
    codes = round_half_up(bins.centres / scale).clamp(scheme.qmin - zero, scheme.qmax - zero)
    return float(torch.dot(bins.counts, (bins.centres - codes * scale).square()))
