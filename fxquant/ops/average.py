"""What reductions share: the means of cells and of dimensions, and sums. Each has its own range.

    real      y = (Σ x) / c
    integer   q_y = clamp(round(z_y + m·Σ(q_x - z_x) / (c << S)))       over dimensions
              q_y = clamp(z_y + round(m·Σ(q_x - z_x) / (c << S)))       of cells

with m·2^-S = s_x/s_y. The sum is exact, and one division rounds, whatever the count is. Half-up the
two are the same; but a tie's even neighbour, or 0, may lie on its other side. XNNPACK's MEAN rounds
with the zero point, QLinearGlobalAveragePool of onnxruntime without.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.errors import AccumulatorError, ExportError
from fxquant.forms.onnx import OnnxCall, OnnxForm, Value, of_values, sum_of
from fxquant.forms.tflite import TfliteCall, TfliteForm
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import look_up_means
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import RealCall, as_tuple
from fxquant.rounding import FP32_RNE, HALF_AWAY, HALF_EVEN, HALF_UP, Rounding, short_rescale

# Nothing leaves int64: with b bits |q - z| < 2^b and m < 2^(39-b), so the sum of c elements times
# m stays below c·2^39, and c << S too, with S <= 40. Up to 2^21 elements the dividend, of twice
# the one and once the other, is below 2^63.
_PRODUCT_BITS, _MAX_SHIFT = 39, 40
_WHOLE_DOUBLES = 2**53
MAX_COUNT = 2**21


class AverageNumbers(NamedTuple):
    """`multiplier` and `shift`, int64, of s_x/s_y; the others int32: all 0-dim."""

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def average_numbers(call: RealCall) -> AverageNumbers:
    """From the parameters of what is summed to those of the result."""
    x, (y, low, high, rounding) = call.inputs[0], call.target
    factor = x.scale.double() / y.scale.double()
    multiplier, shift = short_rescale(factor, _PRODUCT_BITS - x.scheme.bits, _MAX_SHIFT)
    zeros = x.zero_point, y.zero_point
    return AverageNumbers(multiplier, shift, *zeros, low, high, rounding)


def accumulator_of_average(call: IntegerCall, elements: int | None) -> Accumulator:
    """Of what is summed before the one division, for so many elements, if that is known."""
    if elements is None:
        return Accumulator(None, None, bits=64)
    n: AverageNumbers = call.numbers
    dividend = 2 * elements * reach(call.inputs[0].scheme, n.x_zero) * int(n.multiplier)
    return Accumulator((dividend + (elements << int(n.shift)),), elements, bits=64)


def accumulator_over_dimensions(call: IntegerCall) -> Accumulator:
    """Of a mean or a sum over `dim`: an int, several, or None for all."""
    shape = call.inputs[0].shape
    dim = call.settings["dim"]
    if shape is None:
        return accumulator_of_average(call, None)
    dims = as_tuple(dim)
    everything = dim is None or not dims or not shape  # a single number has dimension 0, too
    over = shape if everything else [shape[d] for d in dims]
    return accumulator_of_average(call, math.prod(over))


def finish_average(
    total: Tensor, elements: int, count: Tensor, n: AverageNumbers, dtype: torch.dtype
) -> Tensor:
    """Of a reduction over dimensions: sums (int64) of centred codes over `count` (int64,
    broadcasts); both are at most of `elements`.
    """
    y = n.rounding.divide(*_fraction(total, elements, count, n), n.y_zero)
    return torch.clamp(y, n.low, n.high).to(dtype)


def finish_cells(
    total: Tensor, elements: int, count: Tensor, n: AverageNumbers, dtype: torch.dtype
) -> Tensor:
    """Of cells, rounded before the zero point is added."""
    y = n.rounding.divide(*_fraction(total, elements, count, n)) + n.y_zero
    return torch.clamp(y, n.low, n.high).to(dtype)


def _fraction(
    total: Tensor, elements: int, count: Tensor, n: AverageNumbers
) -> tuple[Tensor, Tensor]:
    """Dividend and divisor, proved to be small enough."""
    if elements > MAX_COUNT:
        raise AccumulatorError(
            f"a sum of {elements} values may leave 64 bits, one of {MAX_COUNT} may not.\n"
            "What to do: sum in two steps, or keep it in float, QuantConfig(keep_float=(…,))."
        )
    return total * n.multiplier, count << n.shift


def average_tflite(counted: bool) -> TfliteForm:
    """The form of a mean over dimensions, or, not counted, of a sum: a table of what sums become.

    LiteRT's own MEAN multiplies by 1/count, rounded before.
    """

    def form(call: TfliteCall) -> TfliteValue:
        n: AverageNumbers = call.numbers
        (x,), dim = call.codes, call.settings["dim"]
        dims = list(as_tuple(dim)) if dim is not None else []
        over = dims or range(len(x.shape))
        count = math.prod(x.length(d) for d in over)
        total = x.centred(n.x_zero).sum(over, bool(call.settings["keepdim"]))

        def mean(sums: Tensor, divisor: Tensor) -> Tensor:
            return finish_average(sums, count, divisor, n, call.dtype)

        return look_up_means(call, total, count, torch.tensor(count if counted else 1), mean)

    return form


def average_onnx(counted: bool) -> OnnxForm:
    """The form of a mean over dimensions, or, not counted, of a sum."""

    def form(call: OnnxCall) -> Value:
        n: AverageNumbers = call.numbers
        (x,), dim = call.codes, call.settings["dim"]
        assert x.shape is not None  # as of all that the integer network itself gives
        dims = list(as_tuple(dim)) if dim is not None else []
        over = [x.shape[d] for d in dims] if dims else list(x.shape)
        if None in over:
            raise ExportError(
                f"node '{call.graph.place}' sums over the batch.\n"
                "What to do: fix its size, batch=…"
            )
        elements = math.prod(size for size in over if size is not None)
        count = torch.tensor(elements if counted else 1)
        total = sum_of(
            x, n.x_zero, dims or range(len(x.shape)), bool(call.settings["keepdim"]),
            quotient_type(call, elements, count),
        )
        y = quotient(call, total, elements, count, n.y_zero)
        return y.clamp(n.low, n.high).to(call.dtype)

    return form


def quotient_type(call: OnnxCall, elements: int, count: Tensor) -> torch.dtype:
    """float64 where one division in it is exact, for sums of so many elements; else int64.

    A quotient that is not saturated lies below 2^(b+1), for codes of b bits, and what three
    roundings of float64 change there is below 2^(b-50). One that is no tie lies at least
    1 / (2·divisor) from every tie.
    """
    n: AverageNumbers = call.numbers
    x_bits, y_bits = (torch.iinfo(dtype).bits for dtype in (call.codes[0].dtype, call.dtype))
    whole = elements * int(n.multiplier) << x_bits <= _WHOLE_DOUBLES
    apart = int(count.max()) << int(n.shift) <= 2 ** (49 - y_bits)
    alike = n.rounding in (HALF_UP, HALF_EVEN, HALF_AWAY, FP32_RNE)  # `nearest` and `divide`
    return torch.float64 if whole and apart and alike else torch.int64


def quotient(
    call: OnnxCall, total: Value, elements: int, count: Tensor, zero: Tensor | int
) -> Value:
    """`zero` and Σ·m / (count << S), rounded once; the sum in its `quotient_type`."""
    n: AverageNumbers = call.numbers
    divisor = count << n.shift
    if quotient_type(call, elements, count) is torch.int64:
        return of_values(n.rounding.divide)(total * n.multiplier, divisor, zero)
    real = total * n.multiplier.double() / divisor.double()
    return of_values(n.rounding.nearest)(real if isinstance(zero, int) else real + zero.double())
