"""How often values lie where, on bins that any two histograms can share.

    bin k counts x in [k·w, (k + 1)·w)     w = 2^e, the smallest that holds all in -2048 … 2047

Wider bins are whole pairs of narrower ones, k >> 1, so that merging loses nothing: the histogram of
all data is the same whatever the batches, their order and the ranks that saw them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.observers.base import Statistic

_HALF = 2048
_HALF_BITS = 11
_SMALLEST = -1000.0  # exponents end here: nothing seen, or zeros alone


class Bins(NamedTuple):
    """A histogram from its first to its last bin that is not empty.

    `counts` float64 [n]; `first` the number k of the first bin; `width` of each.
    """

    counts: Tensor
    first: int
    width: float

    @property
    def centres(self) -> Tensor:
        """The middle of each bin, float64 [n]."""
        return (torch.arange(len(self.counts), dtype=torch.float64) + self.first + 0.5) * self.width

    @property
    def low(self) -> float:
        """Where the first bin begins."""
        return self.first * self.width

    @property
    def high(self) -> float:
        """Where the last bin ends."""
        return (self.first + len(self.counts)) * self.width

    @property
    def magnitudes(self) -> Tensor:
        """How often |x| lies in [k·w, (k + 1)·w): float64, up to the last that is not empty."""
        end = max(-self.first, self.first + len(self.counts))
        whole = torch.zeros(2 * end, dtype=torch.float64)
        whole[end + self.first : end + self.first + len(self.counts)] = self.counts
        return whole[end:] + whole[:end].flip(0)

    @property
    def one_sided(self) -> bool:
        """Whether all values have one sign, or are 0."""
        return self.low >= 0.0 or self.high <= 0.0


class Histogram(Statistic):
    """The exponent e, and the counts of the bins -2048 … 2047."""

    def empty(self) -> Tensor:
        statistics = torch.zeros(1 + 2 * _HALF, dtype=torch.float64)
        statistics[0] = _SMALLEST
        return statistics

    def of(self, x: Tensor) -> Tensor:
        # in float64, where no quotient by a power of two is rounded
        values = x.flatten().double()
        largest = values.abs().max()
        _, exponent = torch.frexp(largest)
        exponent = torch.where(largest > 0.0, exponent.double() - _HALF_BITS, _SMALLEST)
        exponent = exponent.clamp(min=_SMALLEST)
        bins = torch.floor(values * 2.0**-exponent).long()
        counts = torch.bincount(bins + _HALF, minlength=2 * _HALF)
        return torch.cat([exponent[None], counts.double()])

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        exponent = torch.maximum(one[0], other[0])
        counts = _widened(one, exponent) + _widened(other, exponent)
        return torch.cat([exponent[None], counts])


def bins_of(statistics: Tensor) -> Bins:
    """The histogram in a vector of `Histogram` that holds data, on the CPU."""
    counts = statistics[1:]
    (filled,) = torch.nonzero(counts, as_tuple=True)
    first, last = int(filled[0]), int(filled[-1])
    return Bins(counts[first : last + 1], first - _HALF, 2.0 ** float(statistics[0]))


def _widened(statistics: Tensor, exponent: Tensor) -> Tensor:
    """The counts for bins of width 2^exponent, which is not smaller than theirs."""
    shift = (exponent - statistics[0]).clamp(max=_HALF_BITS + 1).long()  # then -1 and 0 are left
    numbers = torch.arange(-_HALF, _HALF, device=statistics.device) >> shift
    return torch.zeros_like(statistics[1:]).index_add_(0, numbers + _HALF, statistics[1:])
