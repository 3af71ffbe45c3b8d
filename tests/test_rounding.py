"""The six roundings against slow, plain Python: fractions, and the sources' own steps one by one.

By hand, acc = -3, m·2^-S = 2^30·2^-32 = 1/4, so the real value is -3/4:

    half_up, half_even, half_away     -1
    gemmlowp, ruy                     first -3/2 to -1, then -1/2 to -1 (away) or to 0 (up)
"""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fxquant import QuantConfig
from fxquant.errors import ConfigError
from fxquant.intmath import Target
from fxquant.rounding import (
    FP32_RNE,
    GEMMLOWP,
    HALF_AWAY,
    HALF_EVEN,
    HALF_UP,
    ROUNDINGS,
    RUY,
    Rescale,
    Rounding,
    exponent_of,
    rounding_named,
)
from fxquant.schemes import UINT8, QParams, quantize

relaxed = settings(deadline=None)
int32 = st.integers(-(2**31), 2**31 - 1)
multipliers = st.integers(2**30, 2**31 - 1)
scales = st.floats(2.0**-20, 2.0**20, width=32)
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.name)
one_rounding = pytest.mark.parametrize("rounding", [HALF_UP, HALF_EVEN, HALF_AWAY], ids=repr)


def up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def even(x: Fraction) -> int:
    return round(x)  # Python's own


def away(x: Fraction) -> int:
    return up(x) if x >= 0 else -up(-x)


NEAREST = {
    "half_up": up, "half_even": even, "half_away": away, "gemmlowp": away, "ruy": away,
    "fp32_rne": even,
}

REAL = NEAREST | {"ruy": even}  # of real numbers


def high_mul(a: int, b: int) -> int:
    """gemmlowp's SaturatingRoundingDoublingHighMul, step by step; C divides towards 0."""
    nudged = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(nudged) // 2**31 if nudged >= 0 else -(abs(nudged) // 2**31)


def divide_by_power_of_two(x: int, exponent: int) -> int:
    """gemmlowp's RoundingDivideByPOT, step by step."""
    mask = (1 << exponent) - 1
    remainder, threshold = x & mask, (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


def multiplied(acc: int, m: int, shift: int, rounding: Rounding) -> int:
    """LiteRT's MultiplyByQuantizedMultiplier and ruy's; the others are one fraction, rounded."""
    if rounding not in (GEMMLOWP, RUY):
        return NEAREST[rounding.name](Fraction(acc * m, 2**shift))
    left, right = max(31 - shift, 0), max(shift - 31, 0)
    first = high_mul(acc << left, m)
    if rounding is GEMMLOWP:
        return divide_by_power_of_two(first, right)
    return (first + ((1 << right) >> 1)) >> right


def quantized_multiplier(real: Fraction) -> tuple[int, int]:
    """LiteRT's QuantizeMultiplier: 31 bits and a shift to the right by up to 62."""
    mantissa, exponent = math.frexp(float(real))
    m = away(Fraction(mantissa) * 2**31)
    return (m // 2, 30 - exponent) if m == 2**31 else (m, 31 - exponent)


def int64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


# ------------------------------------------------------------------------ real numbers


@relaxed
@example([0.0, -0.0, 1.0, -1.0, 0.5, 1 - 2.0**-53, 2.0**-1022, 1.7976931348623157e308])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)))
def test_exponents_are_those_of_frexp(numbers: list[float]):
    expected = [math.frexp(x)[1] for x in numbers]
    assert exponent_of(torch.tensor(numbers, dtype=torch.float64)).tolist() == expected


# ------------------------------------------------------------------------ integers


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [(HALF_UP, -1), (HALF_EVEN, -1), (HALF_AWAY, -1), (GEMMLOWP, -1), (RUY, 0)],
)
def test_by_hand(rounding: Rounding, expected: int):
    found = rounding.multiply(int64(-3), Rescale(int64(2**30), int64(32)))
    assert int(found) == multiplied(-3, 2**30, 32, rounding) == expected


TIES = [-5, -3, -1, 1, 3, 5]
TIES_ROUNDED = {  # halves of them
    "half_up": [-2, -1, 0, 1, 2, 3], "half_even": [-2, -2, 0, 0, 2, 2],
    "half_away": [-3, -2, -1, 1, 2, 3], "gemmlowp": [-2, -1, 0, 1, 2, 3],
    "ruy": [-2, -1, 0, 1, 2, 3], "fp32_rne": [-2, -2, 0, 0, 2, 2],
}


@every_rounding
def test_ties(rounding: Rounding):
    """A shift of 1 is the first rounding, and LiteRT's first is half-up; it divides half away."""
    ties, half = int64(TIES), torch.tensor([0.5], dtype=torch.float64)
    expected = TIES_ROUNDED[rounding.name]
    assert rounding.shift(ties, int64(1)).tolist() == expected
    assert rounding.multiply(ties, rounding.rescale(half)).tolist() == expected
    nearest = [NEAREST[rounding.name](Fraction(t, 2)) for t in TIES]
    assert rounding.divide(ties, int64(2)).tolist() == nearest
    real = [REAL[rounding.name](Fraction(t, 2)) for t in TIES]
    assert rounding.nearest(ties / 2).tolist() == real


@pytest.mark.parametrize("rounding", [r for r in ROUNDINGS if r is not FP32_RNE], ids=repr)
@relaxed
@given(acc=int32, m=multipliers, shift=st.integers(0, 62), sign=st.sampled_from([-1, 1]))
@example(-(2**31), 2**31 - 1, 62, 1)
@example(-3, 2**30, 32, 1)
def test_multiply(rounding: Rounding, acc: int, m: int, shift: int, sign: int):
    found = rounding.multiply(int64([acc]), Rescale(int64([sign * m]), int64([shift])))
    assert found.tolist() == [multiplied(acc, sign * m, shift, rounding)]


@pytest.mark.parametrize("rounding", [r for r in ROUNDINGS if r is not FP32_RNE], ids=repr)
@relaxed
@given(units=st.integers(-(2**19), 2**19), shift=st.integers(1, 12))
def test_forced_ties_of_a_shift(rounding: Rounding, units: int, shift: int):
    """Odd multiples of half a step. The second rounding meets the tie, the first where S is 31."""
    acc = (2 * units + 1) << (shift - 1)
    found = rounding.multiply(int64(acc), Rescale(int64(2**30), int64(30 + shift)))
    assert int(found) == multiplied(acc, 2**30, 30 + shift, rounding)


@every_rounding
@relaxed
@given(total=st.integers(-(2**60), 2**60), divisor=st.integers(1, 2**60))
@example(-3, 2)
@example(-1, 2)
def test_divide(rounding: Rounding, total: int, divisor: int):
    found = int(rounding.divide(int64(total), int64(divisor)))
    assert found == NEAREST[rounding.name](Fraction(total, divisor))


@every_rounding
@relaxed
@given(total=st.integers(-(2**20), 2**20), divisor=st.integers(1, 2**20))
def test_forced_ties_of_a_division(rounding: Rounding, total: int, divisor: int):
    found = rounding.divide(int64((2 * total + 1) * divisor), int64(2 * divisor))
    assert int(found) == NEAREST[rounding.name](Fraction(2 * total + 1, 2))


@every_rounding
@relaxed
@given(total=st.integers(-(2**60), 2**60), shift=st.integers(0, 60), tie=st.booleans())
def test_a_division_by_a_power_of_two_is_that_division(
    rounding: Rounding, total: int, shift: int, tie: bool
):
    if tie and shift:
        total = ((total >> shift) << shift) + (1 << (shift - 1))
    found = rounding.divide_shift(int64(total), int64(shift))
    assert int(found) == NEAREST[rounding.name](Fraction(total, 2**shift))


@every_rounding
@relaxed
@given(
    total=st.integers(-(2**20), 2**20), divisor=st.integers(1, 2**20),
    zero=st.integers(-(2**15), 2**15), tie=st.booleans(),
)
@example(-1, 2, 1, False)  # half a step above 0, which -1/2 alone is not
@example(1, 2, -1, False)
def test_what_is_added_before_a_division_decides_ties(
    rounding: Rounding, total: int, divisor: int, zero: int, tie: bool
):
    if tie:
        total, divisor = (2 * total + 1) * divisor, 2 * divisor
    found = rounding.divide(int64(total), int64(divisor), int64(zero))
    assert int(found) == NEAREST[rounding.name](zero + Fraction(total, divisor))


@every_rounding
@relaxed
@given(x=st.floats(-(2.0**20), 2.0**20, width=32))
@example(0.49999997)
@example(-0.49999997)
def test_real_numbers(rounding: Rounding, x: float):
    """Half-up is `floor(x + 0.5)`, a sum that float32 may round; the others round correctly."""
    for value in (x, math.floor(x) + 0.5):
        exact = Fraction(value)
        if rounding is HALF_UP:
            exact = Fraction(float(np.float32(value) + np.float32(0.5))) - Fraction(1, 2)
        found = float(rounding.nearest(torch.tensor(value, dtype=torch.float32)))
        assert found == REAL[rounding.name](exact)


@every_rounding
@relaxed
@given(scale=scales, zero=st.integers(0, 255), codes=st.lists(st.integers(0, 255)))
def test_what_a_code_stands_for_is_that_code_in_every_rounding(
    rounding: Rounding, scale: float, zero: int, codes: list[int]
):
    """So the sites of eval(), which quantize what is on the grid, need not know the rounding."""
    q = QParams(torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), UINT8)
    real = (torch.tensor(codes, dtype=torch.int32) - zero) * q.scale
    assert rounding.quantize(real, q).tolist() == quantize(real, q).tolist() == codes


# ------------------------------------------------------------------------ factors


@pytest.mark.parametrize("rounding", [GEMMLOWP, RUY], ids=repr)
@relaxed
@given(factor=st.floats(2.0**-31, 2.0**30))
def test_litert_keeps_31_bits_of_small_factors(rounding: Rounding, factor: float):
    multiplier, shift = rounding.rescale(torch.tensor([factor], dtype=torch.float64))
    assert (int(multiplier), int(shift)) == quantized_multiplier(Fraction(factor))


def float32_factor(*values: float) -> np.float32:
    """The product of all but the last over the last, rounded to float32 at every step."""
    above = np.float32(values[0])
    for value in values[1:-1]:
        above = np.float32(above * np.float32(value))
    return np.float32(above / np.float32(values[-1]))


@relaxed
@given(acc=int32, s_x=scales, s_w=scales, s_y=scales)
def test_fp32_rne_computes_in_float32_alone(acc: int, s_x: float, s_w: float, s_y: float):
    """onnxruntime and XNNPACK: `s_x·s_w/s_y`, then `rint(acc·factor)`, all float32."""
    q = QParams(torch.tensor(s_y), torch.tensor(0, dtype=torch.int32), UINT8)
    ends = torch.tensor(0), torch.tensor(255)
    found = Target(q, *ends, FP32_RNE).rescale(torch.tensor(s_x), torch.tensor(s_w))
    factor = float32_factor(s_x, s_w, s_y)
    assert found.multiplier.dtype is torch.float32
    assert float(found.multiplier) == factor
    assert int(found.shift) == 0
    expected = np.rint(np.float32(acc) * factor)
    assert int(FP32_RNE.multiply(int64(acc), found)) == min(max(int(expected), -(2**31)), 2**31)


def test_fp32_rne_saturates_with_factors_beyond_float32():
    rescale = FP32_RNE.rescale(torch.tensor([1e300, -1e300], dtype=torch.float64))
    assert torch.isfinite(rescale.multiplier).all()
    assert FP32_RNE.multiply(int64([1, 1]), rescale).tolist() == [2**31, -(2**31)]
    assert FP32_RNE.multiply(int64([0, 0]), rescale).tolist() == [0, 0]


@every_rounding
@relaxed
@given(acc=st.integers(-(2**24), 2**24), s_x=scales, s_y=scales)
def test_in_every_rounding_a_result_is_within_a_step(
    rounding: Rounding, acc: int, s_x: float, s_y: float
):
    """Half a step; a quarter more for the first of two roundings, and what float32 leaves out."""
    q = QParams(torch.tensor(s_y), torch.tensor(0, dtype=torch.int32), UINT8)
    target = Target(q, torch.tensor(0), torch.tensor(255), rounding)
    real = Fraction(acc) * Fraction(s_x) / Fraction(s_y)
    if abs(real) < 2**16:  # the distance of any two codes
        found = int(rounding.multiply(int64(acc), target.rescale(torch.tensor(s_x))))
        allowed = 0.75 if rounding in (GEMMLOWP, RUY) else 0.5
        assert abs(found - real) <= allowed + 2**-6


# ------------------------------------------------------------------------ sums


def litert_add(codes: list[int], zeros: list[int], factors: list[Fraction], left: int) -> int:
    """reference_ops::Add of LiteRT, from the ratios of the scales; more than two as if there were.

    Less the output's zero point, which is added behind the rounding.
    """
    unit = 2 ** math.ceil(math.log2(len(codes))) * max(map(abs, factors))
    total = 0
    for q, zero, factor in zip(codes, zeros, factors, strict=True):
        m, shift = quantized_multiplier(factor / unit)
        total += multiplied((q - zero) << left, m, shift, GEMMLOWP)
    m, shift = quantized_multiplier(unit / 2**left)
    return multiplied(total, m, shift, GEMMLOWP)


operands = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.floats(2.0**-8, 2.0**4)),
    min_size=2, max_size=8,
)


@pytest.mark.parametrize("rounding", [GEMMLOWP, RUY], ids=repr)
@relaxed
@given(rows=operands, z=st.integers(0, 255), signs=st.lists(st.booleans(), min_size=8, max_size=8))
def test_sums_as_litert_has_them(
    rounding: Rounding, rows: list[tuple[int, int, float]], z: int, signs: list[bool]
):
    codes, zeros, sizes = ([*column] for column in zip(*rows, strict=True))
    factors = [-f if minus else f for f, minus in zip(sizes, signs, strict=False)]
    rescale = rounding.rescale_terms(torch.tensor(factors, dtype=torch.float64), 8)
    found = rounding.add_up([int64(q) for q in codes], int64(zeros), rescale, int64(z))
    assert int(found) == z + litert_add(codes, zeros, [Fraction(f) for f in factors], 20)


@pytest.mark.parametrize("code", [-(2**15), 2**15 - 1])
def test_a_sum_of_16_bits_does_not_leave_64(code: int):
    factors, zeros = [1.0, 0.7], [2**15 - 1 if code < 0 else -(2**15)] * 2
    rescale = GEMMLOWP.rescale_terms(torch.tensor(factors, dtype=torch.float64), 16)
    found = GEMMLOWP.add_up([int64(code)] * 2, int64(zeros), rescale, int64(0))
    assert int(found) == litert_add([code] * 2, zeros, [Fraction(f) for f in factors], 15)


def float32_of(x: Fraction) -> np.float32:
    """The nearest float32, ties to even, from above and below."""
    near = np.float32(float(x))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda y: (abs(Fraction(float(y)) - x), y.view(np.int32) % 2))


@relaxed
@given(rows=operands, z=st.integers(0, 255))
def test_sums_as_onnxruntime_has_them(rows: list[tuple[int, int, float]], z: int):
    """`rint((z - Σ f·z_i) + Σ f·q_i)`, each step a fused multiply-add in float32, from the last."""
    codes, zeros, factors = ([*column] for column in zip(*rows, strict=True))
    rescale = FP32_RNE.rescale_terms(torch.tensor(factors, dtype=torch.float64), 8)
    found = FP32_RNE.add_up([int64(q) for q in codes], int64(zeros), rescale, int64(z))
    exact = [Fraction(float(np.float32(f))) for f in factors]
    fixed = total = Fraction(0)
    for zero, factor in [*zip(zeros, exact, strict=True)][::-1]:
        fixed = Fraction(float(float32_of(factor * zero + fixed)))
    total = Fraction(float(float32_of(z - fixed)))
    for q, factor in [*zip(codes, exact, strict=True)][::-1]:
        total = Fraction(float(float32_of(factor * q + total)))
    assert int(found) == even(total)


@one_rounding
@relaxed
@given(rows=operands, z=st.integers(0, 255))
def test_other_sums_round_once(rounding: Rounding, rows: list[tuple[int, int, float]], z: int):
    codes, zeros, factors = ([*column] for column in zip(*rows, strict=True))
    rescale = rounding.rescale_terms(torch.tensor(factors, dtype=torch.float64), 8)
    found = rounding.add_up([int64(q) for q in codes], int64(zeros), rescale, int64(z))
    centred = [q - zero for q, zero in zip(codes, zeros, strict=True)]
    total = sum(q * m for q, m in zip(centred, rescale.multiplier.tolist(), strict=True))
    assert int(found) == z + NEAREST[rounding.name](Fraction(total, 2 ** int(rescale.shift)))


# ------------------------------------------------------------------------ values


@every_rounding
def test_a_rounding_is_itself_in_copies_and_pickles(rounding: Rounding):
    assert copy.deepcopy(rounding) is rounding
    assert pickle.loads(pickle.dumps(rounding)) is rounding
    assert rounding_named(rounding.name) is rounding
    assert repr(rounding) == f"Rounding('{rounding.name}')"


def test_an_unknown_rounding_is_refused_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        QuantConfig(rounding="nearest")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "rounding is one of 'half_up', 'half_even', 'half_away', 'gemmlowp', 'ruy', 'fp32_rne'; "
        "got 'nearest'"
    )
