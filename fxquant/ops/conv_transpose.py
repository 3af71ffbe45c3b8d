"""Transposed convolution over one, two or three dimensions, any groups and output padding.

    real      y[c] = b[c] + Σ w[c]·x, each x spread over a window of y
    integer   q_y[c] = clamp(z_y + round((s_x·s_w[c] / s_y) · (b_q[c] + Σ w_q[c]·(q_x - z_x))))

The weight is [I, C/groups, ...]: its output channels lie along axis 1, group by group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.ops.layer import (
    LAYER_REAL,
    layer_accumulator,
    layer_kernel,
    layer_numbers,
    layer_reader,
)
from fxquant.ops.spec import OpSpec, Output, Parameter, module_options


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:
    """[N, I, L] and weight [I, C/groups, K] to [N, C, L']."""
    return F.conv_transpose1d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:
    """[N, I, H, W] and weight [I, C/groups, Kh, Kw] to [N, C, H', W']."""
    return F.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:
    """[N, I, D, H, W] and weight [I, C/groups, Kd, Kh, Kw] to [N, C, D', H', W']."""
    return F.conv_transpose3d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _options(module: Any) -> dict[str, Any]:
    bias = None if module.bias is None else Parameter("bias")
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    return {"weight": Parameter("weight"), "bias": bias, **module_options(module, *names)}


def _record(
    function: Callable[..., Tensor],
    spellings: tuple[Any, ...],
    module: type[nn.Module],
    spatial: int,
) -> OpSpec:
    return OpSpec(
        name=function.__name__,
        function=function,
        functions=spellings,
        methods=(),
        modules={module: _options},
        read=layer_reader(function),
        output=Output.OWN,
        range=None,
        homogeneous=False,
        weight_axis=1,
        numbers=layer_numbers,
        kernel=layer_kernel(function, spatial),
        accumulator=layer_accumulator(1),
        real=LAYER_REAL,
    )


CONV_TRANSPOSE1D = _record(
    conv_transpose1d, (F.conv_transpose1d, torch.conv_transpose1d), nn.ConvTranspose1d, 1
)
CONV_TRANSPOSE2D = _record(
    conv_transpose2d, (F.conv_transpose2d, torch.conv_transpose2d), nn.ConvTranspose2d, 2
)
CONV_TRANSPOSE3D = _record(
    conv_transpose3d, (F.conv_transpose3d, torch.conv_transpose3d), nn.ConvTranspose3d, 3
)
