"""Linear layer over the last dimension.

    real      y = W·x + b
    integer   q_y = clamp(z_y + round((s_x·s_w / s_y) · (b_q + W_q·(q_x - z_x))))
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.ops.layer import LAYER_REAL, layer_accumulator, layer_kernel, layer_numbers
from fxquant.ops.spec import OpSpec, Output, Parameter, signature_reader


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., I] and weight [O, I] to [..., O]."""
    return F.linear(input, weight, bias)


def _options(module: nn.Linear) -> dict[str, Any]:
    bias = None if module.bias is None else Parameter("bias")
    return {"weight": Parameter("weight"), "bias": bias}


LINEAR = OpSpec(
    name="linear",
    function=linear,
    functions=(F.linear,),
    methods=(),
    modules={nn.Linear: _options},
    read=signature_reader(linear),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=0,
    numbers=layer_numbers,
    kernel=layer_kernel(linear, spatial=0),
    accumulator=layer_accumulator(0),
    real=LAYER_REAL,
)
