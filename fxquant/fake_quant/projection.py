"""How training gives a code to what lies between two; eval() always takes the nearest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fxquant.fake_quant.straight_through import fake_quantize, round_to_grid
from fxquant.schemes import EVERYWHERE, Ends, QParams


class Projection(ABC):
    """A frozen record; its gradient goes straight through."""

    @abstractmethod
    def activation(
        self, x: Tensor, q: QParams, limits: Ends, extremes: Ends = EVERYWHERE
    ) -> Tensor:
        """`x`, limited, on the grid of `q`; gradient 0 where it is clamped. All of `x` lies between
        `extremes`.
        """

    @abstractmethod
    def weight(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Multiples of `scale`, which broadcasts and leaves nothing to clamp."""


@dataclass(frozen=True)
class Nearest(Projection):
    """Half-up to the nearest code, as eval() does."""

    def activation(
        self, x: Tensor, q: QParams, limits: Ends, extremes: Ends = EVERYWHERE
    ) -> Tensor:
        """With a mask where a value may lie beyond the range."""
        return fake_quantize(x, q, *limits, extremes)

    def weight(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Without a mask."""
        return round_to_grid(weight, scale)
