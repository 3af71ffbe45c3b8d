"""Mean over dimensions, such as the last two of [N, C, H, W]. The output keeps the range.

    real      y = (Σ x) / c
    integer   q_y = round(Σ q_x / c)

The mean of the codes themselves: the zero point goes through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.ops.spec import MeanNumbers, OpSpec, Output, mean_numbers, signature_reader


def mean(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Any shape; `dim` an int, several, or None for all of them."""
    return torch.mean(input, dim, keepdim)


def spaces(dim: Any, rank: int | None) -> set[int] | None:
    """The dimensions, counted from the first, that a mean over `dim` is taken over, of a value
    with `rank` dimensions; None if not all are known to lie behind axis 1, the channels.
    """
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not dims or not all(type(d) is int for d in dims):
        return None
    counted = {d + (rank or 0) if d < 0 else d for d in dims}
    return counted if all(d >= 2 for d in counted) else None


def _kernel(
    n: MeanNumbers, dtype: torch.dtype, codes: Tensor, dim: Any, keepdim: bool
) -> Tensor:
    total = torch.sum(codes.to(torch.int64), dim, keepdim)
    count = torch.tensor(codes.numel() // max(total.numel(), 1), device=codes.device)
    return n.rounding.divide(total, count).to(dtype)


MEAN = OpSpec(
    name="mean",
    function=mean,
    functions=(torch.mean,),
    methods=("mean",),
    modules={},
    read=signature_reader(mean),
    output=Output.INPUT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=mean_numbers,
    kernel=_kernel,
)
