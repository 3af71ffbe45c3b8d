"""What sums of n terms have in common: their numbers and their kernel.

    integer   q_y = clamp(z_y + ((Σ (q_i - z_i)·m_i + 2^(S-1)) >> S))

That is half-up; the other ways to round add up as their engines do (`rounding.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, of_values
from fxquant.forms.tflite import TfliteCall, TfliteForm
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import TWO_STEPS, by_operator, by_pairs, every_code, rounded
from fxquant.intmath import ACCUMULATOR_BITS, accumulator_limit, centred
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import Accumulator, IntegerCall, Operand, reach
from fxquant.ops.spec import RealCall
from fxquant.rounding import GEMMLOWP, HIGH_MUL_SHIFT, Rescale, Rounding, shift_gemmlowp

_LEFT_SHIFT = 20  # by which LiteRT's sums of codes of 8 bits are finer than their terms


class OperandNumbers(NamedTuple):
    """`multiplier` and `shift`, a `Rescale`: one a term, or one shift for all, or one more for the
    sum; `x_zero` int32, one an operand; the others 0-dim int32.
    """

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


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
        rounding=call.target.rounding,
    )


def sum_numbers(call: RealCall, factors: Tensor) -> OperandNumbers:
    """The numbers of a sum whose operands each have a factor (float64 [n])."""
    bits = max(q.scheme.bits for q in call.inputs)
    return operand_numbers(call, call.target.rounding.rescale_terms(factors, bits))


def centred_operands(n: OperandNumbers, codes: Iterable[Tensor]) -> list[Tensor]:
    """`q - z` of each operand, int64."""
    return [centred(x, zero) for x, zero in zip(codes, n.x_zero, strict=True)]


def accumulator_of_operands(call: IntegerCall) -> Accumulator | None:
    """What a sum of operands adds up: 32 bits hold it, so short are its multipliers, and 64 where
    an operand has 16.
    """
    n: OperandNumbers = call.numbers
    terms = [reach(x.scheme, zero) for x, zero in zip(call.inputs, n.x_zero, strict=True)]
    worst = n.rounding.worst_sum(terms, Rescale(n.multiplier, n.shift))
    bits = ACCUMULATOR_BITS if all(x.scheme.is_byte for x in call.inputs) else 64
    return None if worst is None else Accumulator((worst,), len(terms), bits)


def sum_operands(n: OperandNumbers, dtype: torch.dtype, *codes: Tensor) -> Tensor:
    """The kernel of sums of operands."""
    wide = [x.to(torch.int64) for x in codes]
    y = n.rounding.add_up(wide, n.x_zero, Rescale(n.multiplier, n.shift), n.y_zero)
    return torch.clamp(y, n.low, n.high).to(dtype)


def sum_onnx(call: OnnxCall) -> Value:
    """The form of sums of operands."""
    n: OperandNumbers = call.numbers
    wide = [x.to(torch.int64) for x in call.codes]
    add_up = of_values(n.rounding.add_up)
    y = add_up(wide, n.x_zero, Rescale(n.multiplier, n.shift), n.y_zero)
    return y.clamp(n.low, n.high).to(call.dtype)


def sum_tflite(native: str, signs: tuple[float, float]) -> TfliteForm:
    """The form of sums of operands, of which the operator `native` adds two up, with these signs.
    """

    def form(call: TfliteCall) -> TfliteValue:
        n: OperandNumbers = call.numbers
        if len(call.codes) != 2:
            return terms_tflite(call)
        grids = [x.grid for x in call.codes]
        known = [q for q in grids if q is not None and q.scheme.is_byte]
        if len(known) < 2 or n.rounding is not GEMMLOWP:
            return by_pairs(call)  # of the optimized ADD a few codes in ten thousand part from ruy
        scales = torch.stack([q.scale.double() for q in known])
        factors = scales / call.output.scale * scales.new_tensor(signs)
        rescale = n.rounding.rescale_terms(factors, 8)
        as_scales_say = all(map(torch.equal, rescale, (n.multiplier, n.shift)))
        # what it multiplies the sum by has to be below 1
        finer = 2 * float(factors.abs().max()) >= 2**_LEFT_SHIFT
        if finer or not as_scales_say:
            return by_pairs(call)
        return by_operator(call, native)

    return form


def terms_tflite(call: TfliteCall) -> TfliteValue:
    """Of two terms a table. Of more each is looked up in units of 32 bits, and QUANTIZE rounds
    their sum.

    As LiteRT adds two; in all its kernel sets QUANTIZE rounds 32 bits as gemmlowp does.
    """
    n: OperandNumbers = call.numbers
    if len(call.codes) == 2:
        return by_pairs(call)
    if n.rounding not in TWO_STEPS:
        raise call.refuse(f"adds {len(call.codes)} terms up as {n.rounding.name} does, and LiteRT "
                          "has no such operator", 'QuantConfig(rounding="gemmlowp")')
    if int(n.shift[-1]) < HIGH_MUL_SHIFT:  # it would shift to the left, out of 32 bits
        raise call.refuse("has a sum that is coarser than its output's scale")
    terms = []
    for x, zero, multiplier, shift in zip(
        call.codes, n.x_zero, n.multiplier[:-1], n.shift[:-1], strict=True
    ):
        of_codes = shift_gemmlowp((every_code(x).to(torch.int64) - zero) * multiplier, shift)
        terms.append(x.index.look_up(of_codes.to(torch.int32)))
    total = reduce(operator.add, terms)
    return rounded(call, total, Rescale(n.multiplier[-1], n.shift[-1]))


def fast_sum(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    """In int32, with all that is constant added at once, where that fits."""
    n: OperandNumbers = call.numbers
    plain = n.low.numel() == n.high.numel() == 1  # no limits for each channel
    quick = sum_in_int32(n, call.inputs, dtype) if n.rounding.floors and plain else None
    return Plain(partial(sum_operands, n, dtype)) if quick is None else Plain(quick, "int32")


@dataclass(frozen=True)
class SumInInt32:
    """`clamp((Σ q_i·m_i + constant) >> S, low, high)`, the zero points in the constant."""

    multipliers: tuple[int, ...]
    constant: int
    shift: int
    low: int
    high: int
    dtype: torch.dtype

    def __call__(self, *codes: Tensor) -> Tensor:
        """Of shapes that broadcast."""
        terms = zip(codes, self.multipliers, strict=True)
        x, multiplier = next(terms)
        total = x.to(torch.int32).mul_(multiplier)
        for x, multiplier in terms:
            wide = x.to(torch.int32)
            if wide.shape == total.shape:
                total.add_(wide, alpha=multiplier)
            else:
                total = torch.add(total, wide, alpha=multiplier)
        total.add_(self.constant).bitwise_right_shift_(self.shift)
        return total.clamp_(self.low, self.high).to(self.dtype)


def sum_in_int32(
    n: OperandNumbers, inputs: Sequence[Operand], dtype: torch.dtype
) -> SumInInt32 | None:
    """A sum that is rounded half up, or None where it may leave 32 bits."""
    multipliers, zeros = tuple(n.multiplier.tolist()), n.x_zero.tolist()
    shift = int(n.shift)
    constant = (1 << shift >> 1) + (int(n.y_zero) << shift)
    constant -= sum(m * zero for m, zero in zip(multipliers, zeros, strict=True))
    largest = [max(x.scheme.qmax, -x.scheme.qmin) for x in inputs]
    worst = sum(abs(m) * q for m, q in zip(multipliers, largest, strict=True)) + abs(constant)
    if worst >= accumulator_limit(32):
        return None
    return SumInInt32(multipliers, constant, shift, int(n.low), int(n.high), dtype)
