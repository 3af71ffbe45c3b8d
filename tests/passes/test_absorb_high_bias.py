"""absorb_high_bias: what a ReLU never sees below moves into the layers behind it."""

import copy

import pytest
import torch
from torch import nn

from fxquant import QuantConfig
from fxquant.graph.normal import Normal
from fxquant.graph.trace import trace
from fxquant.passes import AbsorbHighBias
from fxquant.passes.absorb_high_bias import high_bias
from fxquant.pipeline import history
from fxquant.recipes import prepare_recipe

CONFIG = QuantConfig(batch_norm="fold", absorb_high_bias=True)


class Pair(nn.Module):
    """conv, bn with one channel high above 0, an activation, and readers of it."""

    def __init__(self, kind="plain"):
        super().__init__()
        torch.manual_seed(0)
        padding = 1 if kind == "padded" else 0
        self.first, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 2, 3, padding=padding, bias=False)
        self.third = nn.Conv2d(4, 2, 3)
        if kind == "transposed":
            self.second = nn.ConvTranspose2d(4, 2, 3)
        if kind == "shared":
            self.third.weight = self.second.weight
        self.act = nn.ReLU6() if kind == "relu6" else nn.ReLU()
        self.kind = kind
        with torch.no_grad():
            self.bn.weight.copy_(torch.tensor([0.5, 1.0, -0.5, 0.0]))
            self.bn.bias.copy_(torch.tensor([4.0, 1.0, 2.0, 3.0]))

    def forward(self, x):
        y = self.act(self.bn(self.first(x)))
        total = self.second(y) + self.third(y)
        return (total, y) if self.kind == "output" else total


def absorb(model):
    gm = trace(copy.deepcopy(model).eval())
    for step in prepare_recipe(CONFIG, frozenset()).passes:
        step.run(gm)
        if isinstance(step, AbsorbHighBias):
            return gm, history(gm)[-1]
    raise AssertionError


def test_rewrites():
    """c = max(0, β - 3|γ|) = 2.5, 0, 0.5, 3: taken from the bias, given to both readers."""
    model = Pair().eval()
    gm, record = absorb(model)
    assert [entry.node for entry in record.changed] == ["first"]
    absorbed = torch.tensor([2.5, 0.0, 0.5, 3.0])
    f = model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()
    folded = (model.first.bias - model.bn.running_mean) * f + model.bn.bias
    torch.testing.assert_close(gm.first.bias, folded - absorbed)
    torch.testing.assert_close(gm.second.bias, model.second.weight.sum((2, 3)) @ absorbed)


def test_keeps_the_function_where_no_channel_falls_below():
    """Inputs so small that every channel stays within three deviations of its mean."""
    model = Pair().eval().double()
    x = 0.1 * torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = model(x)
    torch.testing.assert_close(absorb(model)[0](x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("padded", "'second' pads with zeros, which an offset would have moved"),
        ("transposed", "'second' is transposed: how often it reads an offset depends on the place"),
        ("relu6", "relu6 has limits that would move"),
        ("output", "'output', which reads it, is not a layer"),
        ("shared", "'second.weight' is shared with another call"),
    ],
)
def test_leaves_alone(kind, reason):
    model = Pair(kind).eval()
    _, record = absorb(model)
    assert record.changed == ()
    assert [entry.text for entry in record.left_alone] == [reason]


def test_high_bias_by_hand():
    normal = Normal(torch.tensor([4.0, 1.0]), torch.tensor([0.5, 1.0]))
    assert high_bias(normal).tolist() == [2.5, 0.0]
