"""The division of an average in float64, which ONNX files have: it is that of integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.forms.onnx import OnnxCall, OnnxGraph, Value
from fxquant.ops.average import AverageNumbers, quotient, quotient_type
from fxquant.rounding import FP32_RNE, GEMMLOWP, HALF_AWAY, HALF_EVEN, HALF_UP, Rounding

BYTE = Value(OnnxGraph(), "x", torch.uint8)


def call_of(multiplier: int, shift: int, rounding: Rounding) -> OnnxCall:
    rest = (torch.tensor(0) for _ in range(4))
    n = AverageNumbers(torch.tensor(multiplier), torch.tensor(shift), *rest, rounding)
    return OnnxCall(BYTE.graph, n, torch.uint8, (BYTE,), {}, (), None, ())


@pytest.mark.parametrize("zero", [0, 117])
@pytest.mark.parametrize("rounding", [HALF_UP, HALF_EVEN, HALF_AWAY, FP32_RNE])
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 4096), multiplier=st.integers(1, 2**31 - 1), less=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_it_is_that_of_integers(rounding, zero, count, multiplier, less, seed):
    """Sums whose quotients are ties, or as near to one as can be, and any; with divisors up to the
    longest for which it is taken.
    """
    shift = 41 - math.ceil(math.log2(count)) - less
    call, divisor = call_of(multiplier, shift, rounding), torch.tensor(count)
    assert quotient_type(call, count, divisor) is torch.float64
    most = count << 8
    ties = (2 * torch.arange(-300, 300) + 1) * (count << shift) // (2 * multiplier)
    any_ = torch.randint(-most, most, (600,), generator=torch.Generator().manual_seed(seed))
    total = torch.cat([ties - 1, ties, ties + 1, any_]).clamp(-most, most)
    found = quotient(call, total.double(), count, divisor, torch.tensor(zero))
    exact = rounding.divide(total * multiplier, divisor << shift, zero)
    assert torch.equal(found.clamp(0, 255).long(), exact.clamp(0, 255))


@pytest.mark.parametrize(("count", "shift", "rounding"), [
    (1, 42, HALF_UP), (2049, 30, HALF_EVEN), (1, 20, GEMMLOWP),
])
def test_where_it_is_not_taken(count, shift, rounding):
    """A divisor that is too long; a rounding whose quotients are not those of real numbers."""
    call = call_of(1, shift, rounding)
    assert quotient_type(call, count, torch.tensor(count)) is torch.int64
