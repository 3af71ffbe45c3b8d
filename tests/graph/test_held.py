"""What parameters alone decide: constant, but for what draws random numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import UnsupportedOperatorError
from fxquant.graph.held import held
from fxquant.graph.trace import trace


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.alpha = function, nn.Parameter(torch.rand(4))

    def forward(self, x):
        return x * self.function(self.alpha).sum()


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda a: torch.softmax(a, 0), "alpha softmax sum_1"),
        (lambda a: a[0].exp() + 1, "alpha getitem exp add sum_1"),
        (lambda a: F.dropout(a, 0.5, False), "alpha dropout sum_1"),
        (lambda a: F.gumbel_softmax(a), "alpha"),
        (lambda a: F.rrelu(a, training=True), "alpha"),
        (lambda a: F.dropout(a, 0.5, True), "alpha"),
        (lambda a: torch.normal(a, 1.0), "alpha"),
        (lambda a: torch.multinomial(a, 1), "alpha"),
        (lambda a: torch.randint_like(a, 4), "alpha"),
        (lambda a: a.new_empty(4).normal_(), "alpha new_empty"),
        (lambda a: a.bernoulli(), "alpha"),
    ],
)
def test_what_draws_random_numbers_is_not_held(function, names):
    gm = trace(Net(function))
    found = held(gm)
    assert " ".join(node.name for node in gm.graph.nodes if node in found) == names


def test_a_random_weight_is_refused():
    """The integers would have another constant in them than eval() has drawn."""
    with pytest.raises(UnsupportedOperatorError, match="multinomial"):
        fxquant.prepare_qat(Net(lambda a: torch.multinomial(a, 1)))


def test_a_shared_part_is_computed_once():
    """`w + w`, sixty times over: 2^60 sums if every reader computed its operands anew."""

    def doubled(alpha):
        for _ in range(60):
            alpha = (alpha + alpha) / 2
        return alpha

    net = Net(doubled)
    prepared = fxquant.prepare_qat(net)
    x = torch.randn(2, 4)
    prepared.train()(x)
    assert torch.equal(fxquant.convert(prepared)(x), prepared.eval()(x))
