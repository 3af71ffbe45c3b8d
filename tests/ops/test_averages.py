"""Means and sums by hand, against exact fractions, and the most that 64 bits hold.

Codes 7, 8 and 12 around 5 are 2 + 3 + 7 = 12 steps of 1/2: their mean is 2, their sum 6, which are
8 and 24 steps of 1/4.
"""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import AccumulatorError
from fxquant.rounding import ROUNDINGS
from fxquant.schemes import INT16
from tests.ops.calls import integers, qparams


@pytest.mark.parametrize(("name", "code"), [("mean", 18), ("sum", 34)])
def test_by_hand(name, code):
    codes = torch.tensor([7, 8, 12], dtype=torch.uint8)
    y = integers(name, (qparams(0.5, 5),), qparams(0.25, 10), codes, dim=0, keepdim=False)
    assert int(y) == code


@pytest.mark.parametrize("rounding", [rounding.name for rounding in ROUNDINGS])
def test_the_mean_of_nothing_is_0(rounding):
    """As what is divided by zero elsewhere, where torch has NaN."""

    class Net(nn.Module):
        def forward(self, x):
            return torch.relu(x).mean(0)

    prepared = fxquant.prepare_qat(Net(), config=fxquant.QuantConfig(rounding=rounding))
    prepared(torch.randn(3, 4))
    quantized, nothing = fxquant.convert(prepared), torch.zeros(0, 4)
    assert torch.equal(quantized(nothing), torch.zeros(4))
    assert torch.equal(prepared.eval()(nothing), torch.zeros(4))


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("scheme", [fxquant.QuantConfig().activation, INT16])
def test_the_longest_sums_are_exact(scheme, divided):
    """2^21 of the codes farthest from a zero point at one end, at scales that need all bits."""
    count = 2**21
    x = qparams(0.001, scheme.qmin, scheme)
    y = qparams(0.9 * 0.001 * (1 if divided else count), scheme.qmin, scheme)
    codes = torch.full((count,), scheme.qmax - 3, dtype=scheme.dtype)
    code = integers("mean" if divided else "sum", (x,), y, codes, dim=0, keepdim=False)
    top = scheme.qmax - 3 - scheme.qmin
    ratio = Fraction(float(x.scale)) / Fraction(float(y.scale)) * (1 if divided else count)
    real = scheme.qmin + Fraction(top) * ratio
    assert int(code) == min(scheme.qmax, (2 * real + 1) // 2)


@pytest.mark.parametrize(
    "call", [lambda x: F.adaptive_avg_pool1d(x, 1), lambda x: x.mean(-1), lambda x: x.sum(-1)]
)
def test_longer_ones_are_refused(call):
    class Net(nn.Module):
        def forward(self, x):
            return call(x)

    prepared = fxquant.prepare_qat(Net())
    prepared.train()(torch.randn(1, 3))
    with pytest.raises(AccumulatorError, match="a sum of 20971.. values may leave 64 bits"):
        prepared.eval()(torch.zeros(1, 2**21 + 1))
