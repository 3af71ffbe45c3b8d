"""The quantizer whose step follows the range of what comes by while training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.straight_through import fake_quantize
from fxquant.observers import Observer
from fxquant.schemes import QParams, QuantScheme, on_host, range_to_numbers, range_to_qparams


class ObservedStep(ActivationFakeQuant):
    """Fake-quantizes activations with the range its observer proposes."""

    scale: Tensor

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.register_buffer("scale", torch.tensor(1.0))
        if observer.seen:
            self.follow_observer()

    def forward(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited, on the grid. In training the range follows what `x` is then, first."""
        if self.training:
            self.observer.watch(x, least, most)
            self.follow_observer()
        return fake_quantize(x, self.qparams, least, most)

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
