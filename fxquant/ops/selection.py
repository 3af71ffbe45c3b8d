"""What operators that only pick elements have in common: they pick the same ones among codes.

    real      y = select(x)
    integer   q_y = select(q_x)

The selection is the float operator itself, on float32, which holds every code exactly and has
kernels for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.ops.spec import Call, RealCall, Spelling, signature_reader


class NoNumbers(NamedTuple):
    """None: the integers of the input decide alone."""


def no_numbers(call: RealCall) -> NoNumbers:
    """The numbers of a selection."""
    return NoNumbers()


def reader_without_indices(function: Callable[..., Tensor]) -> Spelling:
    """Read a call by the signature of `function`, unless it asks where the elements lay, too."""
    by_signature = signature_reader(function)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        named = dict(kwargs)
        return None if named.pop("return_indices", False) else by_signature(args, named)

    return read


def selection_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The integer kernel of `function(x, **settings)`."""

    def kernel(n: NoNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
        return function(codes.to(torch.float32), **settings).to(dtype)

    return kernel
