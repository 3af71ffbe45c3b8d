"""PReLU: a slope below zero that is trained, one for all channels or one for each.

    real      y = x where x > 0, else a[c]·x
    integer   q_y = clamp(z_y + round((q_x - z_x)·m / 2^S))

with m·2^-S = s_x/s_y above zero and a[c]·s_x/s_y, of either sign, below: one rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value, centred_value, requantize
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import by_channel, by_table
from fxquant.intmath import centred, per_channel
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import OpSpec, Output, Parameter, RealCall, signature_reader
from fxquant.rounding import Rescale, Rounding


class PReluNumbers(NamedTuple):
    """`multiplier`, `shift`, a `Rescale`, [2, C], above zero and below, C = 1 where all channels
    have one slope; the others 0-dim int32.
    """

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """[N, C, ...] and the slopes, [C], or any shape and one slope."""
    return F.prelu(input, weight)


def _options(module: nn.PReLU) -> dict[str, Any]:
    return {"weight": Parameter("weight")}


def _numbers(call: RealCall) -> PReluNumbers:
    x, (y, low, high, rounding) = call.inputs[0], call.target
    below = call.options["weight"].detach().double().reshape(-1)
    slopes = torch.stack([torch.ones_like(below), below])
    multiplier, shift = call.target.rescale(slopes, x.scale)
    zeros = x.zero_point, y.zero_point
    return PReluNumbers(multiplier, shift, *zeros, low, high, rounding)


def _kernel(n: PReluNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    d = centred(codes, n.x_zero)

    def of_sign(values: Tensor) -> Tensor:
        above, below = values.unbind()
        if len(above) > 1:
            above, below = (per_channel(row, 1, codes.dim()) for row in (above, below))
        else:  # a single number stays one
            above, below = above[0], below[0]
        return torch.where(d > 0, above, below)

    rescale = Rescale(of_sign(n.multiplier), of_sign(n.shift))
    return n.rounding.requantize(d, rescale, n.y_zero, n.low, n.high, dtype)


def _onnx(call: OnnxCall) -> Value:
    n: PReluNumbers = call.numbers
    assert call.codes[0].shape is not None  # as of all that the integer network itself gives
    d, dims = centred_value(call.codes[0], n.x_zero), len(call.codes[0].shape)

    def times(multiplier: Tensor, shift: Tensor) -> Value:
        if len(multiplier) > 1:
            multiplier, shift = (per_channel(row, 1, dims) for row in (multiplier, shift))
        else:
            multiplier, shift = multiplier[0], shift[0]
        return requantize(d, n.rounding, Rescale(multiplier, shift), n, torch.int32)

    above, below = map(times, n.multiplier, n.shift)
    return (d > 0).where(above, below).to(call.dtype)


def _tflite(call: TfliteCall) -> TfliteValue:
    return by_channel(call) if call.numbers.multiplier.shape[1] > 1 else by_table(call)


PRELU = OpSpec(
    name="prelu",
    function=prelu,
    functions=(F.prelu, torch.prelu),
    methods=("prelu",),
    modules={nn.PReLU: _options},
    read=signature_reader(prelu),
    output=Output.OWN,
    range=None,
    homogeneous=True,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_onnx,
    tflite=_tflite,
    real=("weight",),
)
