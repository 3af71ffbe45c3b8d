"""weigh_terms: products with numbers that parameters decide become terms of weighted sums."""

import copy

import pytest
import torch
from torch import nn

from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, JoinAdds, WeighTerms
from tests import laws
from tests.passes.shapes import shape


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.alpha, self.gain = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x, y):
        return self.function(self, torch.softmax(self.alpha, -1), x, y)


def run(function, *steps):
    net, inputs = Net(function).double(), (torch.randn(2, 4, 5, 5, dtype=torch.float64),) * 2
    gm = trace(copy.deepcopy(net), inputs)
    Canonicalize().run(gm)
    records = [step.run(gm) for step in steps]
    laws.assert_close(gm(*inputs), net(*inputs))
    return gm, records


@pytest.mark.parametrize(
    ("function", "after"),
    [
        (lambda m, w, x, y: w[0, 1] * x, "weighted_sum"),
        (lambda m, w, x, y: x * w[0][1], "weighted_sum"),
        (lambda m, w, x, y: x.mul(w[:1, 0]), "weighted_sum"),  # one element, but not a scalar
        (lambda m, w, x, y: x * w.sum().exp(), "weighted_sum"),
        (lambda m, w, x, y: x * m.gain, "mul"),  # a number for each channel
        (lambda m, w, x, y: x * y, "mul"),
        (lambda m, w, x, y: x[0, 0, 0, 0] * w[:1, :1], "mul"),  # the factor makes the shape
    ],
)
def test_rewrites(function, after):
    assert shape(run(function, WeighTerms())[0]) == after


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, w, x, y: x * m.gain, "'gain' has more than one element"),
        (lambda m, w, x, y: x[0, 0, 0, 0] * w[:1, :1], "'getitem_1' may have more dimensions than"),
        (lambda m, w, x, y: x * y, None),
    ],
)
def test_says_why_not(function, reason):
    left = run(function, WeighTerms())[1][0].left_alone
    assert [entry.node for entry in left] == ([] if reason is None else ["mul"])
    assert all(entry.text.startswith(reason) for entry in left)


_ONE = "weighted_sum"


@pytest.mark.parametrize(
    ("function", "after", "factors"),
    [
        (lambda m, w, x, y: sum(a * b for a, b in zip(w[0], (x, y, y), strict=True)), _ONE, 3),
        (lambda m, w, x, y: w[0, 0] * x + y, "weighted_sum", 2),
        (lambda m, w, x, y: (w[0, 0] * x + y) + (x + w[1, 1] * y), "weighted_sum", 4),
        (lambda m, w, x, y: w[0, 0] * (w[0, 1] * x + y), "weighted_sum weighted_sum", 1),
        (lambda m, w, x, y: x + y, "add", 0),
    ],
)
def test_sums_of_terms_are_one_sum(function, after, factors):
    gm, _ = run(function, WeighTerms(), JoinAdds())
    assert shape(gm) == after
    last = [node for node in gm.graph.nodes if node.op == "call_module"][-1]
    assert len(last.kwargs.get("factors", ())) == factors


def test_a_term_that_is_read_elsewhere_stays():
    def function(m, w, x, y):
        term = w[0, 0] * x
        return term + y, term

    gm, (_, record) = run(function, WeighTerms(), JoinAdds())
    assert shape(gm) == "weighted_sum add"
    assert [entry.text for entry in record.left_alone] == ["'mul' is also read elsewhere"]
