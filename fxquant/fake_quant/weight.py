"""The promise of a quantizer of a weight: symmetric, a scale for each output channel.

    w_q = clamp(round(t(w) / s), qmin, qmax)        w ≈ w_q · s

`t` shapes the weight before it is rounded; mostly it does nothing. eval() and convert make w_q of
`transform` and `scale`; training reads `forward`, which gives w_q · s and the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fxquant.fake_quant.quantizer import Quantizer
from fxquant.schemes import Channels, QuantScheme


class WeightFakeQuant(Quantizer, ABC):
    """Fake-quantizes a weight whose output channels lie along `channels`."""

    def __init__(self, scheme: QuantScheme, channels: Channels) -> None:
        super().__init__(scheme)
        self.channels = channels

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; same shape and dtype."""

    @abstractmethod
    def scale(self, weight: Tensor) -> Tensor:
        """The scales of `weight`: float32 [C], positive and finite, without gradient."""

    def transform(self, weight: Tensor) -> Tensor:
        """What is divided by the scale and rounded: same shape, without gradient."""
        return weight.detach()
