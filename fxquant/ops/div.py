"""Quotient of two tensors, with one rounding.

    real      y = a / b
    integer   q_y = clamp(z_y + floor((2·A·m + (B << S)) / (B << (S + 1))))        B > 0

where A = q_a - z_a and B = q_b - z_b, both negated if B < 0, and m·2^-S = s_a/(s_b·s_y). One exact
division of integers. Where B = 0 it gives the end of the output's range that has the sign of A,
and 0/0 gives the code of 0.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, centred_value, of_values
from fxquant.forms.tflite_ways import by_pairs
from fxquant.intmath import centred
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import Call, OpSpec, Output, RealCall, signature_reader
from fxquant.rounding import Rounding, rescale_of


class DivNumbers(NamedTuple):
    """`multiplier`, `shift` int64, of s_a/(s_b·s_y); the others int32: all 0-dim."""

    multiplier: Tensor
    shift: Tensor
    a_zero: Tensor
    b_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def div(input: Tensor, other: Tensor) -> Tensor:
    """Two tensors of shapes that broadcast."""
    return input / other


def _like_div(input: Tensor, other: Tensor, rounding_mode: str | None = None) -> None: ...


_by_signature = signature_reader(_like_div, inputs=2)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _by_signature(args, kwargs)
    return None if call is None or call.options["rounding_mode"] else Call(call.inputs, {})


def _numbers(call: RealCall) -> DivNumbers:
    (a, b), (y, low, high, rounding) = call.inputs, call.target
    multiplier, shift = rescale_of(a.scale.double() / (b.scale.double() * y.scale.double()))
    zeros = a.zero_point, b.zero_point, y.zero_point
    return DivNumbers(multiplier, shift, *zeros, low, high, rounding)


def _kernel(n: DivNumbers, dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    above, below = centred(a, n.a_zero), centred(b, n.b_zero)
    above, below = above * torch.where(below < 0, -1, 1), below.abs()
    # |A| and B < 2^16, m < 2^31 and S <= 44: 2·A·m and B << (S + 1) stay below 2^62
    steps = n.rounding.divide(above * n.multiplier, below.clamp(min=1) << n.shift)
    beyond = torch.sign(above) * 2**16  # the distance of any two codes is less
    y = torch.where(below == 0, beyond, steps) + n.y_zero
    return torch.clamp(y, n.low, n.high).to(dtype)


def _accumulator(call: IntegerCall) -> Accumulator:
    n: DivNumbers = call.numbers
    a, b = (reach(x.scheme, z) for x, z in zip(call.inputs, (n.a_zero, n.b_zero), strict=True))
    divisor = b << int(n.shift)
    return Accumulator((2 * a * int(n.multiplier) + divisor, 2 * divisor), 2, bits=64)


def _onnx(call: OnnxCall) -> Value:
    n: DivNumbers = call.numbers
    above, below = (
        centred_value(x, z) for x, z in zip(call.codes, (n.a_zero, n.b_zero), strict=True)
    )
    sign, below = 1 - 2 * (below < 0).to(torch.int64), below.abs()
    above = above * sign
    steps = of_values(n.rounding.divide)(above * n.multiplier, below.clamp(min=1) << n.shift)
    y = (below == 0).where(above.sign() * 2**16, steps) + n.y_zero
    return y.clamp(n.low, n.high).to(call.dtype)


DIV = OpSpec(
    name="div",
    function=div,
    functions=(operator.truediv, torch.div, torch.divide, torch.true_divide),
    methods=("div", "divide", "true_divide"),
    modules={},
    read=_read,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=_accumulator,
    onnx=_onnx,
    tflite=by_pairs,
)
