"""The promise of an observer: it sees tensors, changes nothing, and knows a range."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Observer(nn.Module, ABC):
    """Watches values in training and proposes a range; it never moves in eval().

    The range, two 0-dim float32 buffers `low` and `high`, starts as (+inf, -inf): nothing
    seen. Called as a module it hands its input on, untouched.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` (any shape, any float dtype) when training; return it as it is."""
        if self.training and x.numel() > 0:
            low, high = torch.aminmax(x.detach())
            low, high = low.to(self.low.dtype), high.to(self.high.dtype)
            finite = torch.isfinite(low) & torch.isfinite(high)
            new_low, new_high = self.update(low, high)
            # a batch with NaN or infinity in it says nothing about the range; no host sync
            self.low.copy_(torch.where(finite, new_low, self.low))
            self.high.copy_(torch.where(finite, new_high, self.high))
        return x

    @abstractmethod
    def update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The new range, from the old one and the extremes of one batch (0-dim)."""

    @property
    def seen(self) -> bool:
        """Whether any finite data came by."""
        return bool(self.low <= self.high)
