"""scale_by_parameters: products with what parameters decide go into multipliers.

By hand, x = 2 steps of 0.5 from its zero point, factors 3 and -0.25, s_y = 0.25:

    (2·0.5)·3/0.25 = 12        (2·0.5)·-0.25/0.25 = -1
"""

import copy

import pytest
import torch
from torch import nn

import fxquant
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, JoinAdds, JoinProducts, ScaleByParameters, WeighTerms
from tests import laws
from tests.ops.calls import integers, qparams
from tests.passes.shapes import shape

X = torch.randn(2, 4, 5, 5)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.gain, self.number = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.function(self, x)


def scale(function):
    net = Net(function)
    gm = trace(copy.deepcopy(net), (X,))
    for step in (Canonicalize(), WeighTerms(), JoinAdds(), JoinProducts(), ScaleByParameters()):
        step.run(gm)
    laws.assert_close(gm(X), net(X))
    return gm


def test_by_hand():
    codes, factors = torch.tensor([130], dtype=torch.uint8), torch.tensor([3.0, -0.25])
    found = integers("scale", (qparams(0.5, 128),), qparams(0.25, 100), codes, factors=factors)
    assert found.tolist() == [112, 99]


@pytest.mark.parametrize(
    ("function", "after"),
    [
        (lambda m, x: m.gain * x, "scale"),
        (lambda m, x: x * m.gain.exp().clamp(max=2.0), "scale"),
        (lambda m, x: x + x * m.gain, "scale add"),
        (lambda m, x: torch.relu(x * m.gain), "scale relu"),
        (lambda m, x: x * m.number, "weighted_sum"),
        (lambda m, x: x * x, "mul"),
        (lambda m, x: x * m.gain + x * x, "sum_of_products"),
    ],
)
def test_rewrites(function, after):
    assert shape(scale(function)) == after


def test_factors_are_trained_and_cost_no_rounding():
    net = Net(lambda m, x: x * m.gain)
    net.gain.data = torch.tensor([-1.5, 0.5, 0.3, 0.8])[:, None, None]  # none is rounded to 0
    prepared = fxquant.prepare_qat(net, X)
    prepared.train()(X).square().sum().backward()
    assert prepared.gain.grad.abs().min() > 0
    laws.settle(prepared, X)
    quantized = fxquant.convert(prepared)
    step = float(prepared.fxquant.mul.quantizer.scale)
    source = prepared.fxquant.quantize_x(X)
    assert torch.equal(quantized(X), prepared(X))
    q = prepared.fxquant.mul.quantizer.qparams
    low, high = ((end - q.zero_point) * q.scale for end in (q.scheme.qmin, q.scheme.qmax))
    real = (source * net.gain).clamp(float(low), float(high))
    assert (quantized(X) - real).abs().max() <= 0.501 * step
