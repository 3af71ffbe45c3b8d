"""Sum of n products of two tensors: a mixed operation whose weights the input decides.

    real      y = x_1·w_1 + … + x_n·w_n
    integer   q_y = clamp(z_y + ((Σ (q_xi - z_xi)·(q_wi - z_wi)·m_i + 2^(S-1)) >> S))

with m_i = round(s_xi·s_wi/s_y · 2^S) over one common shift, S <= 44: one rounding for all. The sum
has 64 bits: products of codes of 8 and 16 bits have 26, multipliers 21 or fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, centred_value, finish_value
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.operands import (
    OperandNumbers,
    centred_operands,
    operand_numbers,
    scales_of,
)
from fxquant.ops.spec import OpSpec, Output, RealCall, not_spelled
from fxquant.rounding import MAX_SHIFT, Rescale, common_rescale, worst_in_one_step


def sum_of_products(*inputs: Tensor) -> Tensor:
    """x_1, …, x_n, then w_1, …, w_n; of shapes that broadcast."""
    half = len(inputs) // 2
    total = inputs[0] * inputs[half]
    for x, w in zip(inputs[1:half], inputs[half + 1 :], strict=True):
        total = total + x * w
    return total


def _numbers(call: RealCall) -> OperandNumbers:
    left, right = scales_of(call).chunk(2)
    factors = left * right / call.target.qparams.scale
    return operand_numbers(call, common_rescale(factors, MAX_SHIFT))


def _kernel(n: OperandNumbers, dtype: torch.dtype, *codes: Tensor) -> Tensor:
    values = centred_operands(n, codes)
    half = len(values) // 2
    total = torch.zeros((), dtype=torch.int64, device=n.multiplier.device)
    for x, w, multiplier in zip(values[:half], values[half:], n.multiplier, strict=True):
        total = total + x * w * multiplier
    return torch.clamp(n.rounding.shift(total, n.shift) + n.y_zero, n.low, n.high).to(dtype)


def _accumulator(call: IntegerCall) -> Accumulator:
    zeros = call.numbers.x_zero
    far = [reach(x.scheme, zero) for x, zero in zip(call.inputs, zeros, strict=True)]
    half = len(far) // 2
    products = [x * w for x, w in zip(far[:half], far[half:], strict=True)]
    n: OperandNumbers = call.numbers
    worst = worst_in_one_step(products, Rescale(n.multiplier, n.shift))
    return Accumulator((worst,), len(products), bits=64)


def _onnx(call: OnnxCall) -> Value:
    n: OperandNumbers = call.numbers
    values = [centred_value(x, zero) for x, zero in zip(call.codes, n.x_zero, strict=True)]
    half = len(values) // 2
    terms = zip(values[:half], values[half:], n.multiplier, strict=True)
    products = [x * w * multiplier for x, w, multiplier in terms]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return finish_value(total, n.rounding, n.shift, n, call.dtype)


SUM_OF_PRODUCTS = OpSpec(
    name="sum_of_products",
    function=sum_of_products,
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
    onnx=_onnx,
)
"""Spelled as products and sums, of which the pass join_products makes it."""
