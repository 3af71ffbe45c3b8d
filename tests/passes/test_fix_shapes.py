"""fix_shapes: numbers and masks that shapes decide are constants where integers need them.

By hand: heads of 16 channels, q·16^-0.5 = q·0.25, and the number of channels never changes.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import ShapeError, UnsupportedOperatorError
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, FixShapes
from tests import laws
from tests.passes.shapes import shape

X = torch.randn(2, 5, 16, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.slope = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
        self.register_buffer("causal", torch.ones(9, 9).tril())

    def forward(self, x):
        return self.function(self, x)


def fix(function, example=X):
    net = Net(function)
    gm = trace(copy.deepcopy(net), None if example is None else (example,))
    record = FixShapes().run(gm)
    laws.assert_close(gm(X), net(X))
    return gm, record


def numbers_read(gm, name):
    """The plain numbers among the arguments of a node."""
    node = next(node for node in gm.graph.nodes if node.name == name)
    return [a for a in node.args if isinstance(a, (int, float))]


def test_by_hand():
    gm, record = fix(lambda m, x: x * x.shape[-1] ** -0.5)
    assert numbers_read(gm, "mul") == [0.25]
    assert [entry.node for entry in record.changed] == ["mul"]
    other = torch.randn(3, 7, 16)
    assert torch.equal(gm(other), other * 0.25)
    with pytest.raises(ShapeError, match=r"whose 'pow_1' .*test_fix_shapes.py.* is 0.25"):
        gm(torch.randn(3, 7, 8))


@pytest.mark.parametrize(
    ("function", "after"),
    [
        (lambda m, x: x / math.sqrt(x.size(-1)), "div_number"),
        (lambda m, x: x.shape[1] - x, "sub_number"),
        (lambda m, x: torch.nn.functional.leaky_relu(x, x.size(2) / 100), "leaky_relu"),
        (lambda m, x: x + torch.arange(x.shape[1], device=x.device)[:, None], "add"),
        (lambda m, x: x * torch.tensor(x.shape[-1]).sqrt(), "mul"),
        (lambda m, x: x + m.slope * torch.arange(x.shape[2]), "add"),
        (lambda m, x: x + torch.ones_like(x), "add"),
    ],
)
def test_rewrites(function, after):
    gm, record = fix(function)
    assert record.changed
    Canonicalize().run(gm)
    assert shape(gm) == after
    assert all(site.op != "call_function" or "arange" not in site.name for site in gm.graph.nodes)


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda m, x: x.reshape(x.shape[0], x.shape[1] * x.shape[2]), X),
        (lambda m, x: torch.nn.functional.pad(x, (0, x.shape[1] % 3)), X),
        (lambda m, x: x[:, : x.shape[1] - 1], X),
        (lambda m, x: x + m.slope.expand(x.shape[0], 1, 1), X),  # a parameter, moved
        (lambda m, x: x + m.slope.exp().expand(x.shape[0], 1, 1), X),
        (lambda m, x: torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], 1), X),
        (lambda m, x: x * x.shape[1], None),  # no example tells
        (lambda m, x: x + 1.0, X),
    ],
)
def test_leaves_alone(function, example):
    gm, record = fix(function, example)
    assert record.changed == ()
    if example is not None:
        laws.assert_close(gm(X[:1]), Net(function)(X[:1]))


def test_what_depends_on_parameters_stays_computed_from_them():
    gm, _ = fix(lambda m, x: x + m.slope * torch.arange(x.shape[2]))
    gm.slope.data.fill_(2.0)
    assert torch.equal(gm(X), X + 2.0 * torch.arange(16))


def test_a_buffer_is_read_where_it_is():
    gm, _ = fix(lambda m, x: x.masked_fill(m.causal[: x.shape[1], :16].sum(1, True) == 2.0, 0.0))
    assert gm(X)[:, 1].eq(0).all()  # the second row has two ones
    gm.causal.fill_(0.25)
    assert torch.equal(gm(X), X)  # 9 quarters are not 2


@pytest.mark.parametrize(
    "cast",
    [
        lambda m, x: m.double().to(x.device),
        lambda m, x: m.to(device=x.device, dtype=x.dtype),
        lambda m, x: m.to(x),
        lambda m, x: m.type_as(x),
    ],
)
def test_casts_of_what_the_network_holds_read_nothing_else(cast):
    """In integers x has another dtype; the network's buffers are where it is."""
    gm, _ = fix(lambda m, x: x + cast(m.causal[0], x).sum())
    (to,) = (node for node in gm.graph.nodes if node.target == "to")
    assert to.args[1:] == (torch.float64,)
    assert not to.kwargs


def test_a_shape_alone_is_asserted():
    """What ones_like takes from its argument is all of its shape."""
    gm, _ = fix(lambda m, x: x + torch.ones_like(x))
    with pytest.raises(ShapeError, match=r"\(2, 5, 16\)"):
        gm(X[:1])


@pytest.mark.parametrize("spelling", [F.conv1d, F.conv_transpose1d])
def test_groups_that_a_shape_tells(spelling):
    """As BlurPool has it; where nobody knows the shape it is refused."""
    net = Net(lambda m, x: spelling(x, m.blur, stride=2, groups=x.shape[1]))
    net.register_buffer("blur", torch.tensor([[[0.25, 0.5, 0.25]]]).repeat(5, 1, 1))
    prepared = fxquant.prepare_qat(net, X.float())
    laws.settle(prepared, X.float())
    laws.assert_equal(fxquant.convert(prepared)(X.float()), prepared(X.float()))
    assert (prepared(X.float()) - net(X.float())).abs().max() < 0.05
    with pytest.raises(UnsupportedOperatorError, match=r"how many groups .*pass example_inputs"):
        fxquant.prepare_qat(net)


def test_constants_move_with_the_network():
    net = Net(lambda m, x: x + torch.arange(x.shape[1])[:, None])
    prepared = fxquant.prepare_qat(net, X.float())
    tables = [b for b in prepared.buffers() if b.dtype is torch.int64]
    assert [t.flatten().tolist() for t in tables] == [[0, 1, 2, 3, 4]]
