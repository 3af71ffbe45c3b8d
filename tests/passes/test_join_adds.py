"""join_adds: chains of sums become one sum, rounded once."""

import torch
from torch import nn

from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, FuseConvBnRelu, JoinAdds
from tests.passes.shapes import shape


def join(function):
    class Net(nn.Module):
        def forward(self, a, b, c, d):
            return function(a, b, c, d)

    gm = trace(Net())
    Canonicalize().run(gm)
    return gm, JoinAdds().run(gm)


def operands(gm):
    return [len(node.args) for node in gm.graph.nodes if node.op == "call_module"]


def test_rewrites():
    for function in (
        lambda a, b, c, d: a + b + c + d,
        lambda a, b, c, d: (a + b) + (c + d),
        lambda a, b, c, d: sum([a, b, c, d]),
    ):
        gm, _ = join(function)
        assert (shape(gm), operands(gm)) == ("add", [4])
        x = torch.randn(4, 3)
        torch.testing.assert_close(gm(*x), x.sum(0))


def test_of_two_partial_sums_one_may_stay():
    gm, record = join(lambda a, b, c, d: ((t := a + b) + (c + d), t))
    assert operands(gm) == [2, 3]
    assert record.left_alone == ()
    x = torch.randn(4, 3)
    y, t = gm(*x)
    torch.testing.assert_close(y, x.sum(0))
    torch.testing.assert_close(t, x[0] + x[1])


def test_leaves_alone_a_sum_that_has_taken_an_activation_in():
    gm, _ = join(lambda a, b, c, d: torch.relu(a + b) + c)
    FuseConvBnRelu().run(gm)
    JoinAdds().run(gm)
    assert (shape(gm), operands(gm)) == ("add+relu add", [2, 2])


def test_leaves_alone_a_partial_sum_that_is_read_elsewhere():
    gm, record = join(lambda a, b, c, d: (t := a + b) + c + t)
    assert [entry.text for entry in record.left_alone] == ["'add' is also read elsewhere"]
    assert operands(gm) == [2, 3]


def test_leaves_alone_a_sum_added_to_itself():
    gm, record = join(lambda a, b, c, d: (t := a + b) + t)
    assert len(record.left_alone) == 1
    assert operands(gm) == [2, 2]
