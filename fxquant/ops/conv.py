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

from fxquant.intmath import (
    LayerNumbers,
    carrier,
    centered,
    finish_layer,
    layer_numbers,
    without_autocast,
)
from fxquant.ops.spec import (
    OpSpec,
    Output,
    Parameter,
    RealCall,
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


def _numbers(call: RealCall) -> LayerNumbers:
    assert call.weights is not None  # a conv without a weight is never a site
    return layer_numbers(*call.weights, call.inputs[0], call.target)


def _record(
    function: Callable[..., Tensor], spellings: tuple[Any, ...], module: type[nn.Module]
) -> OpSpec:
    def kernel(n: LayerNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
        kind = carrier(n.bound)
        with without_autocast(codes):
            total = function(centered(codes, n.x_zero, kind), n.weight.to(kind), **settings)
        return finish_layer(total, n, 1 - n.weight.dim(), dtype)

    return OpSpec(
        name=function.__name__,
        function=function,
        functions=spellings,
        methods=(),
        modules={module: _options},
        read=signature_reader(function),
        output=Output.OWN,
        weight_axis=0,
        folds=True,
        numbers=_numbers,
        kernel=kernel,
    )


CONV1D = _record(conv1d, (F.conv1d, torch.conv1d), nn.Conv1d)
CONV2D = _record(conv2d, (F.conv2d, torch.conv2d), nn.Conv2d)
CONV3D = _record(conv3d, (F.conv3d, torch.conv3d), nn.Conv3d)
