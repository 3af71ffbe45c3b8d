"""The quantizer whose step follows the range of what comes by while training."""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.straight_through import fake_quantize
from fxquant.observers import Observer
from fxquant.schemes import QParams, QuantScheme, range_to_qparams


class ObservedStep(ActivationFakeQuant):
    """Fake-quantizes activations with the range its observer proposes."""

    scale: Tensor

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.register_buffer("scale", torch.tensor(1.0))
        if observer.seen:
            self._follow_observer()

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid; same shape and dtype. In training the range follows `x` first."""
        if self.training:
            self.observer(x)
            self._follow_observer()
        return fake_quantize(x, self.qparams)

    def _follow_observer(self) -> None:
        q = range_to_qparams(self.observer.low, self.observer.high, self.scheme)
        self.scale.copy_(q.scale)
        self.zero_point.copy_(q.zero_point)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point."""
        return QParams(self.scale, self.zero_point, self.scheme)
