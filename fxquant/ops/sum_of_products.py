"""Sum of n products of two tensors: a mixed operation whose weights the input decides.

    real      y = x_1·w_1 + … + x_n·w_n
    integer   q_y = clamp(z_y + ((Σ (q_xi - z_xi)·(q_wi - z_wi)·m_i + 2^(S-1)) >> S))

with m_i = round(s_xi·s_wi/s_y · 2^S) over one common shift: one rounding for all. The sum has 64
bits: products of codes of 8 and 16 bits have 26, multipliers 21 or fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.intmath import Rescale, common_rescale, requantize
from fxquant.ops.operands import OperandNumbers
from fxquant.ops.spec import OpSpec, Output, RealCall, not_spelled


def sum_of_products(*inputs: Tensor) -> Tensor:
    """x_1, …, x_n, then w_1, …, w_n; of shapes that broadcast."""
    half = len(inputs) // 2
    total = inputs[0] * inputs[half]
    for x, w in zip(inputs[1:half], inputs[half + 1 :], strict=True):
        total = total + x * w
    return total


def _numbers(call: RealCall) -> OperandNumbers:
    scales = torch.stack([q.scale for q in call.inputs]).double()
    left, right = scales.chunk(2)
    multiplier, shift = common_rescale(left * right / call.target.qparams.scale)
    return OperandNumbers(
        multiplier=multiplier,
        shift=shift,
        x_zero=torch.stack([q.zero_point for q in call.inputs]),
        y_zero=call.target.qparams.zero_point,
        low=call.target.low,
        high=call.target.high,
    )


def _kernel(n: OperandNumbers, dtype: torch.dtype, *codes: Tensor) -> Tensor:
    centred = [x.to(torch.int64) - zero for x, zero in zip(codes, n.x_zero, strict=True)]
    half = len(codes) // 2
    total = torch.zeros((), dtype=torch.int64, device=codes[0].device)
    for x, w, multiplier in zip(centred[:half], centred[half:], n.multiplier, strict=True):
        total = total + x * w * multiplier
    one = torch.ones_like(n.shift)
    return requantize(total, Rescale(one, n.shift), n.y_zero, n.low, n.high, dtype)


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
)
"""Spelled as products and sums, of which the pass join_products makes it."""
