"""Sum of n tensors, with one rounding.

    real      y = x_1 + … + x_n
    integer   q_y = clamp(z_y + ((Σ (q_i - z_i)·m_i + 2^(S-1)) >> S))

with m_i = round(s_i/s_y · 2^S) over one common shift, short enough for the sum of codes of 8 bits
to fit 32. A mask and the scores with it have 16 bits, and their sum 64.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.qdq import grids_of, to_codes, to_real
from fxquant.ops.operands import (
    OperandNumbers,
    accumulator_of_operands,
    fast_sum,
    ratios_of,
    sum_numbers,
    sum_onnx,
    sum_operands,
    sum_tflite,
)
from fxquant.ops.spec import Call, OpSpec, Output, RealCall


def add(*inputs: Tensor) -> Tensor:
    """Two tensors or more, of shapes that broadcast."""
    total = inputs[0] + inputs[1]
    for x in inputs[2:]:
        total = total + x
    return total


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Two tensors and no `alpha`; a tensor and a number is another operator."""
    named = dict(kwargs)
    inputs = (*args, *(named.pop(name) for name in ("input", "other") if name in named))
    if len(inputs) != 2 or not all(isinstance(x, fx.Node) for x in inputs):
        return None
    return Call(inputs, {}) if named.pop("alpha", 1) == 1 and not named else None


def _numbers(call: RealCall) -> OperandNumbers:
    return sum_numbers(call, ratios_of(call))


def _qdq(call: OnnxCall) -> Value | None:
    """Add of two, which engines run as QLinearAdd."""
    grids = grids_of(call)
    if grids is None or len(grids) != 2:
        return None
    a, b = (
        to_real(codes, q.scale, q.zero_point) for codes, q in zip(call.codes, grids, strict=True)
    )
    return to_codes(call, a + b)


ADD = OpSpec(
    name="add",
    function=add,
    functions=(operator.add, torch.add),
    methods=("add",),
    modules={},
    read=_read,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=sum_operands,
    fast=fast_sum,
    accumulator=accumulator_of_operands,
    onnx=sum_onnx,
    tflite=sum_tflite("ADD", (1.0, 1.0)),
    qdq=_qdq,
)
