"""Convolution over one, two or three dimensions, any groups, strides, padding and dilation.

    real      y[c] = b[c] + Σ w[c]·x
    integer   q_y[c] = clamp(z_y + round((s_x·s_w[c] / s_y) · (b_q[c] + Σ w_q[c]·(q_x - z_x))))

Padding adds q_x = z_x, the integer that stands for 0. Grouped and depthwise alike: the bound
of a channel's sum is read off that channel's own integer weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.ops.layer import LAYER_REAL, layer_accumulator, layer_kernel, layer_numbers
from fxquant.ops.spec import (
    OpSpec,
    Output,
    Parameter,
    module_options,
    signature_reader,
)


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:
    """[N, C, L] and weight [O, C/groups, K] to [N, O, L']."""
    return F.conv1d(input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:
    """[N, C, H, W] and weight [O, C/groups, Kh, Kw] to [N, O, H', W']."""
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:
    """[N, C, D, H, W] and weight [O, C/groups, Kd, Kh, Kw] to [N, O, D', H', W']."""
    return F.conv3d(input, weight, bias, stride, padding, dilation, groups)


def _options(module: Any) -> dict[str, Any] | None:
    if module.padding_mode != "zeros":
        return None
    bias = None if module.bias is None else Parameter("bias")
    settings = module_options(module, "stride", "padding", "dilation", "groups")
    return {"weight": Parameter("weight"), "bias": bias, **settings}


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
        read=signature_reader(function),
        output=Output.OWN,
        range=None,
        homogeneous=False,
        weight_axis=0,
        numbers=layer_numbers,
        kernel=layer_kernel(function, spatial),
        accumulator=layer_accumulator(0),
        real=LAYER_REAL,
    )


CONV1D = _record(conv1d, (F.conv1d, torch.conv1d), nn.Conv1d, 1)
CONV2D = _record(conv2d, (F.conv2d, torch.conv2d), nn.Conv2d, 2)
CONV3D = _record(conv3d, (F.conv3d, torch.conv3d), nn.Conv3d, 3)
