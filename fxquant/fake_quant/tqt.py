"""Trained thresholds: scales are powers of two, of a threshold that the loss trains in log2.

    s = 2^ceil(t) / 2^(bits - 1)             2^bits above 0 where there is nothing below it
    dt = s · ln 2 · ds                       ds as by LSQ, without its factor; ceil passes through

`log_threshold` is t. It starts at three standard deviations, at most where the range ends. An
integer network of such scales and symmetric values rescales by shifts alone.

Source: Jain et al. 2020, "Trained Quantization Thresholds for Accurate and Efficient Fixed-Point
Inference of Deep Neural Networks", equations 4 to 8. It trains t with Adam: gradients are not
normalised here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.learned import (
    LearnedGrid,
    held,
    mean_over_ranks,
    round_learned,
    stand_in,
)
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.pact import middle_or_end
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import SMALLEST_SCALE, Channels, QParams, QuantScheme


@dataclass(frozen=True)
class TQT(FakeQuant):
    """Scales are powers of two, and the logarithms of thresholds are parameters."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """Symmetric, or from 0 on if the first batch has nothing below 0."""
        return TrainedThreshold(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With a threshold for each channel, or for all (which the paper has)."""
        rows = channels.rows(weight.detach().float())
        values = rows if scheme.per_channel else rows.reshape(1, -1)
        start = log_threshold(values.square().mean(1), values.abs().amax(1))
        return TrainedWeightThreshold(scheme, channels, start, len(rows))


class TrainedThreshold(LearnedGrid):
    """Fake-quantizes activations with a power of two."""

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.log_threshold = nn.Parameter(torch.tensor(0.0))
        if observer.seen:
            self.follow_observer()

    def start_from(self, low: Tensor, high: Tensor, x: Tensor | None) -> None:
        """Three standard deviations about 0, at most where the range ends."""
        self.zero_point.copy_(middle_or_end(low, self.scheme))
        largest = torch.maximum(high, -low).float()
        square = largest.square() if x is None else mean_over_ranks(x.square())
        self.log_threshold.copy_(log_threshold(square, largest))

    def rounded(self, x: Tensor) -> Tensor:
        """On the grid, with TQT's gradient for the threshold."""
        q = self.qparams
        scale = stand_in(self.log_threshold, q.scale, q.scale * math.log(2))
        return round_learned(x, scale, q.zero_point, self.scheme)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""
        half, goes_below = 2.0 ** (self.scheme.bits - 1), self.zero_point > self.scheme.qmin
        codes = torch.where(goes_below, half, 2 * half).to(self.log_threshold)
        scale = power_of_two(self.log_threshold, codes, self.scheme)
        return QParams(scale, self.zero_point, self.scheme)


class TrainedWeightThreshold(WeightFakeQuant):
    """Fake-quantizes a weight with powers of two."""

    def __init__(
        self, scheme: QuantScheme, channels: Channels, start: Tensor, count: int
    ) -> None:
        """`start`: t of each of `count` channels, or one for all."""
        super().__init__(scheme, channels)
        self.log_threshold = nn.Parameter(start.clone())
        self._count = count

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, with TQT's gradient for the threshold."""
        scale = self._scale
        scale = stand_in(self.log_threshold, scale, scale * math.log(2))
        scale = self.channels.spread(scale.expand(self._count), weight)
        return round_learned(weight, scale, torch.zeros_like(scale), self.scheme)

    def scale(self, weight: Tensor) -> Tensor:
        """2^ceil(t) / 2^(bits - 1)."""
        return self._scale.float().expand(self._count)

    @property
    def _scale(self) -> Tensor:
        return power_of_two(self.log_threshold, 2.0 ** (self.scheme.bits - 1), self.scheme)


def log_threshold(mean_square: Tensor, largest: Tensor) -> Tensor:
    """t for values with that mean square: log2 of 3σ, at most of the largest."""
    threshold = torch.minimum(3 * mean_square.sqrt(), largest)
    return torch.where(threshold > 0, threshold, torch.ones_like(threshold)).log2()


def power_of_two(log: Tensor, codes: Tensor | float, scheme: QuantScheme) -> Tensor:
    """2^ceil(t) over the codes, a power of two even where it is held away from 0 and infinity."""
    least = math.ceil(math.log2(SMALLEST_SCALE)) + scheme.bits
    return held(torch.exp2(log.detach().ceil().clamp(least, 126)) / codes, scheme)
