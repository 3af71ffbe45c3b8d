"""What reductions share: the means of cells and of dimensions, and sums. Each has its own range.

    real      y = (Σ x) / c
    integer   q_y = clamp(z_y + floor((2·Σ(q_x - z_x)·m + (c << S)) / (c << (S + 1))))

with m·2^-S = s_x/s_y. The sum is exact, and one division rounds, whatever the count is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.errors import AccumulatorError
from fxquant.intmath import divide_half_up, short_rescale
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import RealCall

# Nothing leaves int64: with b bits |q - z| < 2^b and m < 2^(39-b), so the sum of c elements times
# m stays below c·2^39, and c << S too, with S <= 40. Up to 2^21 elements the dividend, of twice
# the one and once the other, is below 2^63.
_PRODUCT_BITS, _MAX_SHIFT = 39, 40
MAX_COUNT = 2**21


class AverageNumbers(NamedTuple):
    """`multiplier` and `shift`, int64, of s_x/s_y; the others int32: all 0-dim."""

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor


def average_numbers(call: RealCall) -> AverageNumbers:
    """From the parameters of what is summed to those of the result."""
    x, (y, low, high) = call.inputs[0], call.target
    factor = x.scale.double() / y.scale.double()
    multiplier, shift = short_rescale(factor, _PRODUCT_BITS - x.scheme.bits, _MAX_SHIFT)
    return AverageNumbers(multiplier, shift, x.zero_point, y.zero_point, low, high)


def accumulator_of_average(call: IntegerCall, elements: int | None) -> Accumulator:
    """Of what is summed before the one division, for so many elements, if that is known."""
    if elements is None:
        return Accumulator(None, None, bits=64)
    n: AverageNumbers = call.numbers
    dividend = 2 * elements * reach(call.inputs[0].scheme, n.x_zero) * int(n.multiplier)
    return Accumulator((dividend + (elements << int(n.shift)),), elements, bits=64)


def accumulator_over_dimensions(call: IntegerCall) -> Accumulator:
    """Of a mean or a sum over `dim`: an int, several, or None for all."""
    shape, dim = call.inputs[0].shape, call.settings["dim"]
    if shape is None:
        return accumulator_of_average(call, None)
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    over = shape if dim is None or not dims else [shape[d] for d in dims]
    return accumulator_of_average(call, math.prod(over))


def finish_average(
    total: Tensor, elements: int, count: Tensor, n: AverageNumbers, dtype: torch.dtype
) -> Tensor:
    """Sums (int64) of centred codes over `count` (int64, broadcasts); both are at most of
    `elements`.
    """
    if elements > MAX_COUNT:
        raise AccumulatorError(
            f"a sum of {elements} values may leave 64 bits, one of {MAX_COUNT} may not.\n"
            "What to do: sum in two steps, or keep it in float, QuantConfig(keep_float=(…,))."
        )
    y = divide_half_up(total * n.multiplier, count << n.shift) + n.y_zero
    return torch.clamp(y, n.low, n.high).to(dtype)
