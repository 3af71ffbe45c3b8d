"""equalize_cross_layer: pairs of layers with even ranges, and the function kept."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxquant import QuantConfig, QuantScheme, explain, prepare_qat
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, EqualizeCrossLayer, FuseConvBnRelu, InsertObservers
from fxquant.passes.equalize_cross_layer import Layer, scale_weight, settle
from fxquant.schemes import Channels
from tests.strategies import chain


def equalize(model, *example_inputs):
    gm = trace(copy.deepcopy(model.eval()).double(), example_inputs or None)
    for step in (Canonicalize(), FuseConvBnRelu(), InsertObservers()):
        step.run(gm)
    return gm, EqualizeCrossLayer().run(gm)


@pytest.mark.parametrize(
    "between", ["", "relu", "leaky_relu", "max_pool", "avg_pool", "relu dropout", "identity"]
)
def test_ranges_meet(between):
    model = chain("conv", *between.split(), "conv").build()
    model.steps[0].weight.data *= torch.logspace(-3, 3, 4).reshape(-1, 1, 1, 1)
    gm, record = equalize(model)
    assert len(record.changed) == 2
    out = gm.steps.get_submodule("0").weight.abs().flatten(1).amax(1)
    read = gm.steps.get_submodule(str(len(model.steps) - 1)).weight.abs().amax((0, 2, 3))
    torch.testing.assert_close(out, read, rtol=1e-2, atol=0)
    x = torch.randn(2, 4, 8, 8).double()
    torch.testing.assert_close(gm(x), model.double()(x))


def test_a_depthwise_triple_settles():
    model = chain("conv", "relu", "conv_depthwise", "relu", "conv").build()
    model.steps[0].weight.data *= torch.logspace(-2, 2, 4).reshape(-1, 1, 1, 1)
    gm, record = equalize(model)
    assert len(record.changed) == 3
    first, middle, last = (gm.steps.get_submodule(i).weight for i in "024")
    depthwise = middle.abs().flatten(1).amax(1)
    torch.testing.assert_close(first.abs().flatten(1).amax(1), depthwise, rtol=1e-2, atol=0)
    torch.testing.assert_close(last.abs().amax((0, 2, 3)), depthwise, rtol=1e-2, atol=0)


@pytest.mark.parametrize("between", ["relu6", "clamp", "relu6 max_pool dropout"])
def test_clamps_take_limits_per_channel(between):
    model = chain("conv", *between.split(), "conv").build()
    model.steps[0].weight.data *= torch.logspace(-1, 1, 4).reshape(-1, 1, 1, 1)
    gm, record = equalize(model)
    assert len(record.changed) == 2
    assert gm.fxquant.steps_0.clamp_divisor.shape == (4, 1, 1)
    x = torch.randn(2, 4, 8, 8).double() * 9
    torch.testing.assert_close(gm(x), model.double()(x))


@pytest.mark.parametrize(
    ("steps", "reasons"),
    [
        ("conv bn conv", ["its batch norm is live and would undo the factors"]),
        ("conv relu again", ["'steps.0.weight' is shared with another call"] * 2),
        (
            "conv tied",
            [f"'steps.{i}.weight' is shared with another call" for i in (0, 1)],
        ),
        ("conv sigmoid conv", ["sigmoid does not let factors through"]),
        ("conv relu bn conv", ["batch_norm does not let factors through"]),
        ("conv max_pool relu6 conv", ["relu6 does not let factors through"]),
        (
            "conv shuffle conv",
            ["how it moves channels is not known (pass example_inputs to make it known)"],
        ),
    ],
)
def test_leaves_alone(steps, reasons):
    model = chain(*steps.split()).build()
    _, record = equalize(model)
    assert [entry.text for entry in record.left_alone] == reasons
    assert record.changed == ()


class Region(nn.Module):
    """Channels that meet in a residual sum, a concat, a flatten or a shuffle."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(8 if kind == "cat" else 4, 4, 3)
        self.linear = nn.Linear(4 * 16, 5)
        self.shuffle, self.flatten = nn.ChannelShuffle(2), nn.Flatten()
        self.a.weight.data *= torch.logspace(-2, 2, 4).reshape(-1, 1, 1, 1)

    def forward(self, x):
        y = torch.relu(self.a(x))
        if self.kind == "sum":
            return self.c(torch.relu(self.b(y) + y))
        if self.kind == "cat":
            return self.c(torch.cat([self.b(y), y], 1))
        if self.kind == "pad":
            return self.c(nn.functional.pad(y[:, :, 1:, 1:], (0, 1, 0, 1)))
        if self.kind == "shuffle":
            n, c, h, w = y.shape
            return self.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        if self.kind == "chunk":
            first, second = y.chunk(2, 1)
            return self.c(torch.cat([second, first], 1))
        if self.kind == "modules":
            return self.linear(self.flatten(self.shuffle(y)))
        return self.linear(y.flatten(start_dim=1))


@pytest.mark.parametrize("kind", ["sum", "cat", "pad", "shuffle", "chunk", "flatten", "modules"])
def test_regions(kind):
    """Every layer takes part, the ranges come together, and the function stays."""
    torch.manual_seed(0)
    model = Region(kind).double()
    x = torch.randn(2, 3, 4, 4).double()
    gm, record = equalize(model, x)
    layers = {"sum": 3, "cat": 3}.get(kind, 2)
    assert len(record.changed) == layers
    torch.testing.assert_close(gm(x), model(x))
    out = gm.a.weight.abs().flatten(1).amax(1)
    assert out.max() / out.min() < 2000  # of 10,000 before; a sum has two that write it


def test_clamps_are_divided_once_more_by_a_second_run():
    model = chain("conv", "relu6", "conv").build()
    model.steps[0].weight.data *= torch.logspace(-1, 1, 4).reshape(-1, 1, 1, 1) * 5
    gm, _ = equalize(model)
    EqualizeCrossLayer().run(gm)
    x = torch.randn(2, 4, 8, 8).double() * 9
    torch.testing.assert_close(gm(x), model.double()(x))


@pytest.mark.parametrize("height", [4, 5])
def test_without_a_batch_other_axes_are_channels(height):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
            self.a.weight.data *= torch.logspace(-1, 1, 5).reshape(-1, 1, 1, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).flip(0))

    model, x = Net().double(), torch.randn(3, height, 6).double()
    gm, _ = equalize(model, x)
    torch.testing.assert_close(gm(x), model(x))


def test_a_pool_across_channels_mixes_them():
    """max_pool3d reads [N, C, H, W] as one sample of N channels."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.a.weight.data *= torch.logspace(-1, 1, 4).reshape(-1, 1, 1, 1)

        def forward(self, x):
            return self.b(nn.functional.max_pool3d(self.a(x), (3, 1, 1), 1, (1, 0, 0)))

    model, x = Net().double(), torch.randn(2, 4, 3, 3).double()
    gm, record = equalize(model, x)
    assert record.changed == ()
    torch.testing.assert_close(gm(x), model(x))


def test_what_an_unknown_move_reads_stays():
    """Its other reader could take a factor; the one behind the move would not."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x):
            y = self.a(x)
            n, c, h, w = y.shape
            return self.b(y), self.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(y.shape))

    model = Net().double()
    gm, record = equalize(model)
    assert record.changed == ()
    x = torch.randn(2, 4, 3, 3).double()
    for ours, theirs in zip(gm(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["output", "twice", "float"])
def test_a_value_seen_outside_stays(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.a(x)
            if kind == "output":
                return self.b(y), y
            if kind == "twice":
                return self.b(self.b(y))
            return self.b(y) + x  # the input of the network is what it is

    _, record = equalize(Net())
    assert [entry.node for entry in record.changed] == ([] if kind != "float" else ["a", "b"])


def test_with_a_scale_per_channel_it_says_that_it_gains_little():
    for per_channel, count in ((True, 1), (False, 0)):
        weight = QuantScheme(narrow=True, per_channel=per_channel)
        config = QuantConfig(batch_norm="fold", equalize=True, weight=weight)
        prepared = prepare_qat(chain("conv", "relu", "conv").build(), config=config)
        assert explain(prepared).count("this gains little") == count


def test_dead_channels_stay():
    model = chain("conv", "conv").build()
    model.steps[0].weight.data[1] = 0
    model.steps[1].weight.data[:, 2] = 0
    gm, _ = equalize(model)
    assert all(torch.isfinite(p).all() for p in gm.parameters())
    x = torch.randn(2, 4, 8, 8).double()
    torch.testing.assert_close(gm(x), model.double()(x))


def test_by_hand():
    """One channel written with 8 and read with 2: s = √(8/2) = 2, and both become 4. A channel
    that is dead on one side keeps 1, and so does what is fixed.
    """
    classes, fixed = torch.tensor([[1, 2, 0]]), torch.tensor([[0]])
    first = Layer(None, torch.tensor([[[8.0], [0.0], [5.0]]]), classes, fixed)
    read = Layer(None, torch.tensor([[[2.0, 3.0, 9.0]]]), fixed, classes)
    assert settle([first, read], 3).tolist() == [1.0, pytest.approx(2.0, rel=1e-2), 1.0]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
@settings(deadline=None)
def test_scaling_a_weight_scales_what_it_reads_and_writes(groups, reads, writes, transposed):
    ins, outs = groups * reads, groups * writes
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(ins, outs, 3, groups=groups).double()
    s_in, s_out = torch.rand(ins).double() + 0.5, torch.rand(outs).double() + 0.5
    channels = Channels(1, groups) if transposed else Channels()
    x = torch.randn(1, ins, 5, 5).double()
    conv.bias.data.zero_()
    expected = conv(x * s_in.reshape(1, -1, 1, 1)) / s_out.reshape(1, -1, 1, 1)
    into, out = s_in.reshape(groups, reads), s_out.reshape(groups, writes)
    conv.weight.data = scale_weight(conv.weight.data, into, out, channels)
    torch.testing.assert_close(conv(x), expected)
