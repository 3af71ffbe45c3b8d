"""What sums of n tensors have in common: their numbers and their kernel.

    integer   q_y = clamp(z_y + ((Σ (q_i - z_i)·m_i + 2^(S-1)) >> S))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.intmath import Rescale, requantize
from fxquant.ops.spec import RealCall


class OperandNumbers(NamedTuple):
    """Of n operands: `multiplier` int64 [n], `x_zero` int32 [n]; `shift` int64, one or [n];
    the others 0-dim int32.
    """

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor


def operand_numbers(call: RealCall, rescale: Callable[[Tensor], Rescale]) -> OperandNumbers:
    """What brings n operands to the output's scale; `rescale` makes multipliers of s_i/s_y."""
    scales = torch.stack([q.scale for q in call.inputs]).double()
    multiplier, shift = rescale(scales / call.target.qparams.scale)
    return OperandNumbers(
        multiplier=multiplier,
        shift=shift,
        x_zero=torch.stack([q.zero_point for q in call.inputs]),
        y_zero=call.target.qparams.zero_point,
        low=call.target.low,
        high=call.target.high,
    )


def sum_operands(n: OperandNumbers, dtype: torch.dtype, *codes: Tensor) -> Tensor:
    """The integer kernel: all operands brought to one scale and summed, then one rounding."""
    total = torch.zeros((), dtype=torch.int64, device=codes[0].device)
    for x, zero, multiplier in zip(codes, n.x_zero, n.multiplier, strict=True):
        total = total + (x.to(torch.int64) - zero) * multiplier
    one = torch.ones_like(n.shift)
    return requantize(total, Rescale(one, n.shift), n.y_zero, n.low, n.high, dtype)
