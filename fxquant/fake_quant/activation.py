"""The promise of a quantizer of one value: a grid, and values rounded to it while training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fxquant.fake_quant.quantizer import Quantizer
from fxquant.fake_quant.straight_through import fake_quantize
from fxquant.observers import Observer
from fxquant.schemes import QParams, QuantScheme


class ActivationFakeQuant(Quantizer, ABC):
    """Fake-quantizes activations, for which an observer proposes a range. In eval() nothing moves.
    """

    zero_point: Tensor

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme)
        self.observer = observer
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    @abstractmethod
    def follow_observer(self) -> None:
        """Take the range that the observer proposes, which has seen data."""

    @abstractmethod
    def forward(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited to [least, most] as by a hardtanh, on the grid; same shape and dtype."""

    def observe(self, x: Tensor) -> None:
        """Let the range follow `x`, of any shape, which stays as it is."""
        self.observer.watch(x)
        if self.ready:
            self.follow_observer()

    def frozen(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited, on the nearest code of the grid as it stands; same shape and dtype. Nothing
        moves, and the numbers of the grid get no gradient.
        """
        return fake_quantize(x, self.qparams, least, most)

    @property
    @abstractmethod
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""

    @property
    def ready(self) -> bool:
        """Whether a range is known."""
        return self.observer.seen
