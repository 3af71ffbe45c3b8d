"""The clipping after which the rounded distribution tells most of the original.

For each threshold T, P is the histogram of |x| below T, what lies beyond added to its last bin; Q
is the same without what lies beyond, merged into as many groups as there are codes and spread
again over those bins of each group that were not empty. T is where KL is smallest:

    KL(P ‖ Q) = Σ P_k · log(P_k / Q_k)        both normalised

The first bin counts as often as the second: 0 is exact with any T, and a ReLU makes many of it.

Source: Migacz 2017, "8-bit Inference with TensorRT" (GTC), slides 31 to 40.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.observers.base import Statistical
from fxquant.observers.histogram import Histogram, bins_of
from fxquant.schemes import QuantScheme

_CANDIDATES = 256  # more move T by less than a hundredth


@dataclass(frozen=True)
class KL(Statistical):
    """The threshold of least divergence; both ends are cut there."""

    statistic = Histogram()

    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        bins = bins_of(statistics)
        counts = bins.magnitudes
        one_sided = bins.one_sided and not scheme.symmetric  # then all codes are for one sign
        levels = 2 ** (scheme.bits if one_sided else scheme.bits - 1)
        threshold = best_threshold(counts, levels) * bins.width
        return -threshold, threshold


def best_threshold(counts: Tensor, levels: int) -> int:
    """How many bins to keep of a histogram of |x|, float64 [n], for so many codes."""
    counts = counts.clone()
    counts[0] = counts[min(1, len(counts) - 1)]
    step = max(1, (len(counts) - levels) // _CANDIDATES)
    kept: list[int] = [*range(levels, len(counts), step), len(counts)]
    # of equals the widest, which clips least
    return min(reversed(kept), key=lambda n: _divergence_at(counts, n, levels))


def _divergence_at(counts: Tensor, kept: int, levels: int) -> float:
    if kept < len(counts) and int(counts[:kept].count_nonzero()) < 2:
        return math.inf  # all in one bin: no divergence, because nothing is told any more
    q = spread(counts[:kept], levels)
    p = counts[:kept].clone()
    p[-1] += counts[kept:].sum()
    return divergence(p, q)


def spread(p: Tensor, levels: int) -> Tensor:
    """`p` merged into `levels` groups, and each group spread over its bins that are not empty.

        [1, 0, 2, 3, 5, 3, 1, 7] into 2    [2, 0, 2, 2, 4, 4, 4, 4]
    """
    group = torch.arange(len(p)) * levels // len(p)
    sums, filled = torch.zeros(2, levels, dtype=p.dtype).unbind()
    sums.index_add_(0, group, p)
    filled.index_add_(0, group, (p > 0).to(p.dtype))
    return torch.where(p > 0, (sums / filled.clamp(min=1))[group], 0.0)


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) of two histograms; infinite where q has nothing that p has."""
    there = p > 0
    if not bool(there.any()):
        return 0.0
    if bool((q[there] == 0).any()):
        return math.inf
    p, q = p[there] / p.sum(), q[there] / q.sum()
    return float((p * torch.log(p / q)).sum())
