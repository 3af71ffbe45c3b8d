"""Settings of operators that the graph computes from shapes, and what single numbers have."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import UnsupportedOperatorError
from tests import laws


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.kernels = nn.Parameter(torch.randn(3, 1, 3, 3))
        self.prelu = nn.PReLU()

    def forward(self, x):
        return self.function(self, x)


def both(function, x, known=True):
    prepared = fxquant.prepare_qat(Net(function), x if known else None)
    laws.settle(prepared, x)
    return prepared, fxquant.convert(prepared)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.avg_pool2d(x, x.shape[2:]),
        lambda m, x: F.avg_pool2d(x, (x.size(2), x.size(3))),
        lambda m, x: F.avg_pool2d(x, x.shape[2] // 2, stride=x.shape[2] // 3),
        lambda m, x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 1)),
        lambda m, x: x.mean(x.dim() - 1),
        lambda m, x: x.sum([x.dim() - 1, x.dim() - 2]),
        lambda m, x: x.softmax(x.dim() - 1),
        lambda m, x: F.conv2d(x, m.kernels, groups=x.shape[1]),
    ],
)
def test_settings_that_shapes_decide(function):
    """Sums are proved for the example's; what comes out of a pickle knows no examples."""
    prepared, quantized = both(function, torch.randn(2, 3, 6, 6))
    assert not fxquant.audit(quantized).unproved
    copies = quantized, copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))
    for q in copies:
        str(fxquant.audit(q))
        x = torch.randn(5, 3, 6, 6)
        laws.assert_equal(q(x), prepared.eval()(x))


def test_groups_that_nobody_knows_are_refused():
    with pytest.raises(UnsupportedOperatorError, match=r"how many groups.*pass example_inputs"):
        both(lambda m, x: F.conv2d(x, m.kernels, groups=x.size(1)), torch.randn(2, 3, 6, 6), False)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.softmax(0),
        lambda m, x: x.sum(0),
        lambda m, x: x.mean(-1),
        lambda m, x: F.normalize(x, dim=0),
        lambda m, x: m.prelu(x),
    ],
)
def test_a_single_number_has_dimension_0(function):
    x = torch.tensor(0.7)
    prepared, quantized = both(function, x)
    y = quantized(x)
    laws.assert_equal(y, prepared.eval()(x))
    assert y.shape == ()


def test_a_softmax_over_nothing_gives_nothing():
    prepared, quantized = both(lambda m, x: x.softmax(1), torch.randn(2, 3, 4))
    x = torch.randn(2, 0, 4)
    laws.assert_equal(quantized(x), prepared.eval()(x))
    assert quantized(x).shape == x.shape
