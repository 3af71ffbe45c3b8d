"""A tensor times numbers that parameters decide: LayerScale, or the temperatures of heads.

    real      y = f·x
    integer   q_y = clamp(z_y + (((q_x - z_x)·m + 2^(S-1)) >> S))

with m·2^-S = f·s_x/s_y, one pair for each number of f, in its shape. The numbers cost no rounding
of their own, and stay real, and trainable, until the network is converted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.intmath import Rescale, requantize, rescale_of
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import OpSpec, Output, RealCall, not_spelled


class ScaleNumbers(NamedTuple):
    """`multiplier`, `shift` int64, in the shape of the factors; the others int32, 0-dim."""

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor


def scale(input: Tensor, factors: Tensor) -> Tensor:
    """Two tensors of shapes that broadcast."""
    return input * factors


def _numbers(call: RealCall) -> ScaleNumbers:
    x, (y, low, high) = call.inputs[0], call.target
    factors = call.options["factors"].detach().double()
    multiplier, shift = rescale_of(factors * (x.scale.double() / y.scale.double()))
    return ScaleNumbers(multiplier, shift, x.zero_point, y.zero_point, low, high)


def _kernel(n: ScaleNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    centred = codes.to(torch.int64) - n.x_zero
    return requantize(centred, Rescale(n.multiplier, n.shift), n.y_zero, n.low, n.high, dtype)


def _accumulator(call: IntegerCall) -> Accumulator:
    n: ScaleNumbers = call.numbers
    product = reach(call.inputs[0].scheme, n.x_zero) * int(n.multiplier.abs().max())
    return Accumulator((product + (1 << int(n.shift.max()) >> 1),), 1, bits=64)


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
    accumulator=_accumulator,
    real=("factors",),
)
"""Spelled as a product, of which the pass scale_by_parameters makes it."""
