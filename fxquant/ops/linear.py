"""Linear layer over the last dimension.

    real      y = W·x + b
    integer   q_y = clamp(z_y + round((s_x·s_w / s_y) · (b_q + W_q·(q_x - z_x))))
"""

from __future__ import annotations

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
from fxquant.ops.spec import OpSpec, Output, Parameter, RealCall, signature_reader


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., I] and weight [O, I] to [..., O]."""
    return F.linear(input, weight, bias)


def _options(module: nn.Linear) -> dict[str, Any]:
    bias = None if module.bias is None else Parameter("bias")
    return {"weight": Parameter("weight"), "bias": bias}


def _numbers(call: RealCall) -> LayerNumbers:
    assert call.weights is not None  # a linear layer without a weight is never a site
    return layer_numbers(*call.weights, call.inputs[0], call.target)


def _kernel(n: LayerNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    kind = carrier(n.bound)
    with without_autocast(codes):
        total = F.linear(centered(codes, n.x_zero, kind), n.weight.to(kind))
    return finish_layer(total, n, -1, dtype)


LINEAR = OpSpec(
    name="linear",
    function=linear,
    functions=(F.linear,),
    methods=(),
    modules={nn.Linear: _options},
    read=signature_reader(linear),
    output=Output.OWN,
    weight_axis=0,
    folds=True,
    numbers=_numbers,
    kernel=_kernel,
)
