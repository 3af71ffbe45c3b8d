"""Integer arithmetic against Python's integers and fractions, which have no width to overflow."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant import QuantScheme
from fxquant.intmath import (
    LayerNumbers,
    Target,
    accumulator_bound,
    carrier,
    integer_root,
    layer_numbers,
    shift_by,
    sum_of_mean,
)
from fxquant.ops import op_named
from fxquant.rounding import (
    HALF_UP,
    Rescale,
    common_rescale,
    divide_half_up,
    rescale_of,
    shift_half_up,
    shift_half_up_,
)
from fxquant.schemes import INT8_WEIGHT, UINT8, Channels, QParams, weight_scale

# not imported: what is promised does not follow the code
MULTIPLIER_LIMIT = ACCUMULATOR_LIMIT = 2**31
BIAS_LIMIT = 2**30
FLOAT32_EXACT = 2**24
MAX_SHIFT = 44

relaxed = settings(deadline=None)
int32 = st.integers(-(2**31), 2**31 - 1)
multipliers = st.integers(-MULTIPLIER_LIMIT + 1, MULTIPLIER_LIMIT - 1)
shifts = st.integers(0, MAX_SHIFT)
factors = st.floats(allow_nan=False, allow_infinity=False)
usual_factors = st.floats(2.0**-14, 2.0**30)


def half_up(x: Fraction) -> int:
    """`floor(x + 1/2)`, in fractions."""
    return math.floor(x + Fraction(1, 2))


def as_fraction(rescale: Rescale, i: int = 0) -> Fraction:
    """`m · 2^-S` of one entry."""
    shift = int(rescale.shift.expand_as(rescale.multiplier)[i])
    return Fraction(int(rescale.multiplier[i]), 2**shift)


# ------------------------------------------------------------------------ multipliers


def nearest_dyadic_error(factor: Fraction) -> Fraction:
    """The least |m·2^-S - factor| over every m of 31 bits and every S up to 44."""
    top = MULTIPLIER_LIMIT - 1
    candidates = (
        Fraction(max(-top, min(top, half_up(factor * 2**shift))), 2**shift)
        for shift in range(MAX_SHIFT + 1)
    )
    return min(abs(candidate - factor) for candidate in candidates)


@relaxed
@given(factor=factors | usual_factors)
@example(0.0)
@example(1.0)
@example(-1.0)
@example(1.0 - 2.0**-33)  # rounds up to 2^31, hence to one bit less of shift
@example(2.0**-33 - 1.0)
@example(2.0**-13 * (1.0 - 2.0**-33))
@example(2.0**31 - 1)
@example(2.0**31)
@example(2.0**-44)
@example(2.0**-46)
@example(-1.7e308)
@example(5e-324)
def test_no_multiplier_and_shift_come_nearer(factor: float):
    rescale = rescale_of(torch.tensor([factor], dtype=torch.float64))
    multiplier, shift = int(rescale.multiplier), int(rescale.shift)
    assert abs(multiplier) < MULTIPLIER_LIMIT
    assert 0 <= shift <= MAX_SHIFT
    exact = Fraction(factor)
    assert abs(as_fraction(rescale) - exact) == nearest_dyadic_error(exact)


@relaxed
@given(factor=usual_factors, sign=st.sampled_from([-1, 1]))
def test_multipliers_have_31_bits(factor: float, sign: int):
    """Between 2^-14 and 2^31 the relative error is at most 2^-31."""
    rescale = rescale_of(torch.tensor([sign * factor], dtype=torch.float64))
    assert 2**30 <= abs(int(rescale.multiplier)) < 2**31
    exact = Fraction(sign * factor)
    assert abs(as_fraction(rescale) - exact) <= abs(exact) / 2**31


def test_multipliers_of_any_shape():
    """0.5 = 2^30 · 2^-31;  -3 = -3·2^29 · 2^-29;  2^40 is more than any multiplier."""
    rescale = rescale_of(torch.tensor([[0.5, -3.0], [0.0, 2.0**40]]))
    assert rescale.multiplier.tolist() == [[2**30, -3 * 2**29], [0, 2**31 - 1]]
    assert rescale.shift.tolist()[0] == [31, 29]
    assert rescale.shift[1, 1] == 0
    assert rescale.multiplier.dtype == rescale.shift.dtype == torch.int64


@relaxed
@given(
    values=st.lists(
        st.floats(allow_nan=False, allow_infinity=False).filter(bool) | usual_factors,
        min_size=2, max_size=20,
    )
)
def test_a_sum_of_rescaled_codes_fits_32_bits(values: list[float]):
    """`Σ 255·m_i + 2^(S-1) < 2^31`, the most that n codes of 9 bits and the rounding can make."""
    rescale = common_rescale(torch.tensor(values, dtype=torch.float64))
    shift = int(rescale.shift)
    assert rescale.shift.dim() == 0
    assert 0 <= shift <= 30
    assert all(int(m) * value >= 0 for m, value in zip(rescale.multiplier, values, strict=True))
    largest = 255 * int(rescale.multiplier.abs().sum())
    assert largest + (1 << shift >> 1) < ACCUMULATOR_LIMIT


@relaxed
@given(
    sizes=st.lists(st.floats(2.0**-9, 2.0**9), min_size=2, max_size=8), signs=st.integers(0, 255)
)
def test_common_multipliers_are_near(sizes: list[float], signs: int):
    """No error beyond half a unit of the last bit, 2^-18 of the largest factor for n <= 8."""
    values = [-size if signs >> i & 1 else size for i, size in enumerate(sizes)]
    rescale = common_rescale(torch.tensor(values, dtype=torch.float64))
    unit = Fraction(1, 2 ** int(rescale.shift))
    assert unit <= Fraction(max(sizes)) / 2**18
    for i, value in enumerate(values):
        # a full unit where the largest was rounded up to a power of two, and stays below it
        allowed = unit if abs(value) == max(sizes) else unit / 2
        assert abs(as_fraction(rescale, i) - Fraction(value)) <= allowed


@pytest.mark.parametrize(("operands", "bits"), [(2, 21), (3, 20), (5, 19), (8, 19), (9, 18)])
def test_bits_of_a_common_multiplier(operands: int, bits: int):
    """1 = 2^(bits-1) · 2^-(bits-1): as many bits as leave room for n products in 32."""
    rescale = common_rescale(torch.ones(operands, dtype=torch.float64))
    assert rescale.multiplier.tolist() == [2 ** (bits - 1)] * operands
    assert int(rescale.shift) == bits - 1
    assert rescale.multiplier.dtype == rescale.shift.dtype == torch.int64


# ------------------------------------------------------------------------ rounding


def requantized(acc: int, m: int, shift: int, zero: int, low: int, high: int) -> int:
    """`clamp(((acc·m + 2^(S-1)) >> S) + z)` as Python's integers have it."""
    return max(low, min(high, half_up(Fraction(acc * m, 2**shift)) + zero))


@relaxed
@given(
    accs=st.lists(int32, min_size=1, max_size=8), m=multipliers, shift=shifts,
    zero=st.integers(-128, 255), ends=st.tuples(st.integers(0, 255), st.integers(0, 255)),
)
@example([-(2**31)], 2**31 - 1, 0, 255, (0, 255))
@example([-(2**31), 2**31 - 1], -(2**31) + 1, 44, 0, (0, 255))
@example([-3, -1, 1, 3], 1, 1, 128, (0, 255))  # halves: -1.5 to -1, -0.5 to 0, 0.5 to 1, 1.5 to 2
def test_requantize(accs: list[int], m: int, shift: int, zero: int, ends: tuple[int, int]):
    low, high = sorted(ends)
    number = torch.tensor
    codes = HALF_UP.requantize(
        number(accs, dtype=torch.int64),
        Rescale(number(m), number(shift)),
        *(number(n, dtype=torch.int32) for n in (zero, low, high)),
        torch.uint8,
    )
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [requantized(acc, m, shift, zero, low, high) for acc in accs]


@relaxed
@given(acc=int32, m=st.integers(1, 2**31 - 1), shift=shifts)
def test_requantize_in_float64_is_the_same(acc: int, m: int, shift: int):
    """NUMERICS.md 2.1: up to S = 44 float64 evaluates the formula exactly too."""
    product = torch.tensor(float(acc), dtype=torch.float64) * math.ldexp(m, -shift)
    clamped = torch.clamp(torch.floor(product + 0.5), -255, 255)
    assert int(clamped) == requantized(acc, m, shift, 0, -255, 255)


@relaxed
@given(product=st.integers(-(2**62), 2**62), shift=shifts)
def test_shift_half_up(product: int, shift: int):
    shifted = shift_half_up(torch.tensor(product), torch.tensor(shift))
    assert int(shifted) == half_up(Fraction(product, 2**shift))
    memory = torch.tensor([product])
    assert shift_half_up_(memory, torch.tensor(shift)) is memory
    assert memory.tolist() == [int(shifted)]


@relaxed
@given(value=st.integers(-(2**62), 2**62), by=st.integers(-300, 300))
@example(-1, -64)  # a machine shifts by 64 as by 0
@example(-3, -1)  # floored: -1.5 to -2
def test_shift_by(value: int, by: int):
    value >>= max(by, 0)  # so that it stays inside int64
    shifted = shift_by(torch.tensor(value), torch.tensor(min(by, 62)))
    assert int(shifted) == math.floor(value * Fraction(2) ** min(by, 62))


roots = st.integers(0, 2**31)


@relaxed
@given(root=roots, more=st.integers(-2, 2), anything=st.integers(0, 2**62))
@example(2**31, 0, 2**62)
@example(2**31 - 1, -1, 2**62 - 1)  # in float64 this is 2^62
@example(94906267, -1, 3)  # beyond 2^53 a square less one has the square's root in float64
def test_integer_root(root: int, more: int, anything: int):
    values = [min(max(root**2 + more, 0), 2**62), anything]
    found = integer_root(torch.tensor(values))
    assert found.tolist() == [math.isqrt(value) for value in values]


@relaxed
@given(total=st.integers(-(2**40), 2**40), divisor=st.integers(1, 2**20))
@example(-3, 2)  # -1.5 to -1
@example(-1, 2)  # -0.5 to 0
@example(3, 2)  # 1.5 to 2
def test_divide_half_up(total: int, divisor: int):
    quotient = divide_half_up(torch.tensor(total), torch.tensor(divisor))
    assert int(quotient) == half_up(Fraction(total, divisor))


@relaxed
@given(
    count=st.tuples(st.integers(1, 99), st.integers(1, 99)),
    quotient=st.integers(-255, 255), late=st.booleans(),
)
@example((1, 23), 5, False)  # 104/23 · 23 is a little less than 104 in float64
@example((1, 23), -5, True)
def test_the_mean_of_two_axes_gives_the_sum_back(
    count: tuple[int, int], quotient: int, late: bool
):
    """Sums on either side of where the mean is rounded up; torch divides once per axis."""
    first, second = count
    n = first * second
    total = -(-(2 * quotient - 1) * n // 2)  # the least one that gives `quotient`
    mean = torch.tensor(float(total - late), dtype=torch.float64) / first / second
    count = torch.tensor(n)
    assert int(sum_of_mean(mean, count)) == total - late
    assert int(divide_half_up(sum_of_mean(mean, count), count)) == quotient - late


# ------------------------------------------------------------------------ bounds


class Layer(NamedTuple):
    """Integer weights [C, I] and the zero point of what they multiply."""

    rows: list[list[int]]
    zero: int
    scheme: QuantScheme

    @property
    def x(self) -> QParams:
        zero = torch.tensor(self.zero, dtype=torch.int32)
        return QParams(torch.tensor(1.0), zero, self.scheme)

    def bound(self) -> list[int]:
        return accumulator_bound(torch.tensor(self.rows).float(), Channels(), self.x).tolist()


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    signed = draw(st.booleans())
    scheme = QuantScheme(bits=draw(st.integers(2, 8)), signed=signed, symmetric=False)
    fan_in = draw(st.integers(1, 6))
    row = st.lists(st.integers(-127, 127), min_size=fan_in, max_size=fan_in)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    return Layer(rows, draw(st.integers(scheme.qmin, scheme.qmax)), scheme)


@relaxed
@given(layer=layers(), data=st.data())
def test_no_partial_sum_exceeds_the_bound(layer: Layer, data: st.DataObject):
    """Any codes, any order of summation, any terms left out: padding is such a term."""
    codes = st.integers(layer.scheme.qmin, layer.scheme.qmax)
    for row, bound in zip(layer.rows, layer.bound(), strict=True):
        products = [w * (data.draw(codes) - layer.zero) for w in row]
        order = data.draw(st.permutations(products))
        assert all(abs(sum(order[:i])) <= bound for i in range(len(order) + 1))


@relaxed
@given(layer=layers())
def test_some_input_reaches_the_bound(layer: Layer):
    """The codes that make each product largest, or each one smallest."""
    ends = (layer.scheme.qmin - layer.zero, layer.scheme.qmax - layer.zero)
    for row, bound in zip(layer.rows, layer.bound(), strict=True):
        top = sum(max(w * d for d in ends) for w in row)
        bottom = sum(min(w * d for d in ends) for w in row)
        assert bound == max(top, -bottom)


def test_the_bound_follows_the_axis_of_the_output_channels():
    """Rows of 1 and 10 twice over: 255·2 and 255·20; columns: 255·11 each."""
    codes = torch.tensor([[1.0, 1.0], [10.0, 10.0]])
    x = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), UINT8)
    assert accumulator_bound(codes, Channels(), x).tolist() == [510, 5100]
    assert accumulator_bound(codes, Channels(1), x).tolist() == [2805, 2805]


# ------------------------------------------------------------------------ a layer's numbers


def qparams(scale: float, zero: int, scheme: QuantScheme = UINT8) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), scheme)


def target(scale: float, zero: int = 0) -> Target:
    ends = (torch.tensor(end, dtype=torch.int32) for end in (0, 255))
    return Target(qparams(scale, zero), *ends)


def numbers_of(
    weight: Tensor, bias: Tensor | None, s_x: float, s_y: float, scheme: QuantScheme = INT8_WEIGHT
) -> LayerNumbers:
    scale = weight_scale(weight, scheme, Channels())
    return layer_numbers(weight, bias, scale, scheme, Channels(), qparams(s_x, 3), target(s_y))


scales = st.floats(2.0**-12, 2.0**4, width=32)
weights = st.one_of(
    st.just(0.0), st.floats(-4, 4, width=32), st.floats(-(2.0**-20), 2.0**-20, width=32)
)
biases = st.one_of(st.just(0.0), st.floats(-100, 100, width=32))
SCHEMES = (
    INT8_WEIGHT,
    QuantScheme(bits=4, narrow=True, per_channel=True),
    QuantScheme(narrow=True),
)


@relaxed
@given(
    rows=st.lists(st.tuples(weights, weights, weights, biases), min_size=1, max_size=4),
    s_x=scales, s_y=scales, scheme=st.sampled_from(SCHEMES),
)
@example([(0.0, 0.0, 0.0, 50.0)], 0.5, 1e-4, INT8_WEIGHT)  # a dead channel is its bias
@example([(1e-30, -1e-30, 0.0, 1.0)], 0.01, 1e-6, INT8_WEIGHT)  # the bias would not fit
@example([(0.0, 0.0, 0.0, 0.0)], 1.0, 1.0, INT8_WEIGHT)
def test_a_layers_integers_stand_for_its_real_numbers(
    rows: list[tuple[float, ...]], s_x: float, s_y: float, scheme: QuantScheme
):
    """With u = m·2^-S·s_y, what one unit of the accumulator stands for in each channel:

        |w - w_q·u/s_x| <= u/s_x / 2        |b - b_q·u| <= u/2        |b_q| <= 2^30

    and u is what `max|w|` asks for, or what the bias asks for where that is more. Scales are
    float32, so all of it holds but for a relative 2^-24, of the largest code or of the bias.
    """
    table = torch.tensor(rows)
    weight, bias = table[:, :3], table[:, 3]
    n = numbers_of(weight, bias, s_x, s_y, scheme)
    largest = weight.abs().amax(1) if scheme.per_channel else weight.abs().max().expand(len(rows))
    for c in range(len(rows)):
        codes, b_q = n.weight[c].tolist(), int(n.bias[c])
        assert all(scheme.qmin <= code <= scheme.qmax for code in codes)
        assert abs(b_q) <= BIAS_LIMIT
        needed = max(float(largest[c]) / scheme.qmax * s_x, abs(float(bias[c])) / BIAS_LIMIT)
        if needed < s_y * 2.0**-13:  # fewer than 31 bits are left for the multiplier
            continue
        unit = Fraction(int(n.multiplier[c]), 2 ** int(n.shift[c])) * Fraction(s_y)
        assert abs(unit - Fraction(needed)) <= Fraction(needed) / 2**22
        slack = Fraction(1, 2) + Fraction(scheme.qmax, 2**22)
        for w, code in zip(weight[c].tolist(), codes, strict=True):
            assert abs(Fraction(w) * Fraction(s_x) - code * unit) <= slack * unit
        b = Fraction(float(bias[c]))
        assert abs(b - b_q * unit) <= unit / 2 + abs(b) / 2**23


@relaxed
@given(
    weight=st.floats(-1, 1, width=32), bias=st.floats(-(2.0**100), 2.0**100, width=32),
    s_x=st.floats(2.0**-126, 2.0**60, width=32), s_y=st.floats(2.0**-126, 2.0**60, width=32),
)
def test_a_layers_numbers_are_in_range_whatever_its_scales(
    weight: float, bias: float, s_x: float, s_y: float
):
    n = numbers_of(torch.tensor([[weight]]), torch.tensor([bias]), s_x, s_y)
    assert abs(int(n.bias)) <= BIAS_LIMIT
    assert 0 <= int(n.multiplier) < MULTIPLIER_LIMIT
    assert 0 <= int(n.shift) <= MAX_SHIFT
    assert int(n.bound) + abs(int(n.bias)) < ACCUMULATOR_LIMIT


def test_a_bias_that_does_not_fit_enlarges_the_scale_of_its_channel():
    """All weights are 2^-20. At s_x = 1 and s_w = 2^-20/127 a bias of ±2^10 would be ±127·2^30.

    Its channel gets s_w = 2^10/2^30 = 2^-20, so b_q = ±2^30 and w_q = 1; the last keeps 127.
    """
    weight = torch.full((3, 1), 2.0**-20)
    n = numbers_of(weight, torch.tensor([2.0**10, -(2.0**10), 0.0]), 1.0, 1.0)
    assert n.bias.tolist() == [2**30, -(2**30), 0]
    assert n.weight.flatten().tolist() == [1, 1, 127]


def test_a_bias_beyond_every_scale_saturates():
    """At s_x = 2^-126 even the largest s_w, 2^128, makes units of 4; the bias has 2^100."""
    n = numbers_of(torch.zeros(2, 1), torch.tensor([2.0**100, -(2.0**100)]), 2.0**-126, 1.0)
    assert n.bias.tolist() == [2**30, -(2**30)]


def test_weights_beyond_what_their_scale_can_say_are_clipped():
    """±1 at s_w = 1/256 would be ±256."""
    weight, scale = torch.tensor([[1.0, -1.0, 0.25]]), torch.tensor([1 / 256])
    n = layer_numbers(weight, None, scale, INT8_WEIGHT, Channels(), qparams(1.0, 0), target(1.0))
    assert n.weight.tolist() == [[127, -127, 64]]


def test_a_layer_without_bias():
    n = numbers_of(torch.eye(2), None, 0.5, 0.5)
    assert n.bias.tolist() == [0, 0]
    assert n.weight.tolist() == [[127, 0], [0, 127]]
    assert n.weight.dtype == torch.int8
    assert n.bias.dtype == torch.int32
    assert n.bound.dtype == n.multiplier.dtype == n.shift.dtype == torch.int64


def test_scales_lie_along_the_output_channels():
    """Depthwise [2, 1, 1, 2]: channels of 1 and 100 both use all their codes."""
    weight = torch.tensor([[[[1.0, -0.5]]], [[[100.0, -50.0]]]])
    n = numbers_of(weight, None, 1.0, 1.0)
    assert n.weight.flatten().tolist() == [127, -63, 127, -63]  # -63.5 rounds up
    assert n.bound.tolist() == [127 * 252 + 63 * 3] * 2  # zero point 3: d from -3 to 252
    assert int(n.multiplier[0]) < int(n.multiplier[1]) or int(n.shift[0]) > int(n.shift[1])


# ------------------------------------------------------------------------ carriers


@pytest.mark.parametrize(
    ("bound", "kind"),
    [
        ([1, FLOAT32_EXACT - 1], torch.float32),
        ([1, FLOAT32_EXACT], torch.float64),
        ([2**30, 5], torch.float64),
    ],
)
def test_the_carrier_follows_the_bound(bound: list[int], kind: torch.dtype):
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        kind = torch.float64
    assert carrier(torch.tensor(bound)) is kind


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of the switch itself
def test_without_onednn_sums_are_carried_in_float64():
    """NNPACK would take over, whose Winograd and FFT kernels are not plain sums."""
    with torch.backends.mkldnn.flags(enabled=False):
        assert carrier(torch.tensor([1])) is torch.float64


def exact_layer(rows: list[list[int]], biases: list[int], zero: int) -> LayerNumbers:
    """A layer that shows its accumulators: y = clamp(acc + b), nothing is rescaled."""
    weight = torch.tensor(rows, dtype=torch.int8)
    codes = [torch.tensor(n, dtype=torch.int32) for n in (zero, 0, 0, 255)]
    x_zero, y_zero, low, high = codes
    ones = torch.ones(len(rows), dtype=torch.int64)
    return LayerNumbers(
        weight=weight,
        bias=torch.tensor(biases, dtype=torch.int32),
        bound=accumulator_bound(weight.float(), Channels(), qparams(1.0, zero)),
        multiplier=ones,
        shift=0 * ones,
        x_zero=x_zero,
        y_zero=y_zero,
        low=low,
        high=high,
        rounding=HALF_UP,
    )


# 255·(518·127 + 7) = 2^24 - 1: the largest sum that the certificate lets into float32
LARGEST_ROW = [127] * 518 + [7]


def layer_outputs(n: LayerNumbers, codes: Tensor, kernel: str) -> Tensor:
    """[B, I] through a layer of [C, I], as a linear layer or as convolutions of two shapes."""
    settings: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if kernel == "linear":
        return op_named("linear").kernel(n, torch.uint8, codes)
    size = (1, 1) if kernel == "1x1" else (1, codes.shape[1])
    channels = codes.shape[1] // math.prod(size)
    n = n._replace(weight=n.weight.reshape(-1, channels, *size))
    x = codes.reshape(-1, channels, *size)
    return op_named("conv2d").kernel(n, torch.uint8, x, **settings).flatten(1)


@pytest.mark.parametrize("kernel", ["linear", "1x1", "1xI"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), extra=st.integers(0, 3000), batch=st.integers(1, 20))
def test_sums_are_exact_up_to_the_certificate(kernel: str, seed: int, extra: int, batch: int):
    """Weights whose sum reaches 2^24 - 1, in any order, either sign, among zeros.

    The bias takes the sum back to 100, so that an error of one unit shows; codes one below the
    largest make neighbouring sums.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(LARGEST_ROW) + extra, generator=generator)
    row = torch.tensor(LARGEST_ROW + [0] * extra)[order]
    n = exact_layer([row.tolist(), (-row).tolist()], [101 - 2**24, 99 + 2**24], zero=0)
    assert n.bound.tolist() == [FLOAT32_EXACT - 1] * 2
    codes = torch.full((batch, len(row)), 255, dtype=torch.uint8)
    which = (row == 7).nonzero().flatten()
    codes[: batch // 2, which] -= 1
    acc = codes.long() @ row
    expected = torch.stack([acc + 101 - 2**24, 99 + 2**24 - acc], 1).clamp(0, 255)
    assert expected[-1].tolist() == [100, 100]
    assert torch.equal(layer_outputs(n, codes, kernel).long(), expected)


@pytest.mark.parametrize("kernel", ["linear", "1x1", "1xI"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), zero=st.integers(0, 255), fan_in=st.integers(1, 6000))
def test_sums_are_exact_for_random_weights(kernel: str, seed: int, zero: int, fan_in: int):
    """On either side of the certificate; the bias takes the first sample's sum to 128."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-127, 128, (3, fan_in), generator=generator)
    rows[0] = rows[0].abs()
    codes = torch.randint(0, 256, (4, fan_in), generator=generator)
    codes[0] = torch.where(rows[0] > 0, 255, 0)
    codes[2:] = codes[0]
    codes[3, 0] = 254
    acc = (codes - zero) @ rows.T
    assume(bool((acc[0].abs() < BIAS_LIMIT).all()))
    n = exact_layer(rows.tolist(), (128 - acc[0]).tolist(), zero)
    expected = (acc + 128 - acc[0]).clamp(0, 255)
    assert torch.equal(layer_outputs(n, codes.to(torch.uint8), kernel).long(), expected)


def test_terms_that_cancel_need_the_wider_carrier():
    """20,000 products of 127·q up, as many down, and 1·77: float32 would round on the way."""
    row = [127] * 20_000 + [-127] * 20_000 + [1]
    n = exact_layer([row] * 4, [0] * 4, zero=0)
    codes = torch.randint(0, 256, (16, 20_000), generator=torch.Generator().manual_seed(0))
    codes = torch.cat([codes, codes, torch.full((16, 1), 77)], 1).to(torch.uint8)
    for kernel in ("linear", "1x1", "1xI"):
        assert layer_outputs(n, codes, kernel).unique().tolist() == [77]
