"""fold_bn: what it folds, what it leaves alone and why, one case by hand."""

import pytest
import torch
from torch import nn

from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, FoldBatchNorm
from tests import laws
from tests.passes.shapes import shape
from tests.strategies import chain


def fold(model, *example_inputs):
    gm = trace(model.eval(), example_inputs or None)
    Canonicalize().run(gm)
    return gm, FoldBatchNorm().run(gm)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("conv bn", "conv2d"),
        ("conv_no_bias bn", "conv2d"),
        ("conv_depthwise bn relu", "conv2d relu"),
        ("conv_grouped bn_plain", "conv2d"),
        ("conv bn bn", "conv2d"),  # the second folds into what the first became
        ("relu conv conv bn", "relu conv2d conv2d"),  # only the last conv takes it in
        ("conv relu bn", "conv2d relu batch_norm"),  # relu in between: unchanged
        ("max_pool bn", "max_pool2d batch_norm"),
        ("bn conv", "batch_norm conv2d"),  # padded
        ("bn conv_functional", "conv2d"),  # not padded
        ("conv bn conv_functional", "conv2d conv2d"),  # the layer before comes first
    ],
)
def test_rewrites(before, after):
    gm, _ = fold(chain(*before.split()).build())
    assert shape(gm) == after


def test_a_folded_norm_is_gone():
    """Its γ and β would get no gradient, which distributed training takes for an error."""
    gm, _ = fold(chain("conv", "bn", "relu", "conv").build())
    assert not any(key.startswith("steps.1.") for key in gm.state_dict())


class Shared(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv, self.other = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        if kind == "tied":
            self.other.weight = self.conv.weight

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "read elsewhere":
            return self.bn(y), y
        if self.kind == "two norms":
            return self.bn(y) + self.bn2(y)
        if self.kind == "called twice":
            return self.bn2(self.conv(self.bn(y)))
        return self.bn(y) + self.other(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("read elsewhere", "'conv' is also read by 'output'"),
        ("two norms", "'conv' is also read by 'bn2'"),
        ("called twice", "'conv.weight' is shared with another call"),
        ("tied", "'conv.weight' is shared with another call"),
    ],
)
def test_leaves_alone(kind, reason):
    gm, record = fold(Shared(kind))
    assert reason in [entry.text for entry in record.left_alone]
    assert "batch_norm" in shape(gm)


class Reduce(nn.Module):
    """DARTS' FactorizedReduce, and what may go wrong with it."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv_1, self.conv_2 = nn.Conv2d(3, 2, 1, 2, bias=False), nn.Conv2d(3, 4, 1, 2)
        self.bn = _settled(nn.BatchNorm2d(4 if kind == "twice" else 6))

    def forward(self, x):
        parts = [self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])]
        if self.kind == "twice":
            parts = [parts[0], parts[0]]
        if self.kind == "not a layer":
            parts[1] = parts[1].relu()
        y = self.bn(torch.cat(parts, 1))
        return (y, parts[1]) if self.kind == "read elsewhere" else y


def _settled(bn):
    for tensor in (bn.running_mean, bn.weight.data, bn.bias.data):
        tensor.normal_()
    bn.running_var.uniform_(0.5, 2)
    return bn


@pytest.mark.parametrize(
    ("kind", "after", "reasons"),
    [
        ("", "conv2d conv2d cat", []),
        ("twice", "conv2d conv2d cat batch_norm", ["'cat' holds 'conv_1' twice"]),
        ("not a layer", "conv2d conv2d relu cat batch_norm", ["no layer stands beside it"]),
        (
            "read elsewhere",
            "conv2d conv2d cat batch_norm",
            ["'conv_2' is also read by 'output'"],
        ),
    ],
)
def test_through_a_concat(kind, after, reasons):
    model = Reduce(kind).double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    expected = model(x)
    gm, record = fold(model)
    assert shape(gm) == after
    assert [entry.text for entry in record.left_alone] == reasons
    laws.assert_close(gm(x), expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_into_the_layer_after(groups):
    model = nn.Sequential(_settled(nn.BatchNorm2d(6)), nn.Conv2d(6, 6, 3, groups=groups))
    model = model.double().eval()
    x = torch.randn(2, 6, 8, 8).double()
    expected = model(x)
    gm, _ = fold(model)
    assert shape(gm) == "conv2d"
    laws.assert_close(gm(x), expected)


def test_not_into_a_layer_that_pads():
    _, record = fold(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)))
    assert [entry.text for entry in record.left_alone] == [
        "'_1' pads with zeros, which an offset would have moved"
    ]


def test_a_linear_layer_needs_its_rank():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    _, blind = fold(model)
    assert "more than two dimensions" in blind.left_alone[0].text
    gm, _ = fold(model, torch.randn(2, 3))
    assert shape(gm) == "linear"


def test_by_hand():
    """w = 2, no bias; γ = 3, β = 1, μ = 4, σ² = 0.25 - ε:  f = 3/0.5 = 6, w' = 12, b' = 1 - 24."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.05))
    for tensor, value in zip(
        (model[0].weight, model[1].weight, model[1].bias, model[1].running_mean),
        (2.0, 3.0, 1.0, 4.0),
        strict=True,
    ):
        nn.init.constant_(tensor, value)
    model[1].running_var.fill_(0.2)
    gm, _ = fold(model)
    weight, bias = (dict(gm.named_parameters())[name].item() for name in ("0.weight", "0.bias"))
    assert (weight, bias) == (pytest.approx(12.0), pytest.approx(-23.0))


def test_a_shared_norm_stays_until_its_last_reader_is_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.bn(self.a(x)) + self.bn(self.b(x)) + self.bn(x)

    gm, record = fold(Net())
    assert len(record.changed) == 2
    assert shape(gm) == "conv2d conv2d add batch_norm add"
    assert "bn.running_mean" in gm.state_dict()
