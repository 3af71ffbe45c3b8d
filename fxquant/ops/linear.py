"""Linear layer over the last dimension.

    real      y = W·x + b
    integer   q_y = clamp(z_y + round((s_x·s_w / s_y) · (b_q + W_q·(q_x - z_x))))
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.ops.layer import (
    LAYER_REAL,
    fast_layer,
    layer_accumulator,
    layer_kernel,
    layer_numbers,
    layer_onnx,
    unsigned,
)
from fxquant.ops.onnx import OnnxCall, Value
from fxquant.ops.qdq import grids_of, to_codes, to_real, weight_and_bias
from fxquant.ops.spec import OpSpec, Output, Parameter, signature_reader


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., I] and weight [O, I] to [..., O]."""
    return F.linear(input, weight, bias)


def _options(module: nn.Linear) -> dict[str, Any]:
    bias = None if module.bias is None else Parameter("bias")
    return {"weight": Parameter("weight"), "bias": bias}


def _sum_up(call: OnnxCall, codes: Value, zero: Tensor) -> Value:
    """MatMulInteger of one byte of the codes, int32."""
    stored, weight_zero = unsigned(call.graph, call.numbers.weight.t())
    found: Value = call.graph.node(
        "MatMulInteger", codes, stored, zero, weight_zero, dtype=torch.int32
    )
    return found


def _qdq(call: OnnxCall) -> Value | None:
    """Gemm over rows, which engines run as QGemm."""
    grids, shape = grids_of(call), call.codes[0].shape
    if grids is None or shape is None or len(shape) < 2:
        return None
    (x,), (codes,), flat = grids, call.codes, len(shape) == 2
    rows = codes if flat else codes.reshape([None, shape[-1]])
    weight, bias = weight_and_bias(call, x, call.numbers.weight, 0)
    real: Value = call.graph.node(
        "Gemm", to_real(rows, x.scale, x.zero_point), weight, bias,
        dtype=torch.float32, transB=1,
    )
    found = to_codes(call, real)
    return found if flat else found.reshape([*shape[:-1], len(call.numbers.weight)])


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
    onnx=layer_onnx(_sum_up, spatial=0),
    qdq=_qdq,
    real=LAYER_REAL,
    fast=fast_layer(linear, spatial=0, geometry=None),
)
