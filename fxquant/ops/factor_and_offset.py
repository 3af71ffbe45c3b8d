"""What a factor and an offset have in common, be they plain numbers or a batch norm's.

    real      y = f·x + o
    integer   q_y = clamp(z_y + (((q_x - z_x)·m + o_q + 2^(S-1)) >> S))

with m·2^-S = f·s_x/s_y, of either sign, and o_q = round(o/s_y · 2^S): one rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, centred_value, finish_value
from fxquant.intmath import centred
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import RealCall
from fxquant.rounding import Rounding, rescale_of

_OFFSET_LIMIT = 2.0**62  # so that the sum stays inside int64


class AffineNumbers(NamedTuple):
    """`multiplier`, `shift`, `offset` int64, 0-dim or one for each channel, [C]; the others int32
    and 0-dim.
    """

    multiplier: Tensor
    shift: Tensor
    offset: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def affine_numbers(call: RealCall, factor: Tensor, offset: Tensor) -> AffineNumbers:
    """From f·s_x/s_y and o/s_y, float64 of one shape."""
    rescale = rescale_of(factor)
    offset = torch.ldexp(offset, rescale.shift).round()
    return AffineNumbers(
        multiplier=rescale.multiplier,
        shift=rescale.shift,
        offset=offset.clamp(-_OFFSET_LIMIT, _OFFSET_LIMIT).to(torch.int64),
        x_zero=call.inputs[0].zero_point,
        y_zero=call.target.qparams.zero_point,
        low=call.target.low,
        high=call.target.high,
        rounding=call.target.rounding,
    )


def affine_kernel(n: AffineNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    """The kernel, where the numbers broadcast against the codes."""
    product = centred(codes, n.x_zero) * n.multiplier + n.offset
    return torch.clamp(n.rounding.shift(product, n.shift) + n.y_zero, n.low, n.high).to(dtype)


def affine_accumulator(call: IntegerCall) -> Accumulator:
    """Of the product and the offset, in 64 bits, for each channel."""
    n: AffineNumbers = call.numbers
    product = reach(call.inputs[0].scheme, n.x_zero) * n.multiplier.abs()
    return Accumulator(tuple((product + n.offset.abs()).reshape(-1).tolist()), 2, bits=64)


def affine_onnx(call: OnnxCall, n: AffineNumbers) -> Value:
    """The form, where the numbers broadcast against the codes."""
    total = centred_value(call.codes[0], n.x_zero) * n.multiplier + n.offset
    return finish_value(total, n.rounding, n.shift, n, call.dtype)
