"""Mean over dimensions, such as the last two of [N, C, H, W], as `ops/average.py` computes it.

    real      y = (Σ x) / c
    integer   q_y = clamp(round(z_y + (s_x/s_y)·Σ(q_x - z_x) / c))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.intmath import centred
from fxquant.ops.average import (
    AverageNumbers,
    accumulator_over_dimensions,
    average_numbers,
    average_onnx,
    average_tflite,
    finish_average,
)
from fxquant.ops.spec import OpSpec, Output, as_tuple, signature_reader


def mean(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Any shape; `dim` an int, several, or None for all of them."""
    return torch.mean(input, dim, keepdim)


def spaces(dim: Any, rank: int | None) -> set[int] | None:
    """The dimensions, counted from the first, that a mean over `dim` is taken over, of a value
    with `rank` dimensions; None if not all are known to lie behind axis 1, the channels.
    """
    dims = as_tuple(dim)
    if not dims or not all(type(d) is int for d in dims):
        return None
    counted = {d + (rank or 0) if d < 0 else d for d in dims}
    return counted if all(d >= 2 for d in counted) else None


def _kernel(
    n: AverageNumbers, dtype: torch.dtype, codes: Tensor, dim: Any, keepdim: bool
) -> Tensor:
    total = torch.sum(centred(codes, n.x_zero), dim, keepdim)
    # at least 1: the mean of an empty batch, 0/0, is 0
    count = max(codes.numel() // max(total.numel(), 1), 1)
    return finish_average(total, count, torch.tensor(count, device=codes.device), n, dtype)


MEAN = OpSpec(
    name="mean",
    function=mean,
    functions=(torch.mean,),
    methods=("mean",),
    modules={},
    read=signature_reader(mean),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=average_numbers,
    kernel=_kernel,
    accumulator=accumulator_over_dimensions,
    onnx=average_onnx(counted=True),
    tflite=average_tflite(counted=True),
)
