"""Weights of two or three values, whose codes are signs.

    binary     q = 1 where w ≥ 0, else -1                          s = E|w|
    ternary    q = sign(w) where |w| > d, else 0, d = 0.7·E|w|     s = E|w| over those with |w| > d

for each output channel, or for all. Straight through: dw = dy.

Sources: Rastegari et al. 2016, "XNOR-Net", equation 6, with the gradient of Zhou et al. 2016,
"DoReFa-Net", equation 8; Li et al. 2016, "Ternary Weight Networks", equations 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import ObservedStep, ObservedWeight
from fxquant.fake_quant.straight_through import pass_through
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import SMALLEST_SCALE, TERNARY, Channels, QuantScheme


@dataclass(frozen=True)
class TWN(FakeQuant):
    """Weights whose scheme is TERNARY have the paper's threshold. All else, such as the first and
    the last layers with more bits, is as by StraightThrough.
    """

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With the range that `observer` proposes."""
        return ObservedStep(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With signs and zeros, where the scheme has no other codes."""
        ternary = (scheme.qmin, scheme.qmax) == (TERNARY.qmin, TERNARY.qmax)
        return (TernaryWeight if ternary else ObservedWeight)(scheme, channels)


def weight_quantizer(
    method: FakeQuant, scheme: QuantScheme, channels: Channels, weight: Tensor
) -> WeightFakeQuant:
    """What rounds `weight`: of `method`, but there is one way to take a sign."""
    if scheme.bits == 1:
        return BinaryWeight(scheme, channels)
    return method.weight(scheme, channels, weight)


class BinaryWeight(WeightFakeQuant):
    """Fake-quantizes a weight to its sign, whatever else is chosen. It has no state."""

    def forward(self, weight: Tensor) -> Tensor:
        """The sign times the mean size; the gradient is the identity."""
        return pass_through(weight, self.transform(weight))

    def scale(self, weight: Tensor) -> Tensor:
        """The mean size of each channel, or of all."""
        return _mean(weight.detach().float().abs(), None, self)

    def transform(self, weight: Tensor) -> Tensor:
        """±1 times the scale, so that rounding gives ±1."""
        sign = torch.where(weight.detach() >= 0, 1.0, -1.0)
        return (sign * self.channels.spread(self.scale(weight), weight)).to(weight.dtype)


class TernaryWeight(WeightFakeQuant):
    """Fake-quantizes a weight to its sign or 0. It has no state."""

    def forward(self, weight: Tensor) -> Tensor:
        """The sign times the mean of the large ones; the gradient is the identity."""
        scale = self.channels.spread(self.scale(weight), weight)
        codes = torch.where(self._large(weight), weight.detach().sign(), 0.0)
        return pass_through(weight, (codes * scale).to(weight.dtype))

    def scale(self, weight: Tensor) -> Tensor:
        """The mean size of those beyond the threshold."""
        return _mean(weight.detach().float().abs(), self._large(weight), self)

    def transform(self, weight: Tensor) -> Tensor:
        """Codes times the scale, so that rounding gives the codes."""
        codes: Tensor = self(weight.detach())
        return codes

    def _large(self, weight: Tensor) -> Tensor:
        size = weight.detach().float().abs()
        return size > 0.7 * self.channels.spread(_mean(size, None, self), weight)


def _mean(size: Tensor, of: Tensor | None, quantizer: WeightFakeQuant) -> Tensor:
    """The mean `size` for each channel, or for all, of those in `of`: float32 [C]."""
    rows = quantizer.channels.rows(size)
    chosen = torch.ones_like(rows) if of is None else quantizer.channels.rows(of.float())
    total, count = (rows * chosen).sum(1), chosen.sum(1)
    if not quantizer.scheme.per_channel:
        total, count = total.sum().expand_as(total), count.sum().expand_as(count)
    return (total / count.clamp(min=1)).clamp(min=SMALLEST_SCALE)
