"""The promise of a quantizer of one value: a grid, and values rounded to it while training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from fxquant.observers import Observer
from fxquant.schemes import QParams, QuantScheme


class ActivationFakeQuant(nn.Module, ABC):
    """Fake-quantizes activations, for which an observer proposes a range.

    All its numbers are buffers and parameters, so that they travel in the state_dict. In
    eval() nothing moves.
    """

    zero_point: Tensor

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__()
        self.scheme = scheme
        self.observer = observer
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """half() and bfloat16() leave the numbers of the grid alone, as where the model had these
        types before it was prepared: they would be too few bits to tell codes apart.
        """

        def wide(numbers: Tensor) -> Tensor:
            moved = fn(numbers)
            narrow = moved.is_floating_point() and moved.dtype.itemsize < 4
            return numbers.to(moved.device) if narrow else moved

        return super()._apply(wide, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @abstractmethod
    def follow_observer(self) -> None:
        """Take the range that the observer proposes, which has seen data."""

    @abstractmethod
    def forward(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited to [least, most] as by a hardtanh, on the grid; same shape and dtype."""

    @property
    @abstractmethod
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""

    @property
    def ready(self) -> bool:
        """Whether a range is known."""
        return self.observer.seen

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)
