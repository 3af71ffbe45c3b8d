"""What operators that only pick elements have in common: they pick the same ones among codes.

    real      y = select(x)
    integer   q_y = select(q_x)

The selection is the float operator itself, on float32, which holds every code exactly and has
kernels for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.ops.spec import RealCall


class NoNumbers(NamedTuple):
    """None: the integers of the input decide alone."""


def no_numbers(call: RealCall) -> NoNumbers:
    """The numbers of a selection."""
    return NoNumbers()


def selection_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The integer kernel of `function(x, **settings)`."""

    def kernel(n: NoNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
        return function(codes.to(torch.float32), **settings).to(dtype)

    return kernel
