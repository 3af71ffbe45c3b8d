"""The clipping that costs least if values are distributed as a Gauss or a Laplace curve.

    laplace   α = t·b,   t·e^t = 3·4^M                         b = E|x - μ|
    gauss     α = t·σ,   4·(φ(t) - t·Q(t)) = 2t / (3·4^M)      σ² = E(x - μ)²

for M bits and the range [μ - α, μ + α]: there the cost of clipping, which falls, and that of
rounding, α²/(3·4^M), have opposite slopes. φ is the normal density, Q its upper tail. Values of one
sign are what a ReLU leaves of a curve around 0: μ = 0, b or σ is that of values that are not 0, and
all codes are for one side, as if there were a bit more.

Source: Banner et al. 2019, "Post-training 4-bit quantization of convolution networks for
rapid-deployment", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.observers.base import Statistical
from fxquant.observers.histogram import Histogram, bins_of
from fxquant.schemes import QuantScheme


@dataclass(frozen=True)
class ACIQ(Statistical):
    """The analytic clipping of a distribution."""

    statistic = Histogram()
    distribution: Literal["laplace", "gauss"] = "laplace"

    def __post_init__(self) -> None:
        if self.distribution not in ("laplace", "gauss"):
            raise ConfigError(f"distribution is 'laplace' or 'gauss', got {self.distribution!r}")

    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        bins = bins_of(statistics)
        counts, centres = bins.counts, bins.centres
        mean, bits = 0.0, scheme.bits
        if bins.one_sided:
            counts = counts * (centres.abs() > bins.width)  # without what is 0
            bits = bits if scheme.symmetric else bits + 1
        else:
            mean = float(counts @ centres / counts.sum())
        count, apart = max(float(counts.sum()), 1.0), (centres - mean).abs()
        if self.distribution == "laplace":
            alpha = laplace_clip(bits) * float(counts @ apart) / count
        else:
            alpha = gauss_clip(bits) * math.sqrt(float(counts @ apart.square()) / count)
        return mean - alpha, mean + alpha


def laplace_clip(bits: int) -> float:
    """α/b of the least cost."""
    return _root(lambda t: t * math.exp(t) - 3 * 4.0**bits)


def gauss_clip(bits: int) -> float:
    """α/σ of the least cost."""

    def slope(t: float) -> float:
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        tail = math.erfc(t / math.sqrt(2)) / 2
        return 2 * t / (3 * 4.0**bits) - 4 * (density - t * tail)

    return _root(slope)


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function is 0, between 0 and 64: by halving, to the last bit."""
    low, high = 0.0, 64.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high
