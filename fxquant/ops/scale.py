"""A tensor times numbers that parameters decide: LayerScale, or the temperatures of heads.

    real      y = f·x
    integer   q_y = clamp(z_y + round((q_x - z_x)·m / 2^S))

with m·2^-S = f·s_x/s_y, one pair for each number of f, in its shape. The numbers cost no rounding
of their own, and stay real, and trainable, until the network is converted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, centred_value, requantize
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import by_table
from fxquant.intmath import centred
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import OpSpec, Output, RealCall, not_spelled
from fxquant.rounding import Rescale, Rounding


class ScaleNumbers(NamedTuple):
    """`multiplier`, `shift`, a `Rescale`, in the shape of the factors; the others int32, 0-dim."""

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def scale(input: Tensor, factors: Tensor) -> Tensor:
    """Two tensors of shapes that broadcast."""
    return input * factors


def _numbers(call: RealCall) -> ScaleNumbers:
    x, (y, low, high, rounding) = call.inputs[0], call.target
    multiplier, shift = call.target.rescale(call.options["factors"].detach(), x.scale)
    zeros = x.zero_point, y.zero_point
    return ScaleNumbers(multiplier, shift, *zeros, low, high, rounding)


def _kernel(n: ScaleNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    d, rescale = centred(codes, n.x_zero), Rescale(n.multiplier, n.shift)
    return n.rounding.requantize(d, rescale, n.y_zero, n.low, n.high, dtype)


def _onnx(call: OnnxCall) -> Value:
    n: ScaleNumbers = call.numbers
    d = centred_value(call.codes[0], n.x_zero)
    return requantize(d, n.rounding, Rescale(n.multiplier, n.shift), n, call.dtype)


def _tflite(call: TfliteCall) -> TfliteValue:
    """A factor may be one for each row, too, where the batch is known."""
    return by_table(call, call.numbers.multiplier.shape)


SCALE = OpSpec(
    name="scale",
    function=scale,
    functions=(),
    methods=(),
    modules={},
    read=not_spelled,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_onnx,
    tflite=_tflite,
    real=("factors",),
)
"""Spelled as a product, of which the pass scale_by_parameters makes it."""
