"""Two graphs that compute the same in other words have the same expressions."""

import pytest
import torch
from torch import fx, nn

from fxquant.graph.expressions import Expressions


def expression(function, table):
    gm = fx.symbolic_trace(function)
    return table.of(gm, gm.graph, {})


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (lambda x, y: torch.relu(x) + y, lambda x, y: (torch.relu(x), torch.relu(x) + y)[1], True),
        (lambda x, y: (y * 2, torch.relu(x))[1], lambda x, y: torch.relu(x), True),
        (lambda x, y: x + y, lambda x, y: y + x, False),
        (lambda x, y: x + 1, lambda x, y: x + 1.0, False),
        (lambda x, y: x + 1, lambda x, y: x + True, False),
        (lambda x, y: x[:, 1], lambda x, y: x[:, 1], True),
        (lambda x, y: x[1:y], lambda x, y: x[1:x], False),
        (lambda x, y: {"a": x}, lambda x, y: {"b": x}, False),
    ],
)
def test_equal_expressions(one, other, equal):
    table = Expressions()
    assert (expression(one, table) == expression(other, table)) is equal


def test_what_else_is_seen():
    """A call that moves statistics counts, although nobody reads its result."""

    class Norm(nn.Module):
        def __init__(self, called):
            super().__init__()
            self.called, self.norm, self.conv = called, nn.BatchNorm1d(2), nn.Linear(2, 2)

        def forward(self, x):
            if self.called:
                getattr(self, self.called)(x)
            return x

    table = Expressions()
    nothing, norm, conv = (expression(Norm(called), table) for called in ("", "norm", "conv"))
    assert nothing == conv
    assert nothing != norm
