"""Difference of two tensors, with one rounding.

    real      y = a - b
    integer   q_y = clamp(z_y + (((q_a - z_a)·m_a + (q_b - z_b)·m_b + 2^(S-1)) >> S))

with m_a = round(s_a/s_y · 2^S) and m_b = -round(s_b/s_y · 2^S): a sum of which one multiplier is
negative, short enough for it to fit 32 bits.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
from fxquant.ops.spec import Call, OpSpec, Output, RealCall, signature_reader


def sub(input: Tensor, other: Tensor) -> Tensor:
    """Two tensors of shapes that broadcast."""
    return input - other


def _like_sub(input: Tensor, other: Tensor, alpha: float = 1) -> None: ...


_by_signature = signature_reader(_like_sub, inputs=2)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _by_signature(args, kwargs)
    return Call(call.inputs, {}) if call is not None and call.options["alpha"] == 1 else None


def _numbers(call: RealCall) -> OperandNumbers:
    factors = ratios_of(call)
    return sum_numbers(call, factors * factors.new_tensor([1.0, -1.0]))


SUB = OpSpec(
    name="sub",
    function=sub,
    functions=(operator.sub, torch.sub, torch.subtract),
    methods=("sub", "subtract"),
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
    tflite=sum_tflite("SUB", (1.0, -1.0)),
)
