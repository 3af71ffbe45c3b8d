"""Sum over dimensions, as `ops/average.py` computes it, of one element at a time.

    real      y = Σ x
    integer   q_y = clamp(round(z_y + (s_x/s_y)·Σ(q_x - z_x)))
"""

from __future__ import annotations

from collections.abc import Mapping
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
from fxquant.ops.spec import Call, OpSpec, Output, signature_reader


def total(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Any shape; `dim` an int, several, or None for all of them."""
    return torch.sum(input, dim, keepdim)


def _like_sum(input: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> None: ...


_by_signature = signature_reader(_like_sum)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _by_signature(args, kwargs)
    if call is None or call.options.pop("dtype") is not None:
        return None
    return call


def _kernel(
    n: AverageNumbers, dtype: torch.dtype, codes: Tensor, dim: Any, keepdim: bool
) -> Tensor:
    sums = torch.sum(centred(codes, n.x_zero), dim, keepdim)
    elements = codes.numel() // max(sums.numel(), 1)
    return finish_average(sums, elements, torch.tensor(1, device=codes.device), n, dtype)


SUM = OpSpec(
    name="sum",
    function=total,
    functions=(torch.sum,),
    methods=("sum",),
    modules={},
    read=_read,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=average_numbers,
    kernel=_kernel,
    accumulator=accumulator_over_dimensions,
    onnx=average_onnx(counted=False),
    tflite=average_tflite(counted=False),
)
