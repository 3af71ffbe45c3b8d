"""Zeros of a tensor's shape: DARTS' `none` operator, spelled `x.mul(0.)`.

    real      y = 0·x
    integer   q_y = z_x

It keeps its input's range, so its scale is never 0 and never infinite.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import Call, OpSpec, Output, ZeroPoint, zero_point


def zero(input: Tensor) -> Tensor:
    """Any shape."""
    return input * 0.0


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    operands = (*args, *kwargs.values())
    tensors = tuple(x for x in operands if isinstance(x, fx.Node))
    numbers = [x for x in operands if isinstance(x, (int, float)) and x == 0]
    return Call(tensors, {}) if len(operands) == 2 and len(tensors) == len(numbers) == 1 else None


def _kernel(n: ZeroPoint, dtype: torch.dtype, codes: Tensor) -> Tensor:
    return torch.zeros_like(codes) + n.zero.to(dtype)


def _onnx(call: OnnxCall) -> Value:
    (x,), zero = call.codes, call.numbers.zero.to(call.dtype)
    shape = call.graph.node("Shape", x, dtype=torch.int64)
    return call.graph.node("Expand", zero, shape, dtype=call.dtype)


def _tflite(call: TfliteCall) -> TfliteValue:
    return call.codes[0].clamp(call.numbers.zero, call.numbers.zero)


ZERO = OpSpec(
    name="zero",
    function=zero,
    functions=(operator.mul, torch.mul),
    methods=("mul",),
    modules={},
    read=_read,
    output=Output.EXACT,
    range=None,
    homogeneous=True,
    weight_axis=None,
    numbers=zero_point,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_onnx,
    tflite=_tflite,
)
