"""Mean over dimensions, such as the last two of [N, C, H, W]. The output keeps the range.

    real      y = (Σ x) / c
    integer   q_y = z + floor((2·Σ(q_x - z) + c) / (2c))        round half-up of the mean
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.intmath import divide_half_up
from fxquant.ops.spec import OpSpec, Output, RealCall, signature_reader


class MeanNumbers(NamedTuple):
    """`zero`, 0-dim int32: the zero point. A mean of codes needs no clamp."""

    zero: Tensor


def mean(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Any shape; `dim` an int, several, or None for all of them."""
    return torch.mean(input, dim, keepdim)


def _numbers(call: RealCall) -> MeanNumbers:
    return MeanNumbers(call.target.qparams.zero_point)


def _kernel(
    n: MeanNumbers, dtype: torch.dtype, codes: Tensor, dim: Any, keepdim: bool
) -> Tensor:
    total = torch.sum(codes.to(torch.int64) - n.zero, dim, keepdim)
    count = torch.tensor(codes.numel() // max(total.numel(), 1), device=codes.device)
    return (divide_half_up(total, count) + n.zero).to(dtype)


MEAN = OpSpec(
    name="mean",
    function=mean,
    functions=(torch.mean,),
    methods=("mean",),
    modules={},
    read=signature_reader(mean),
    output=Output.INPUT,
    weight_axis=None,
    folds=False,
    numbers=_numbers,
    kernel=_kernel,
)
