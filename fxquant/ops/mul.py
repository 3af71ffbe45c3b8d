"""Product of two tensors, with one rounding.

    real      y = a·b
    integer   q_y = clamp(z_y + (((q_a - z_a)·(q_b - z_b)·m + 2^(S-1)) >> S))

with m·2^-S = s_a·s_b/s_y.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, centred_value, requantize
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import by_operator, by_pairs
from fxquant.intmath import Target, centred
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import OpSpec, Output, RealCall, signature_reader
from fxquant.rounding import FP32_RNE, GEMMLOWP, HIGH_MUL_SHIFT, Rescale, Rounding


class MulNumbers(NamedTuple):
    """`multiplier`, `shift`, a `Rescale`, of s_a·s_b/s_y; the others int32: all 0-dim."""

    multiplier: Tensor
    shift: Tensor
    a_zero: Tensor
    b_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def mul(input: Tensor, other: Tensor) -> Tensor:
    """Two tensors of shapes that broadcast."""
    return input * other


def _numbers(call: RealCall) -> MulNumbers:
    (a, b), (y, low, high, rounding) = call.inputs, call.target
    multiplier, shift = call.target.rescale(a.scale, b.scale)
    zeros = a.zero_point, b.zero_point, y.zero_point
    return MulNumbers(multiplier, shift, *zeros, low, high, rounding)


def _kernel(n: MulNumbers, dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    acc = centred(a, n.a_zero) * centred(b, n.b_zero)
    rescale = Rescale(n.multiplier, n.shift)
    return n.rounding.requantize(acc, rescale, n.y_zero, n.low, n.high, dtype)


def _accumulator(call: IntegerCall) -> Accumulator:
    n: MulNumbers = call.numbers
    a, b = call.inputs
    product = reach(a.scheme, n.a_zero) * reach(b.scheme, n.b_zero)
    return Accumulator((product,), 1, bits=33)  # the most that two codes of 16 bits take


def _onnx(call: OnnxCall) -> Value:
    n: MulNumbers = call.numbers
    a, b = call.codes
    acc = centred_value(a, n.a_zero) * centred_value(b, n.b_zero)
    return requantize(acc, n.rounding, Rescale(n.multiplier, n.shift), n, call.dtype)


def _tflite(call: TfliteCall) -> TfliteValue:
    """MUL, where LiteRT makes our multiplier of the scales and shifts to the right."""
    n: MulNumbers = call.numbers
    a, b = (x.grid for x in call.codes)
    native = n.rounding in (GEMMLOWP, FP32_RNE) and int(n.shift) >= HIGH_MUL_SHIFT
    if a is None or b is None or max(a.scheme.bits, b.scheme.bits) > 8 or not native:
        return by_pairs(call)
    target = Target(call.output, n.low, n.high, n.rounding)
    if not all(map(torch.equal, target.rescale(a.scale, b.scale), (n.multiplier, n.shift))):
        return by_pairs(call)
    return by_operator(call, "MUL")


MUL = OpSpec(
    name="mul",
    function=mul,
    functions=(operator.mul, torch.mul, torch.multiply),
    methods=("mul", "multiply"),
    modules={},
    read=signature_reader(mul, inputs=2),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=_accumulator,
    onnx=_onnx,
    tflite=_tflite,
)
