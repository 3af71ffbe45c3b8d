"""The quantizers whose step follows what comes by while training: clip, and straight through.

The step of a weight is `max|w| / qmax`, read off the weight itself at every use, so that no weight
is clipped, its gradient is the identity, and no mask is computed or kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.projection import Nearest, Projection
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import (
    Channels,
    QParams,
    QuantScheme,
    on_host,
    range_to_numbers,
    range_to_qparams,
    weight_scale,
)

NEAREST: Projection = Nearest()


@dataclass(frozen=True)
class StraightThrough(FakeQuant):
    """Scales follow the ranges seen in training; gradients pass wherever nothing is clipped."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With the range that `observer` proposes."""
        return ObservedStep(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With the largest weight of each channel."""
        return ObservedWeight(scheme, channels)


class ObservedStep(ActivationFakeQuant):
    """Fake-quantizes activations with the range its observer proposes."""

    scale: Tensor

    def __init__(
        self, scheme: QuantScheme, observer: Observer, projection: Projection = NEAREST
    ) -> None:
        super().__init__(scheme, observer)
        self.projection = projection
        self.register_buffer("scale", torch.tensor(1.0))
        if observer.seen:
            self.follow_observer()

    def forward(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited, on the grid. In training the range follows what `x` is then, first."""
        if not self.training:
            return NEAREST.activation(x, self.qparams, (least, most))
        extremes = self.observer.watch(x, least, most)
        self.follow_observer()
        return self.projection.activation(x, self.qparams, (least, most), extremes)

    def observe(self, x: Tensor) -> None:
        """Also where nothing was seen: to ask would end a compiled graph."""
        self.observer.watch(x)
        self.follow_observer()

    def follow_observer(self) -> None:
        """Scale and zero point of the range that the observer proposes."""
        low, high = self.observer.range(self.scheme)
        if on_host(low):
            scale, zero_point = range_to_numbers(low.item(), high.item(), self.scheme)
            self.scale.fill_(scale)
            self.zero_point.fill_(zero_point)
        else:
            q = range_to_qparams(low, high, self.scheme)
            self.scale.copy_(q.scale)
            self.zero_point.copy_(q.zero_point)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point."""
        return QParams(self.scale, self.zero_point, self.scheme)


class ObservedWeight(WeightFakeQuant):
    """Fake-quantizes a weight with its own largest values. It has no state."""

    def __init__(
        self, scheme: QuantScheme, channels: Channels, projection: Projection = NEAREST
    ) -> None:
        super().__init__(scheme, channels)
        self.projection = projection

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; the gradient is the identity."""
        projection = self.projection if self.training else NEAREST
        return projection.weight(weight, self.channels.spread(self.scale(weight), weight))

    def scale(self, weight: Tensor) -> Tensor:
        """`max|w| / qmax` of each channel, or of all."""
        return weight_scale(weight, self.scheme, self.channels)
