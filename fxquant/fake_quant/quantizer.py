"""What quantizers of activations and of weights have in common: numbers that keep their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from fxquant.schemes import QuantScheme


def keeping_bits(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `fn` of Module._apply makes of tensors, but that floats of 16 bits stay what they were
    before: these are too few bits for the numbers of a grid, to tell codes apart.
    """

    def applied(numbers: Tensor) -> Tensor:
        moved = fn(numbers)
        narrow = moved.is_floating_point() and moved.dtype.itemsize < 4
        return numbers.to(moved.device) if narrow else moved

    return applied


class Quantizer(nn.Module):
    """A module with a scheme. Its numbers are buffers and parameters, in the state_dict."""

    def __init__(self, scheme: QuantScheme) -> None:
        super().__init__()
        self.scheme = scheme

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """half() and bfloat16() leave the numbers of the grid alone, as where the model had these
        types before it was prepared.
        """
        return super()._apply(keeping_bits(fn), recurse)  # type: ignore[no-any-return, no-untyped-call]

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)
