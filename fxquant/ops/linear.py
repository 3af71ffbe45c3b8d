"""Linear layer over the last dimension.

    real      y = W·x + b
    integer   q_y = clamp(z_y + round((s_x·s_w / s_y) · (b_q + W_q·(q_x - z_x))))
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.qdq import grids_of, to_codes, to_real, weight_and_bias
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.kernels.sums import Geometry
from fxquant.ops.layer import (
    LAYER_REAL,
    convolve_in_tflite,
    fast_layer,
    layer_accumulator,
    layer_kernel,
    layer_numbers,
    layer_onnx,
    unsigned,
)
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
    return call.graph.node(
        "MatMulInteger", codes, stored, zero, weight_zero, dtype=torch.int32
    )


def _qdq(call: OnnxCall) -> Value | None:
    """Gemm over rows, which engines run as QGemm."""
    grids, shape = grids_of(call), call.codes[0].shape
    if grids is None or shape is None or len(shape) < 2:
        return None
    (x,), (codes,), flat = grids, call.codes, len(shape) == 2
    rows = codes if flat else codes.reshape([None, shape[-1]])
    weight, bias = weight_and_bias(call, x, call.numbers.weight, 0)
    real = call.graph.node(
        "Gemm", to_real(rows, x.scale, x.zero_point), weight, bias,
        dtype=torch.float32, transB=1,
    )
    found = to_codes(call, real)
    return found if flat else found.reshape([*shape[:-1], len(call.numbers.weight)])


def _tflite(call: TfliteCall) -> TfliteValue:
    """A convolution of pictures of one element: FULLY_CONNECTED of LiteRT's reference kernels
    rounds otherwise, half away from 0.
    """
    (x,), moves = call.codes, Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    *rows, inputs = x.shape
    count = None if None in rows else math.prod(x.sizes[:-1])
    found = convolve_in_tflite(call, x.reshape((count, inputs, 1, 1)), moves, (1, 1))
    return found.reshape(call.sizes)


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
    tflite=_tflite,
    real=LAYER_REAL,
    fast=fast_layer(linear, spatial=0, geometry=None),
)
