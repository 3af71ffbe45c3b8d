"""Parameterized clipping: where activations are clipped is a parameter that the loss trains.

    y = round(clamp(x, -a, a) / s) · s       s = a / Q        0 at the lower end if nothing is below
    dx = dy where x is not clipped, 0 where it is        da = Σ dy · (±1 where x is clipped)

Q is the largest code above the zero point. What rounding takes is no part of the gradient. The
paper starts at 10; here the first batch's range does. It adds an L2 penalty of `clip` to the loss,
as weight decay does. Its activations are ReLUs; one with negative values is clipped at -a, too.

Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
equations 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.learned import LearnedGrid, held, stand_in
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import ObservedWeight
from fxquant.fake_quant.straight_through import round_to_grid
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import Channels, QParams, QuantScheme


@dataclass(frozen=True)
class PACT(FakeQuant):
    """Where activations are clipped is a parameter, `clip`; weights are as by StraightThrough."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """Clipped at ±`clip`, or at 0 and `clip` if the first batch has nothing below 0."""
        return LearnedClip(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With the largest weight of each channel."""
        return ObservedWeight(scheme, channels)


class LearnedClip(LearnedGrid):
    """Fake-quantizes activations that are clipped where the loss wants it."""

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.clip = nn.Parameter(torch.tensor(1.0))
        if observer.seen:
            self.follow_observer()

    def start_from(self, low: Tensor, high: Tensor, x: Tensor | None) -> None:
        """Where the range ends, and in the middle of the codes if it holds negative numbers."""
        self.zero_point.copy_(middle_or_end(low, self.scheme))
        self.clip.copy_(torch.maximum(high, -low))

    def rounded(self, x: Tensor) -> Tensor:
        """Clipped, then on the grid: nothing is clipped twice."""
        scale = self.scale
        sign = torch.where(self.clip < 0, -1.0, 1.0)
        clip = stand_in(self.clip, scale * self._steps, sign).to(x.dtype)
        low = torch.where(self.zero_point > self.scheme.qmin, -clip, torch.zeros_like(clip))
        clipped = torch.where(x >= clip, clip, torch.where(x <= low, low, x))
        return round_to_grid(clipped, scale)

    @property
    def _steps(self) -> Tensor:
        return self.scheme.qmax - self.zero_point

    @property
    def scale(self) -> Tensor:
        """The scale in force: |clip| over the codes above the zero point, positive and finite."""
        return held(self.clip.detach().abs() / self._steps, self.scheme)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""
        return QParams(self.scale, self.zero_point, self.scheme)


def middle_or_end(low: Tensor, scheme: QuantScheme) -> Tensor:
    """The zero point of a symmetric range, or of one from 0 on where nothing is below: the code in
    the middle, or the lowest one; 0-dim.
    """
    middle = scheme.qmin + (scheme.qmax - scheme.qmin + 1) // 2
    lowest = middle if scheme.symmetric else scheme.qmin
    return torch.where(low < 0, middle, lowest)
