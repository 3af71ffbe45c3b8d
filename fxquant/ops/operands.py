"""What sums of n terms have in common: their numbers and their kernel.

    integer   q_y = clamp(z_y + ((Σ t_i·m_i + 2^(S-1)) >> S))        t_i = q_i - z_i, or a product
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.intmath import ACCUMULATOR_BITS, Rescale, requantize
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.spec import RealCall


class OperandNumbers(NamedTuple):
    """`multiplier` int64, one a term; `shift` int64, one or one a term; `x_zero` int32, one an
    operand; the others 0-dim int32.
    """

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor


def scales_of(call: RealCall) -> Tensor:
    """The scales of the operands, float64 [n]."""
    return torch.stack([q.scale for q in call.inputs]).double()


def ratios_of(call: RealCall) -> Tensor:
    """s_i/s_y of the operands, float64 [n]."""
    return scales_of(call) / call.target.qparams.scale


def operand_numbers(call: RealCall, rescale: Rescale) -> OperandNumbers:
    """The numbers of a call whose terms `rescale` brings to the output's scale."""
    return OperandNumbers(
        multiplier=rescale.multiplier,
        shift=rescale.shift,
        x_zero=torch.stack([q.zero_point for q in call.inputs]),
        y_zero=call.target.qparams.zero_point,
        low=call.target.low,
        high=call.target.high,
    )


def centred(n: OperandNumbers, codes: Iterable[Tensor]) -> list[Tensor]:
    """`q - z` of each operand, int64."""
    return [x.to(torch.int64) - zero for x, zero in zip(codes, n.x_zero, strict=True)]


def accumulator_of_operands(call: IntegerCall) -> Accumulator:
    """What a sum of operands adds up: 32 bits hold it, so short are its multipliers, and 64 where
    an operand has 16.
    """
    n: OperandNumbers = call.numbers
    worst = [reach(x.scheme, zero) for x, zero in zip(call.inputs, n.x_zero, strict=True)]
    bits = ACCUMULATOR_BITS if all(x.scheme.bits <= 8 for x in call.inputs) else 64
    return accumulator_of_terms(n, worst, bits)


def accumulator_of_terms(n: OperandNumbers, terms: Sequence[int], bits: int) -> Accumulator:
    """What is added up of terms that are at most so large, and half a step for the rounding."""
    products = (t * abs(m) for t, m in zip(terms, n.multiplier.tolist(), strict=True))
    return Accumulator((sum(products) + (1 << int(n.shift) >> 1),), len(terms), bits)


def sum_operands(n: OperandNumbers, dtype: torch.dtype, *codes: Tensor) -> Tensor:
    """The kernel of sums of operands."""
    return sum_terms(n, dtype, centred(n, codes))


def sum_terms(n: OperandNumbers, dtype: torch.dtype, terms: Iterable[Tensor]) -> Tensor:
    """All terms (int64) brought to one scale and summed, then one rounding."""
    total = torch.zeros((), dtype=torch.int64, device=n.multiplier.device)
    for term, multiplier in zip(terms, n.multiplier, strict=True):
        total = total + term * multiplier
    one = torch.ones_like(n.shift)
    return requantize(total, Rescale(one, n.shift), n.y_zero, n.low, n.high, dtype)
