"""Examples of values answer what a forward asks about shapes."""

import torch
from torch import nn

from fxquant.graph.trace import trace


class Shapes(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        if h != w:
            x = x.transpose(2, 3)
        parts = list(x.chunk(2, dim=1))
        return torch.cat([parts[1], parts[0]], 1).view(n, c * h * w)


def test_shapes_are_known_from_example_inputs():
    x = torch.randn(2, 4, 3, 5)
    gm = trace(Shapes(), (x,))
    assert torch.equal(gm(x), Shapes()(x))
    y = torch.randn(7, 4, 3, 5)
    assert torch.equal(gm(y), Shapes()(y))
