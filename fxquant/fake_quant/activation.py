"""The quantizer of one value: it watches the range while training and rounds to its grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.fake_quant.straight_through import fake_quantize
from fxquant.observers import Observer
from fxquant.schemes import QParams, QuantScheme, range_to_qparams


class ActivationFakeQuant(nn.Module):
    """Fake-quantizes activations with the range its observer proposes.

    The parameters are buffers, so that they travel in the state_dict. In eval() nothing
    moves.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__()
        self.scheme = scheme
        self.observer = observer
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
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

    @property
    def ready(self) -> bool:
        """Whether a range is known."""
        return self.observer.seen

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)
