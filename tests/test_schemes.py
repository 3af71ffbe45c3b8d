"""Ranges, scales, zero points and rounding, over all of float32."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant import QuantScheme
from fxquant.errors import ConfigError
from fxquant.schemes import (
    INT8_WEIGHT,
    INT16,
    SMALLEST_SCALE,
    UINT8,
    Channels,
    QParams,
    code_of,
    dequantize,
    quantize,
    range_to_numbers,
    range_to_qparams,
    round_half_up,
    weight_scale,
)

LARGEST = float(torch.finfo(torch.float32).max)
DENORMAL = 2.0**-149

relaxed = settings(deadline=None)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
usual = st.floats(-100, 100, width=32)


@st.composite
def schemes(draw: st.DrawFn) -> QuantScheme:
    """Every scheme that an activation may have."""
    signed = draw(st.booleans())
    return QuantScheme(
        bits=draw(st.integers(2, 8)),
        signed=signed,
        symmetric=signed and draw(st.booleans()),
        narrow=signed and draw(st.booleans()),
    )


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    """Low and high: denormal, huge, one-sided, a single point."""
    low, high = sorted(draw(st.tuples(finite | usual, finite | usual)))
    return low, high


def parameters(ends: tuple[float, float], scheme: QuantScheme) -> QParams:
    return range_to_qparams(torch.tensor(ends[0]), torch.tensor(ends[1]), scheme)


def all_codes(scheme: QuantScheme) -> Tensor:
    return torch.arange(scheme.qmin, scheme.qmax + 1).to(scheme.dtype)


# ------------------------------------------------------------------------ schemes


@given(scheme=schemes())
def test_a_scheme_has_two_to_the_bits_codes(scheme: QuantScheme):
    assert scheme.qmax - scheme.qmin + 1 == 2**scheme.bits - scheme.narrow
    assert scheme.qmin <= 0 <= scheme.qmax
    assert torch.iinfo(scheme.dtype).min <= scheme.qmin
    assert scheme.qmax <= torch.iinfo(scheme.dtype).max


@given(bits=st.integers(2, 8))
def test_a_narrow_range_holds_the_negative_of_every_code(bits: int):
    scheme = QuantScheme(bits=bits, narrow=True)
    assert scheme.qmin == -scheme.qmax


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "1 to 16 bits, got bits=0"),
        ({"bits": 1, "signed": False, "symmetric": False}, "1 bit is the sign of a weight"),
        ({"bits": 17}, "1 to 16 bits, got bits=17"),
        ({"bits": 9, "signed": False, "symmetric": False}, "more than 8 bits need signed"),
        ({"narrow": True, "signed": False}, "narrow range needs signed"),
        ({"symmetric": True, "signed": False}, "symmetric scheme needs signed"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(options: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        QuantScheme(**options)


def test_a_scheme_is_a_value():
    assert dataclasses.replace(UINT8) == UINT8 == QuantScheme(signed=False, symmetric=False)
    assert [str(UINT8), str(INT8_WEIGHT)] == ["uint8", "int8/channel"]


# ------------------------------------------------------------------------ ranges


@relaxed
@given(ends=ranges(), scheme=schemes())
@example((0.0, 0.0), UINT8)
@example((-LARGEST, LARGEST), UINT8)
@example((-LARGEST, LARGEST), INT8_WEIGHT)
@example((0.0, DENORMAL), UINT8)
@example((-DENORMAL, 0.0), UINT8)
@example((-DENORMAL, LARGEST), QuantScheme(symmetric=False))
@example((5.0, 7.0), UINT8)
@example((-7.0, -5.0), UINT8)
def test_scales_are_positive_and_finite_and_zero_is_exact(
    ends: tuple[float, float], scheme: QuantScheme
):
    q = parameters(ends, scheme)
    assert q.scale.dtype == torch.float32
    assert q.zero_point.dtype == torch.int32
    assert SMALLEST_SCALE <= float(q.scale) <= LARGEST
    assert math.isfinite(1.0 / float(q.scale))
    assert scheme.qmin <= int(q.zero_point) <= scheme.qmax
    assert not scheme.symmetric or int(q.zero_point) == 0
    zero = torch.zeros(1)
    assert int(quantize(zero, q)) == int(q.zero_point) == int(code_of(0.0, q))
    assert torch.equal(dequantize(quantize(zero, q), q), zero)


def test_a_range_that_is_only_0_has_scale_1():
    for scheme in (UINT8, INT8_WEIGHT, QuantScheme(symmetric=False)):
        assert float(parameters((0.0, 0.0), scheme).scale) == 1.0


def test_a_range_by_hand():
    """[-1, 4] over 255 steps: s = 5/255, z = round(255/5) = 51; -4 … 4 symmetric: s = 4/127."""
    q = parameters((-1.0, 4.0), UINT8)
    assert float(q.scale) == pytest.approx(5 / 255)
    assert int(q.zero_point) == 51
    assert quantize(torch.tensor([-2.0, -1.0, 0.0, 4.0, 5.0]), q).tolist() == [0, 0, 51, 255, 255]
    symmetric = parameters((-1.0, 4.0), INT8_WEIGHT)
    assert float(symmetric.scale) == pytest.approx(4 / 127)
    assert quantize(torch.tensor([-4.0, -9.0, 4.0]), symmetric).tolist() == [-127, -127, 127]


@relaxed
@given(
    ends=st.lists(st.tuples(usual, usual).map(sorted), min_size=1, max_size=5), scheme=schemes()
)
def test_each_channel_has_the_parameters_of_its_own_range(
    ends: list[list[float]], scheme: QuantScheme
):
    low, high = torch.tensor(ends).unbind(1)
    together = range_to_qparams(low, high, scheme)
    for i, (a, b) in enumerate(ends):
        alone = parameters((a, b), scheme)
        assert torch.equal(together.scale[i], alone.scale)
        assert torch.equal(together.zero_point[i], alone.zero_point)


# ------------------------------------------------------------------------ rounding


@relaxed
@given(ends=ranges(), scheme=schemes())
@example((-LARGEST, LARGEST), UINT8)
@example((0.0, DENORMAL), UINT8)
def test_every_code_survives_the_way_to_reals_and_back(
    ends: tuple[float, float], scheme: QuantScheme
):
    q = parameters(ends, scheme)
    codes = all_codes(scheme)
    assert torch.equal(quantize(dequantize(codes, q), q), codes)


@relaxed
@given(ends=ranges(), scheme=schemes(), at=st.lists(st.floats(0, 1), min_size=1, max_size=20))
@example((-0.5, 254.5), UINT8, [0.0, 1.0])  # the zero point itself is rounded up
@example((-LARGEST, LARGEST), UINT8, [0.0, 0.5, 1.0])
@example((0.0, DENORMAL), UINT8, [1.0])
def test_inside_of_its_range_a_number_moves_by_half_a_step(
    ends: tuple[float, float], scheme: QuantScheme, at: list[float]
):
    """|x - dequantize(quantize(x))| <= s/2, but for the float32 rounding of x/s and of its range.

    In float64: at the ends of float32 a code may stand for more than float32 can hold.
    """
    q = parameters(ends, scheme)
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    x = torch.tensor([low + t * (high - low) for t in at], dtype=torch.float64).float()
    moved = (quantize(x, q).double() - q.zero_point) * q.scale.double() - x.double()
    assert float(moved.abs().max()) <= float(q.scale) * (0.5 + 2**-14)


@given(x=st.floats(-(2.0**20), 2.0**20, width=32))
@example(0.5)
@example(-0.5)
@example(-1.5)
@example(2.5)
def test_halves_are_rounded_up(x: float):
    """`floor(x + 1/2)`: 0.5 to 1, -0.5 to 0, -1.5 to -1, 2.5 to 3."""
    exact = torch.tensor(x, dtype=torch.float64)
    assert float(round_half_up(exact)) == math.floor(x + 0.5)


def test_one_rounding_for_all():
    q = QParams(torch.tensor(2.0), torch.tensor(10, dtype=torch.int32), UINT8)
    halves = torch.tensor([-3.0, -1.0, 1.0, 3.0, 5.0])
    assert quantize(halves, q).tolist() == [9, 10, 11, 12, 13]
    assert [int(code_of(x, q)) for x in halves.tolist()] == [9, 10, 11, 12, 13]


def test_float64_is_read_as_float32():
    """0.5 - 2^-30 is a half in float32, and rounded up; every scale is float32."""
    half = torch.tensor([[0.5 - 2.0**-30]], dtype=torch.float64)
    q = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), UINT8)
    assert quantize(half, q).tolist() == [[1]]
    for low, high in ((-half, half), (-half, half.float()), (-half.float(), half)):
        assert range_to_qparams(low, high, UINT8).scale.dtype == torch.float32
    assert weight_scale(half, INT8_WEIGHT, Channels()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_stand_for_numbers_of_the_scales_dtype(dtype: torch.dtype):
    """(7 - 10)·0.1, to the last bit of its dtype."""
    scale = torch.tensor(0.1, dtype=dtype)
    q = QParams(scale, torch.tensor(10, dtype=torch.int32), UINT8)
    assert torch.equal(dequantize(torch.tensor([7], dtype=torch.uint8), q), -3 * scale[None])


@relaxed
@given(value=finite, ends=ranges(), scheme=schemes())
def test_the_code_of_a_number_is_the_one_it_is_quantized_to(
    value: float, ends: tuple[float, float], scheme: QuantScheme
):
    q = parameters(ends, scheme)
    assert int(code_of(value, q)) == int(quantize(torch.tensor(value), q))


# ------------------------------------------------------------------------ weights


@relaxed
@given(
    rows=st.lists(st.lists(usual, min_size=3, max_size=3), min_size=1, max_size=4),
    bits=st.integers(2, 8), narrow=st.booleans(), per_channel=st.booleans(),
    axis=st.integers(0, 1),
)
def test_no_weight_is_clipped(
    rows: list[list[float]], bits: int, narrow: bool, per_channel: bool, axis: int
):
    """The largest weight of a channel, or of all of them, gets the highest code or its negative."""
    scheme = QuantScheme(bits=bits, narrow=narrow, per_channel=per_channel)
    channels = torch.tensor(rows)
    weight = channels if axis == 0 else channels.T
    scale = weight_scale(weight, scheme, Channels(axis))
    assert scale.shape == (len(rows),)
    assert bool((scale >= SMALLEST_SCALE).all())
    codes = round_half_up(channels / scale[:, None])
    assert int(codes.abs().max()) <= scheme.qmax
    for group, size in zip(codes, scale, strict=True) if per_channel else [(codes, scale[0])]:
        # weights beyond the smallest scale have codes to spare
        assert int(group.abs().max()) == scheme.qmax or float(size) == SMALLEST_SCALE
    assert per_channel or len(scale.unique()) == 1


def test_weight_scales_by_hand():
    """Rows up to 2 and 8: 2/127 and 8/127; columns up to 8 and 4; all of it: 8/127."""
    weight = torch.tensor([[1.0, -2.0], [-8.0, 4.0]])
    rows, columns = Channels(), Channels(1)
    assert weight_scale(weight, INT8_WEIGHT, rows).tolist() == pytest.approx([2 / 127, 8 / 127])
    assert weight_scale(weight, INT8_WEIGHT, columns).tolist() == pytest.approx([8 / 127, 4 / 127])
    assert weight_scale(weight, QuantScheme(), Channels()).tolist() == pytest.approx([8 / 127] * 2)
    assert weight_scale(torch.zeros(1, 4), INT8_WEIGHT, Channels()).tolist() == [SMALLEST_SCALE]


@given(
    st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-(2.0**127), 2.0**127, width=32),
    st.sampled_from([UINT8, INT16, QuantScheme(bits=4), QuantScheme(bits=2, symmetric=False)]),
)
@example(0.0, 0.0, UINT8)
@example(-1e-45, 1e-45, QuantScheme(bits=8))
def test_numbers_are_those_of_the_tensors(one, other, scheme):
    low, high = min(one, other), max(one, other)
    q = range_to_qparams(torch.tensor(low), torch.tensor(high), scheme)
    assert range_to_numbers(low, high, scheme) == (q.scale.item(), q.zero_point.item())
