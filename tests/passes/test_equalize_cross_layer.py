"""equalize_cross_layer: pairs of layers with even ranges, and the function kept."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, EqualizeCrossLayer, FuseConvBnRelu, InsertObservers
from fxquant.passes.equalize_cross_layer import factors, range_in, scale_in
from tests.strategies import chain


def equalize(model):
    gm = trace(copy.deepcopy(model.eval()).double())
    for step in (Canonicalize(), FuseConvBnRelu(), InsertObservers()):
        step.run(gm)
    return gm, EqualizeCrossLayer().run(gm)


@pytest.mark.parametrize(
    "between", ["", "relu", "max_pool", "avg_pool", "relu dropout", "identity"]
)
def test_ranges_meet(between):
    model = chain("conv", *between.split(), "conv").build()
    model.steps[0].weight.data *= torch.logspace(-3, 3, 4).reshape(-1, 1, 1, 1)
    gm, record = equalize(model)
    assert len(record.changed) == 1
    last = len(model.steps) - 1
    out = gm.steps.get_submodule("0").weight.abs().flatten(1).amax(1)
    torch.testing.assert_close(out, range_in(gm.steps.get_submodule(str(last)).weight, 1))
    x = torch.randn(2, 4, 8, 8).double()
    torch.testing.assert_close(gm(x), model.double()(x))


def test_a_depthwise_triple_settles():
    model = chain("conv", "relu", "conv_depthwise", "relu", "conv").build()
    model.steps[0].weight.data *= torch.logspace(-2, 2, 4).reshape(-1, 1, 1, 1)
    gm, record = equalize(model)
    assert len(record.changed) == 2
    first, middle, last = (gm.steps.get_submodule(i).weight for i in "024")
    depthwise = middle.abs().flatten(1).amax(1)
    torch.testing.assert_close(first.abs().flatten(1).amax(1), depthwise, rtol=1e-2, atol=0)
    torch.testing.assert_close(range_in(last, 1), depthwise, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("conv relu6 conv", "relu6 behind 'steps_0' does not let factors through"),
        ("conv clamp conv", "clamp(-0.5, 1.5) behind 'steps_0' does not let factors through"),
        ("conv bn conv", "the batch norm of 'steps_0' is live and would undo the factors"),
        ("conv relu again", "'steps.0.weight' is shared with another call"),
        ("conv tied", "'steps.0.weight' is shared with another call"),
    ],
)
def test_leaves_alone(steps, reason):
    _, record = equalize(chain(*steps.split()).build())
    assert [entry.text for entry in record.left_alone] == [reason]
    assert record.changed == ()


def test_leaves_alone_a_value_read_elsewhere():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return self.b(y) + y

    _, record = equalize(Net())
    assert [entry.text for entry in record.left_alone] == ["'a' is also read by 'add'"]


def test_dead_channels_stay():
    model = chain("conv", "conv").build()
    model.steps[0].weight.data[1] = 0
    model.steps[1].weight.data[:, 2] = 0
    gm, _ = equalize(model)
    assert all(torch.isfinite(p).all() for p in gm.parameters())
    x = torch.randn(2, 4, 8, 8).double()
    torch.testing.assert_close(gm(x), model.double()(x))


def test_by_hand():
    """r1 = 8, r2 = 2: s = √(8/2) = 2, and both ranges become 4. A dead channel keeps 1."""
    s = factors(torch.tensor([8.0, 0.0]), torch.tensor([2.0, 3.0]))
    assert s.tolist() == [2.0, 1.0]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
@settings(deadline=None)
def test_scaling_inputs_scales_what_they_read(groups, per_group, outs):
    weight = torch.randn(groups * outs, per_group, 3, 3).double()
    s = torch.rand(groups * per_group).double() + 0.5
    x = torch.randn(1, groups * per_group, 5, 5).double()
    scaled = nn.functional.conv2d(x, scale_in(weight, groups, s), groups=groups)
    expected = nn.functional.conv2d(x * s.reshape(1, -1, 1, 1), weight, groups=groups)
    torch.testing.assert_close(scaled, expected)
