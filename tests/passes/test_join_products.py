"""join_products: a sum of products is rounded once, and shares that weigh it have 16 bits."""

import copy

import torch
from torch import nn

import fxquant
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, JoinAdds, JoinProducts
from fxquant.pipeline import history
from fxquant.schemes import INT16
from tests import laws
from tests.passes.shapes import shape

X = tuple(torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(4))


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def join(function):
    net = Net(function)
    gm = trace(copy.deepcopy(net), X)
    for step in (Canonicalize(), JoinAdds(), JoinProducts()):
        step.run(gm)
    laws.assert_close(gm(*X), net(*X))
    return gm, history(gm)[-1]


def test_rewrites():
    assert shape(join(lambda a, b, c, d: a * b + c * d)[0]) == "sum_of_products"
    assert shape(join(lambda a, b, c, d: a * b + c * d + b * d)[0]) == "sum_of_products"
    assert shape(join(lambda a, b, c, d: torch.relu(a * b + c * d))[0]) == "sum_of_products relu"


def test_leaves_alone():
    def read_elsewhere(a, b, c, d):
        product = a * b
        return product + c * d, product

    gm, record = join(read_elsewhere)
    assert shape(gm) == "mul mul add"
    assert [entry.text for entry in record.left_alone] == ["'mul' is also read elsewhere"]
    assert shape(join(lambda a, b, c, d: a * b + c)[0]) == "mul add"
    assert shape(join(lambda a, b, c, d: (p := a * b) + p)[0]) == "mul add"


class Gate(nn.Module):
    """Two operations, weighed by what the input decides."""

    def __init__(self):
        super().__init__()
        self.gate, self.conv = nn.Linear(3, 2), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        w = torch.softmax(self.gate(x.mean((2, 3))), 1)
        return x * w[:, 0].view(-1, 1, 1, 1) + self.conv(x) * w[:, 1].view(-1, 1, 1, 1)


def test_shares_that_weigh_others_have_16_bits():
    torch.manual_seed(0)
    net, x = Gate().eval(), torch.randn(8, 3, 6, 6)
    prepared = fxquant.prepare_qat(net, x)
    assert prepared.fxquant.softmax.quantizer.scheme == INT16
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    assert torch.equal(quantized(x), prepared(x))
    assert shape(prepared) == "mean linear softmax conv2d sum_of_products"


def test_a_softmax_that_others_read_has_8():
    class Attention(nn.Module):
        def forward(self, q, v):
            return torch.softmax(q, -1) @ v

    prepared = fxquant.prepare_qat(Attention(), (torch.randn(2, 4, 4), torch.randn(2, 4, 3)))
    assert prepared.fxquant.softmax.quantizer.scheme.bits == 8
