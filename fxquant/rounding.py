"""How what lies between two integers becomes one of them: as each engine does it.

    half_up     (p + 2^(S-1)) >> S                           one rounding, ties towards +∞
    half_even   p / 2^S, ties to the even integer
    half_away   p / 2^S, ties away from 0
    gemmlowp    half_away(half_up(p / 2^31) / 2^(S-31))      two roundings
    ruy         half_up(half_up(p / 2^31) / 2^(S-31))        two roundings
    fp32_rne    float32(acc)·float32(factor), ties to even

where p = acc·m and m·2^-S is the factor. Whatever rounds in a network asks its `Rounding`:
`multiply` for an accumulator and a factor, `add_up` for a sum, `divide` and `shift` for integers,
`nearest` for real numbers. The prepared network's eval() and the converted one ask the same.

Sources: gemmlowp, fixedpoint.h, SaturatingRoundingDoublingHighMul (half_up(p / 2^31)) and
RoundingDivideByPOT; ruy, apply_multiplier.cc; Jacob et al. 2018, "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2.2 and appendix A.2;
MLAS, qladd_avx2.cpp. docs/rounding.md says which engine rounds how, as measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fxquant.errors import ConfigError, DataError
from fxquant.schemes import SMALLEST_SCALE, QParams, round_half_up

MULTIPLIER_BITS = 31
MAX_SHIFT = 44  # up to here float64 evaluates one rounding exactly too
HIGH_MUL_SHIFT = 31  # SaturatingRoundingDoublingHighMul keeps the upper half of 2·a·b
LITERT_MAX_SHIFT = 62  # of LiteRT's QuantizeMultiplier: 31 for either rounding
_FAR = 2.0**31  # further than the distance of any two codes
_LARGEST = 2.0**90  # of float32 factors: sums stay finite, any accumulator but 0 saturates


class Rescale(NamedTuple):
    """A real factor as `multiplier · 2^-shift`, both int64 of one shape; in fp32_rne the multiplier
    is the factor itself, in float32, and the shift 0.
    """

    multiplier: Tensor
    shift: Tensor


class Division(Protocol):
    """`zero + total / divisor`, rounded as a whole: int64 in and out, divisor positive."""

    def __call__(self, total: Tensor, divisor: Tensor, zero: Tensor | int = 0) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """One way to round, and everything that rounds. Leaving a field out is an error at import.

    name           what QuantConfig and messages call it
    reals          the float type in which scales are multiplied and divided by one another
    nearest        real numbers to integers, floats in and out: at the entrance and in tables
    shift          `shift(product, S)`: product / 2^S, int64 in and out
    divide         `divide(total, divisor)`: int64 in and out, divisor positive; with a zero point
                   `divide(total, divisor, zero)`, which is added before rounding: ties differ
    divide_shift   `divide_shift(total, S)`: total / 2^S, rounded as `divide` does
    rescale        the `Rescale` of real factors (of type `reals`, any sign, any shape)
    multiply       `multiply(acc, rescale)`: an accumulator times its factor, int64 in and out
    rescale_terms  `rescale_terms(factors, bits)`: the `Rescale` of a sum whose n terms are codes of
                   at most so many bits, each with its factor (float64 [n])
    add_up         `add_up(codes, zeros, rescale, y_zero)`: that sum, not clamped yet, int64
    worst_sum      `worst_sum(terms, rescale)`: the most that it adds up, of terms that are at most
                   so large (Python's integers); None where it adds float32 numbers
    floors         whether `multiply` and `add_up` are one floor of product / 2^S + 1/2, so that
                   whoever adds that half along the way has only to cut off
    """

    name: str
    reals: torch.dtype
    nearest: Callable[[Tensor], Tensor]
    shift: Callable[[Tensor, Tensor], Tensor]
    divide: Division
    divide_shift: Callable[[Tensor, Tensor], Tensor]
    rescale: Callable[[Tensor], Rescale]
    multiply: Callable[[Tensor, Rescale], Tensor]
    rescale_terms: Callable[[Tensor, int], Rescale]
    add_up: Callable[[Sequence[Tensor], Tensor, Rescale, Tensor], Tensor]
    worst_sum: Callable[[Sequence[int], Rescale], int | None]
    floors: bool = False

    def requantize(
        self, acc: Tensor, rescale: Rescale, zero_point: Tensor, low: Tensor, high: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Accumulators (int64) to codes of `dtype`: `clamp(multiply(acc) + z, low, high)`."""
        return torch.clamp(self.multiply(acc, rescale) + zero_point, low, high).to(dtype)

    def quantize(self, x: Tensor, q: QParams) -> Tensor:
        """Real numbers to codes, same shape: `clamp(nearest(x / s) + z)`."""
        codes = self.nearest(x.to(torch.float32) / q.scale) + q.zero_point
        return codes.clamp(q.scheme.qmin, q.scheme.qmax).to(q.scheme.dtype)

    def __repr__(self) -> str:
        return f"Rounding({self.name!r})"

    def __deepcopy__(self, memo: object) -> Rounding:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return rounding_named, (self.name,)


# ------------------------------------------------------------------------ real numbers


def need_real(x: object) -> None:
    """Refuse what has no codes: no tensor, or one of complex numbers, of which a cast would keep
    the real part.

    Raises DataError.
    """
    if not hasattr(x, "detach"):  # as a tensor has, and what torch.fx traces with
        raise DataError(
            f"a quantized network takes tensors, got a {type(x).__name__}.\n"
            "What to do: hand it the arguments that the model takes; torch.as_tensor makes them."
        )
    if isinstance(x, Tensor) and x.is_complex():
        raise DataError(
            f"a quantized network takes real numbers, got a tensor of {x.dtype}.\n"
            "What to do: hand it torch.view_as_real(x), or the part that is meant."
        )


def round_half_away(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties away from 0. Any float dtype, same out."""
    whole = torch.trunc(x)
    return whole + torch.sign(x) * ((x - whole).abs() >= 0.5)


# ------------------------------------------------------------------------ integers


def shift_half_up(product: Tensor, shift: Tensor) -> Tensor:
    """`product / 2^shift`, rounded half-up: int64 in and out."""
    return (product + ((1 << shift) >> 1)).bitwise_right_shift_(shift)  # memory costs more


def shift_half_up_(product: Tensor, shift: Tensor) -> Tensor:
    """The same in the memory of `product`, where fresh memory would cost more than the shift."""
    return product.add_((1 << shift) >> 1).bitwise_right_shift_(shift)


def shift_half_even(product: Tensor, shift: Tensor) -> Tensor:
    """`product / 2^shift`, ties to even: int64 in and out."""
    up = shift_half_up(product, shift)
    return up - (_is_tie((up << shift) - product, 1 << shift) & (up % 2 == 1)).to(torch.int64)


def shift_half_away(product: Tensor, shift: Tensor) -> Tensor:
    """`product / 2^shift`, ties away from 0: int64 in and out. RoundingDivideByPOT of gemmlowp."""
    up = shift_half_up(product, shift)
    return up - (_is_tie((up << shift) - product, 1 << shift) & (product < 0)).to(torch.int64)


def divide_half_up(total: Tensor, divisor: Tensor, zero: Tensor | int = 0) -> Tensor:
    """`zero + total / divisor`, rounded half-up: int64 in and out, divisor positive."""
    return torch.div(2 * total + divisor, 2 * divisor, rounding_mode="floor") + zero


def divide_half_even(total: Tensor, divisor: Tensor, zero: Tensor | int = 0) -> Tensor:
    """`zero + total / divisor`, ties to even: int64 in and out, divisor positive."""
    up = divide_half_up(total, divisor)
    odd = (up + zero) % 2 == 1
    return up + zero - (_is_tie(up * divisor - total, divisor) & odd).to(torch.int64)


def divide_half_away(total: Tensor, divisor: Tensor, zero: Tensor | int = 0) -> Tensor:
    """`zero + total / divisor`, ties away from 0: int64 in and out, divisor positive."""
    up = divide_half_up(total, divisor)
    negative = up + zero <= 0  # a tie lies half a step below
    return up + zero - (_is_tie(up * divisor - total, divisor) & negative).to(torch.int64)


def _is_tie(rounded_up_by: Tensor, step: Tensor) -> Tensor:
    """Whether half-up went up by just half a step: every other mode differs there alone."""
    return 2 * rounded_up_by == step


def _in_two_steps(
    second: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    def shift(product: Tensor, shift: Tensor) -> Tensor:
        first = shift.clamp(max=HIGH_MUL_SHIFT)
        return second(shift_half_up(product, first), shift - first)

    return shift


shift_gemmlowp = _in_two_steps(shift_half_away)
"""SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT. Shifts below 31, where gemmlowp
shifts the accumulator to the left before, round once, half-up."""

shift_ruy = _in_two_steps(shift_half_up)
"""The same, but for the second rounding, which is half-up."""


# ------------------------------------------------------------------------ integer factors


def exponent_of(real: Tensor) -> Tensor:
    """The e of `2^(e-1) <= |real| < 2^e`, and 0 of 0: int64, of float64 that is not subnormal.

    That of torch.frexp, read off the bits: of frexp of float64 inductor makes C++ that no compiler
    takes (torch 2.15).
    """
    exponent = ((real.view(torch.int64) >> 52) & 0x7FF) - 1022
    return torch.where(real == 0, 0, exponent)


def rescale_of(
    factor: Tensor, most: int = MAX_SHIFT, nearest: Callable[[Tensor], Tensor] = torch.round
) -> Rescale:
    """The nearest `m · 2^-S` to each real factor (float64, any sign, any shape).

    `m` has 31 bits while S <= `most`; smaller factors have fewer. A factor beyond 2^31 becomes
    the largest `m` there is: any non-zero accumulator saturates with it, as it should.
    """
    factor = factor.to(torch.float64)
    shift = (MULTIPLIER_BITS - exponent_of(factor)).clamp(0, most)
    multiplier = nearest(torch.ldexp(factor, shift))
    top = 2**MULTIPLIER_BITS
    # rounding up to 2^31 moves one bit from the multiplier to the shift
    full = (multiplier.abs() == top) & (shift > 0)
    multiplier = torch.where(full, multiplier / 2, multiplier).clamp(-(top - 1), top - 1)
    return Rescale(multiplier.to(torch.int64), shift - full.to(torch.int64))


def _litert_rescale(factor: Tensor) -> Rescale:
    """LiteRT's QuantizeMultiplier: 31 bits of every factor down to 2^-31."""
    return rescale_of(factor, LITERT_MAX_SHIFT, round_half_away)


def common_rescale(factors: Tensor, most: int = 30) -> Rescale:
    """Multipliers of n factors (float64, shape [n], any signs) over one common shift (0-dim).

    The multipliers are short enough for n products of a 9-bit number and the rounding term
    to fit 32 bits: 21 bits for two operands, 19 for eight. The shift is at `most` 30; a sum of
    longer numbers, whose factors are smaller, has 64 bits and may shift further.
    """
    return short_rescale(factors, 22 - max(len(factors) - 1, 1).bit_length(), most)


def short_rescale(factors: Tensor, bits: int, most: int) -> Rescale:
    """Multipliers of at most `bits` bits, of float64 factors of any shape and signs, over one
    common shift of at most `most` (0-dim).
    """
    shift = (bits - exponent_of(factors.abs().max())).clamp(0, most)
    top = 2**bits - 1
    multiplier = torch.ldexp(factors, shift).round().clamp(-top, top)
    return Rescale(multiplier.to(torch.int64), shift)


def _times(
    shift: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Rescale], Tensor]:
    def multiply(acc: Tensor, rescale: Rescale) -> Tensor:
        return shift(acc * rescale.multiplier, rescale.shift)

    return multiply


# ------------------------------------------------------------------------ sums


def _in_one_step(
    shift: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Sequence[Tensor], Tensor, Rescale, Tensor], Tensor]:
    """`shift(Σ (q_i - z_i)·m_i, S)`: one rounding for all terms."""

    def add_up(
        codes: Sequence[Tensor], zeros: Tensor, rescale: Rescale, y_zero: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.int64, device=zeros.device)
        for q, zero, multiplier in zip(codes, zeros, rescale.multiplier, strict=True):
            total = total + (q - zero) * multiplier
        return shift(total, rescale.shift) + y_zero

    return add_up


def worst_in_one_step(terms: Sequence[int], rescale: Rescale) -> int:
    """`Σ t_i·|m_i|` and half a step for the rounding."""
    products = (t * abs(m) for t, m in zip(terms, rescale.multiplier.tolist(), strict=True))
    return int(sum(products)) + (1 << int(rescale.shift) >> 1)


def _rescale_terms_in_one_step(factors: Tensor, bits: int) -> Rescale:
    return common_rescale(factors)


def _rescale_terms_of_litert(factors: Tensor, bits: int) -> Rescale:
    """n + 1 of them: of the terms, to a unit in which their sum fits 32 bits, and of the sum.

        unit = 2^⌈log2 n⌉ · max f      m_i·2^-S_i = 2^L·f_i/unit      m·2^-S = unit/2^L

    L is 20 for codes of 8 bits, 15 for longer ones; m_i = 2^L · a multiplier of 31 bits.
    """
    left = 20 if bits <= 8 else 15
    largest = factors.abs().max().clamp(min=SMALLEST_SCALE)
    unit = largest * 2 ** max(len(factors) - 1, 1).bit_length()
    terms = _litert_rescale(factors / unit)
    total = _litert_rescale((unit / 2**left).reshape(1))
    return Rescale(
        torch.cat([terms.multiplier << left, total.multiplier]),
        torch.cat([terms.shift, total.shift]),
    )


def _add_up_as_litert(
    codes: Sequence[Tensor], zeros: Tensor, rescale: Rescale, y_zero: Tensor
) -> Tensor:
    """Each term rounded to the unit, then their sum: three roundings for two terms.

    Of reference_ops::Add in LiteRT. Its optimized kernels, too, round sums as gemmlowp does.
    """
    *multipliers, last = rescale.multiplier
    *shifts, last_shift = rescale.shift
    total = torch.zeros((), dtype=torch.int64, device=zeros.device)
    for q, zero, multiplier, shift in zip(codes, zeros, multipliers, shifts, strict=True):
        total = total + shift_gemmlowp((q - zero) * multiplier, shift)
    return shift_gemmlowp(total * last, last_shift) + y_zero


def _worst_of_litert(terms: Sequence[int], rescale: Rescale) -> int:
    """`Σ ⌈t_i·|m_i| / 2^S_i⌉`: what is added up are the rounded terms."""
    *multipliers, _ = rescale.multiplier.tolist()
    *shifts, _ = rescale.shift.tolist()
    worst = 0
    for term, multiplier, shift in zip(terms, multipliers, shifts, strict=True):
        worst -= -term * abs(multiplier) >> shift  # floored below 0
    return worst


# ------------------------------------------------------------------------ float32


def _float32_rescale(factor: Tensor) -> Rescale:
    """The factor in float32; nothing to shift."""
    scale = factor.to(torch.float32).clamp(-_LARGEST, _LARGEST)
    return Rescale(scale, torch.zeros_like(scale, dtype=torch.int64))


def _multiply_in_float32(acc: Tensor, rescale: Rescale) -> Tensor:
    """`rint(float32(acc) · factor)`: MlasRequantizeOutput, and XNNPACK's fp32 requantization."""
    return _integer(torch.round(acc.to(torch.float32) * rescale.multiplier))


def _float32_rescale_terms(factors: Tensor, bits: int) -> Rescale:
    return _float32_rescale(factors)


def _add_up_in_float32(
    codes: Sequence[Tensor], zeros: Tensor, rescale: Rescale, y_zero: Tensor
) -> Tensor:
    """`rint(z_y - Σ f_i·z_i + Σ f_i·q_i)` by fused multiply-adds, the last term first.

    The zero point is added before rounding: of ties it decides which neighbour is even.
    QLinearAdd of onnxruntime (MLAS, qladd_avx2.cpp).
    """
    terms = [*zip(codes, zeros, rescale.multiplier, strict=True)][::-1]
    fixed = torch.zeros_like(rescale.multiplier[0])
    for _, zero, factor in terms:
        fixed = _fused_multiply_add(factor, zero, fixed)
    total = y_zero.to(torch.float32) - fixed
    for q, _, factor in terms:
        total = _fused_multiply_add(factor, q, total)
    return _integer(torch.round(total))


def _no_integers(terms: Sequence[int], rescale: Rescale) -> None:
    """No sum of integers: each step of a float32 sum is rounded."""


def _fused_multiply_add(factor: Tensor, integer: Tensor, summand: Tensor) -> Tensor:
    """`factor·integer + summand` in float32, rounded once: float64 holds the product exactly."""
    return (factor.double() * integer.double() + summand.double()).to(torch.float32)


def _integer(whole: Tensor) -> Tensor:
    return whole.clamp(-_FAR, _FAR).to(torch.int64)


# ------------------------------------------------------------------------ the six


def _one_rounding(
    name: str,
    nearest: Callable[[Tensor], Tensor],
    shift: Callable[[Tensor, Tensor], Tensor],
    divide: Division,
    floors: bool = False,
) -> Rounding:
    return Rounding(
        name=name,
        reals=torch.float64,
        nearest=nearest,
        shift=shift,
        divide=divide,
        divide_shift=shift,
        rescale=rescale_of,
        multiply=_times(shift),
        rescale_terms=_rescale_terms_in_one_step,
        add_up=_in_one_step(shift),
        worst_sum=worst_in_one_step,
        floors=floors,
    )


def _two_roundings(
    name: str, nearest: Callable[[Tensor], Tensor], shift: Callable[[Tensor, Tensor], Tensor]
) -> Rounding:
    """As in LiteRT, which divides half away from 0 and adds up as gemmlowp does, in both."""
    return Rounding(
        name=name,
        reals=torch.float64,
        nearest=nearest,
        shift=shift,
        divide=divide_half_away,
        divide_shift=shift_half_away,
        rescale=_litert_rescale,
        multiply=_times(shift),
        rescale_terms=_rescale_terms_of_litert,
        add_up=_add_up_as_litert,
        worst_sum=_worst_of_litert,
    )


HALF_UP = _one_rounding("half_up", round_half_up, shift_half_up, divide_half_up, floors=True)
HALF_EVEN = _one_rounding("half_even", torch.round, shift_half_even, divide_half_even)
HALF_AWAY = _one_rounding("half_away", round_half_away, shift_half_away, divide_half_away)
GEMMLOWP = _two_roundings("gemmlowp", round_half_away, shift_gemmlowp)
RUY = _two_roundings("ruy", torch.round, shift_ruy)  # LiteRT's optimized QUANTIZE goes to even
FP32_RNE = Rounding(
    name="fp32_rne",
    reals=torch.float32,
    nearest=torch.round,
    shift=shift_half_even,
    divide=divide_half_even,
    divide_shift=shift_half_even,
    rescale=_float32_rescale,
    multiply=_multiply_in_float32,
    rescale_terms=_float32_rescale_terms,
    add_up=_add_up_in_float32,
    worst_sum=_no_integers,
)

ROUNDINGS = (HALF_UP, HALF_EVEN, HALF_AWAY, GEMMLOWP, RUY, FP32_RNE)


def rounding_named(name: str) -> Rounding:
    """The rounding of that name; a ConfigError that lists them if there is none.

    'half_up/16' is that of `with_multiplier_bits(HALF_UP, 16)`.
    """
    plain, _, bits = str(name).partition("/")
    for rounding in ROUNDINGS:
        if rounding.name == plain:
            return with_multiplier_bits(rounding, int(bits)) if bits.isdecimal() else rounding
    names = ", ".join(repr(rounding.name) for rounding in ROUNDINGS)
    raise ConfigError(f"rounding is one of {names}; got {name!r}")


# ------------------------------------------------------------------------ short multipliers


def with_multiplier_bits(rounding: Rounding, bits: int) -> Rounding:
    """The same rounding, of factors that have no more than so many significant bits.

        m = round(f·2^S), |m| < 2^bits

    As hardware with narrow multipliers has them. Rescales of layers, products, sums, concats and
    slopes are shortened; a mean, a division and a batch norm that stands alone keep theirs.

    Raises ConfigError for the roundings of engines, whose multipliers are what they are.
    """
    if type(bits) is not int or not 2 <= bits <= MULTIPLIER_BITS:
        raise ConfigError(f"multiplier_bits is 2 to {MULTIPLIER_BITS}, got {bits!r}")
    if rounding not in (HALF_UP, HALF_EVEN, HALF_AWAY):
        raise ConfigError(
            f"multiplier_bits={bits} needs rounding='half_up', 'half_even' or 'half_away': "
            f"{rounding.name!r} is that of engines with multipliers of their own"
        )

    def rescale(factor: Tensor) -> Rescale:
        multiplier, shift = rescale_of(shortened(factor, bits))
        length = exponent_of(multiplier.double())
        spare = torch.minimum((length - bits).clamp(min=0), shift)  # so many bits at its end are 0
        return Rescale(multiplier >> spare, shift - spare)

    def rescale_terms(factors: Tensor, code_bits: int) -> Rescale:
        return common_rescale(shortened(factors, bits))

    name = f"{rounding.name}/{bits}"
    return replace(rounding, name=name, rescale=rescale, rescale_terms=rescale_terms)


def shortened(factor: Tensor, bits: int) -> Tensor:
    """Each factor (float64, any shape) as the nearest that has so many significant bits."""
    factor = factor.to(torch.float64)
    spare = (exponent_of(factor) - bits).double()  # or ldexp would take a power in float32
    return torch.ldexp(torch.ldexp(factor, -spare).round(), spare)
