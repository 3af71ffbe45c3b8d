"""Edge cases 33 to 48: what evening out weight ranges must not change."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import QuantConfig, QuantScheme, darts
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, EqualizeCrossLayer, FuseConvBnRelu, InsertObservers
from fxquant.passes.equalize_cross_layer import Layer, settle
from fxquant.pipeline import history
from fxquant.schemes import INT8_WEIGHT
from tests import laws
from tests.edge_cases.checks import (
    IMAGE,
    Net,
    changed_at,
    conv,
    entries,
    kept,
    left_alone,
)

INPUT = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3))
CONFIGS = {"equalize": laws.CONFIGS["equalize"]}
STEP = "equalize_cross_layer"


def net(between=lambda s, x: x.relu(), forward=None, ratio=100.0, **members):
    """conv `a`, of which the channels differ by `ratio`, something, conv `b`."""
    members = {"a": conv(), "b": conv(), **members}
    model = Net(forward or (lambda s, x: s.b(between(s, s.a(x)))), **members)
    factors = torch.logspace(-0.5, 0.5, model.a.weight.shape[0]) ** torch.tensor(ratio).log10()
    model.a.weight.data *= factors.reshape(-1, 1, 1, 1)
    return model


def equalized(model, *layers, x=INPUT, **options):
    """`model` is kept, and the factors of just these layers are not 1."""
    results = kept(model, x, configs=CONFIGS, near=None, **options)
    assert changed_at(results["equalize"], STEP) == list(layers)
    return results["equalize"].prepared


def unchanged(model, prepared, *names):
    assert all(
        torch.equal(prepared.get_parameter(name), model.get_parameter(name)) for name in names
    )


def says(prepared, node, reason):
    """The log of equalization has this reason at this node."""
    left = entries(prepared, STEP)
    assert any(e.node == node and reason in e.text for e in left), left


def spread(weight):
    """How much the ranges of the output channels differ."""
    ranges = weight.detach().abs().flatten(1).amax(1)
    return float(ranges.max() / ranges.min())


CHANNELS = {
    "zero out": lambda m: m.a.weight.data[1].zero_(),
    "zero in": lambda m: m.b.weight.data[:, 2].zero_(),
    "zero on both sides": lambda m: (m.a.weight.data[1].zero_(), m.b.weight.data[:, 1].zero_()),
    "all zero": lambda m: m.a.weight.data.zero_(),
    "zero, with a bias": lambda m: (m.a.weight.data[1].zero_(), m.a.bias.data.fill_(5.0)),
    "constant": lambda m: m.a.weight.data[0].fill_(0.25),
    "a ratio of 1e12": lambda m: m.a.weight.data.mul_(
        torch.logspace(-6, 6, 4).reshape(-1, 1, 1, 1)
    ),
    "nearly dead": lambda m: m.a.weight.data[3].fill_(1e-30),
}


@pytest.mark.parametrize("spoil", CHANNELS.values(), ids=CHANNELS)
def test_case_33_odd_channels(spoil):
    """Kept: zero, constant and hugely different channels have finite positive factors."""
    model = net()
    spoil(model)
    prepared = kept(model, INPUT, configs=CONFIGS)["equalize"].prepared
    assert all(p.isfinite().all() for p in prepared.parameters())


DEPTHWISE = {
    "triple": {"middle": conv(groups=4)},
    "multiplier 2": {"middle": nn.Conv2d(4, 8, 3, groups=4), "b": conv(8)},
    "grouped": {"middle": conv(groups=2)},
    "all grouped": {"a": conv(groups=2), "middle": conv(groups=2), "b": conv(groups=2)},
    "transposed": {"middle": nn.ConvTranspose2d(4, 4, 3, groups=2)},
}


@pytest.mark.parametrize("members", DEPTHWISE.values(), ids=DEPTHWISE)
def test_case_34_groups(members):
    """Kept: depthwise triples, multipliers and groups, each channel with its own factor."""
    model = net(lambda s, y: s.middle(y.relu()).relu(), **copy.deepcopy(members))
    prepared = equalized(model, "a", "middle", "b")
    assert spread(prepared.a.weight) < spread(model.a.weight)


@pytest.mark.parametrize("act", [nn.PReLU(4), nn.PReLU(), nn.LeakyReLU(0.2)], ids=str)
def test_case_35_leaky_activations_in_float(act):
    """Left alone: an activation that is kept in float stops the factors."""
    model = net(lambda s, y: s.act(y), act=act)
    prepared = equalized(model, keep_float=("act",))
    unchanged(model, prepared, "a.weight", "b.weight")
    says(prepared, "act", "it must see the numbers that it saw before")


@pytest.mark.parametrize("slope", [0.2, 1.5, -0.5])
@pytest.mark.parametrize("kind", [nn.LeakyReLU, F.leaky_relu])
def test_case_35_leaky_relu(kind, slope):
    """Kept: a leaky ReLU in integers lets positive factors through, whatever its slope."""
    act = kind(slope) if kind is nn.LeakyReLU else lambda y: F.leaky_relu(y, slope)
    prepared = equalized(net(lambda s, y: s.act(y), act=act), "a", "b")
    assert spread(prepared.a.weight) < 10


@pytest.mark.parametrize("act", [nn.PReLU(), nn.PReLU(4)], ids=["one slope", "one a channel"])
def test_case_35_prelu(act):
    """Kept: a PReLU lets positive factors through, each channel's through its own slope."""
    act.weight.data = torch.linspace(-0.5, 1.5, len(act.weight))
    prepared = equalized(net(lambda s, y: s.act(y), act=act), "a", "b")
    assert spread(prepared.a.weight) < 10


def test_case_35_relu():
    """Kept: a ReLU lets every positive factor through."""
    assert spread(equalized(net(), "a", "b").a.weight) < 10


CLAMPS = {
    "ReLU6": lambda s, y: F.relu6(y),
    "clamp": lambda s, y: y.clamp(-0.5, 1.5),
    "one-sided clamp": lambda s, y: y.clamp(max=1.0),
    "Hardtanh": lambda s, y: F.hardtanh(y, -2.0, 0.5),
    "ReLU6 and a pool": lambda s, y: F.max_pool2d(F.relu6(y), 2),
}


@pytest.mark.parametrize("clamp", CLAMPS.values(), ids=CLAMPS)
def test_case_36_clamps(clamp):
    """Kept: an upper limit is divided by the factor of each channel, so it cuts where it did."""
    prepared = equalized(net(clamp), "a", "b", x=INPUT * 9)
    assert prepared.fxquant.a.clamp_divisor.shape == (4, 1, 1)


def test_case_36_clamp_behind_a_pool():
    """Left alone: a clamp that is not part of a layer has one limit for all channels."""
    model = net(lambda s, y: F.relu6(F.max_pool2d(y, 2)))
    reason = "relu6 does not let factors through"
    results = left_alone(model, INPUT, STEP, "relu6", reason, configs=CONFIGS)
    unchanged(model, results["equalize"].prepared, "a.weight", "b.weight")


CURVED = [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(),
          nn.Hardswish(), nn.Hardsigmoid(), nn.Softmax(1)]


@pytest.mark.parametrize("act", CURVED, ids=str)
def test_case_37_curved_activations(act):
    """Left alone: factors stop at an activation that they do not go through."""
    model = net(forward=lambda s, x: s.c(s.act(s.b(s.a(x).relu()))), act=act, c=conv())
    prepared = equalized(model, "a", "b")
    unchanged(model, prepared, "b.bias", "c.weight", "c.bias")
    says(prepared, "act", f"{prepared.fxquant.act.op.name} does not let factors through")


@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh()], ids=str)
def test_case_37_curved_activations_in_float(act):
    """Left alone: factors stop at an activation that is kept in float."""
    model = net(forward=lambda s, x: s.c(s.act(s.b(s.a(x).relu()))), act=act, c=conv())
    prepared = equalized(model, "a", "b", keep_float=("act",))
    unchanged(model, prepared, "b.bias", "c.weight", "c.bias")
    says(prepared, "act", "it must see the numbers that it saw before")


REGIONS = {
    "residual": (lambda s, x: s.c(s.b(y := s.a(x).relu()) + y), ("a", "b", "c")),
    "two sums": (lambda s, x: s.c((s.b(y := s.a(x).relu()) + y).relu() + y), ("a", "b", "c")),
    "concat": (lambda s, x: s.wide(torch.cat([s.a(x), s.b(x)], 1)), ("a", "b", "wide")),
    "concat of one value twice": (
        lambda s, x: s.wide(torch.cat([y := s.a(x), y], 1)), ("a", "wide"),
    ),
    "a sum with the input": (lambda s, x: s.c(s.b(s.a(x).relu()) + x), ("a", "b")),
}


@pytest.mark.parametrize(("forward", "layers"), REGIONS.values(), ids=REGIONS)
def test_case_38_regions(forward, layers):
    """Kept: channels that meet in a sum have one factor, and a concat lays factors side by side."""
    equalized(net(forward=forward, c=conv(), wide=nn.Conv2d(8, 3, 1)), *layers)


def test_case_38_cell():
    """Kept: a whole DARTS network, whose cells are such regions."""
    model = darts.NetworkCIFAR(4, 3, 3, darts.DARTS_V2)
    results = kept(model, torch.randn(2, 3, 8, 8), configs=CONFIGS, near=None)
    assert len(changed_at(results["equalize"], STEP)) > 10


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (8, 8)], ids=str)
def test_case_39_constant_add(shape):
    """Left alone: what a constant is added to keeps its scale."""
    model = net(lambda s, y: y + s.constant, constant=nn.Parameter(torch.randn(shape)))
    prepared = equalized(model)
    unchanged(model, prepared, "a.weight", "b.weight", "constant")
    says(prepared, "add", "add does not let factors through here")


NUMBERS = {
    "x + 0.5": (lambda s, y: y + 0.5, "add", "add_number"),
    "0.5 + x": (lambda s, y: 0.5 + y, "add", "add_number"),
    "(x + 0.5).relu()": (lambda s, y: (y + 0.5).relu(), "add", "add_number"),
    "x - 2": (lambda s, y: y - 2, "sub", "sub_number"),
    "1 - x": (lambda s, y: 1 - y, "sub", "sub_number"),
}


@pytest.mark.parametrize(("between", "node", "name"), NUMBERS.values(), ids=NUMBERS)
def test_case_39_plain_number_add(between, node, name):
    """Left alone: what a plain number is added to keeps its scale, too."""
    model = net(between)
    prepared = equalized(model)
    unchanged(model, prepared, "a.weight", "a.bias", "b.weight", "b.bias")
    says(prepared, node, f"{name} does not let factors through")


@pytest.mark.parametrize("between", [lambda s, y: y * 3.0, lambda s, y: -y, lambda s, y: y / 7])
def test_case_39_plain_number_times(between):
    """Kept: factors go through a product with a plain number, and through a change of sign."""
    assert spread(equalized(net(between), "a", "b").a.weight) < 10


def test_case_40_fan_out():
    """Kept: all who read a value read it with the same factors."""
    model = net(forward=lambda s, x: s.b(y := s.a(x).relu()) + s.c(y), c=conv())
    assert equalized(model, "a", "b", "c").c.weight.shape == (4, 4, 3, 3)


OUTPUTS = {
    "the value": lambda s, x: (s.b(y := s.a(x)), y),
    "behind a relu": lambda s, x: (s.b(y := s.a(x)), y.relu()),
    "behind a reshape": lambda s, x: (s.b(y := s.a(x)), y.flatten(1)),
}


@pytest.mark.parametrize("forward", OUTPUTS.values(), ids=OUTPUTS)
def test_case_41_intermediate_that_is_an_output(forward):
    """Left alone: a value that leaves the network is what it was."""
    model = net(forward=forward)
    prepared = equalized(model, example=True)
    unchanged(model, prepared, "a.weight", "b.weight")
    if forward is OUTPUTS["the value"]:  # behind it only the end of the network tells
        says(prepared, "a", "it is also an output of the network")


def test_case_42_module_called_twice():
    """Left alone: a layer that is called twice has one weight for both calls."""
    model = net(forward=lambda s, x: s.b(s.a(s.a(x).relu()).relu()))
    for node in ("a", "a_1"):
        reason = "'a.weight' is shared with another call"
        results = left_alone(model, INPUT, STEP, node, reason, configs=CONFIGS)
    unchanged(model, results["equalize"].prepared, "a.weight", "b.weight")


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_case_42_tied_weight(name):
    """Left alone: two layers that share a weight or a bias."""
    model = net(forward=lambda s, x: s.c(s.b(s.a(x).relu()).relu()), c=conv())
    setattr(model.b, name, getattr(model.a, name))
    for node in ("a", "b"):
        reason = f"'{node}.{name}' is shared with another call"
        left_alone(model, INPUT, STEP, node, reason, configs=CONFIGS)


MOVES = {
    "flatten": (lambda s, y: y.flatten(1), nn.Linear(256, 3)),
    "view": (lambda s, y: y.view(y.size(0), -1), nn.Linear(256, 3)),
    "pool and flatten": (lambda s, y: torch.flatten(F.avg_pool2d(y, 2), 1), nn.Linear(64, 3)),
    "channel shuffle": (lambda s, y: F.channel_shuffle(y, 2), conv()),
    "shuffle by hand": (
        lambda s, y: y.view(y.shape[0], 2, 2, 8, 8).transpose(1, 2).reshape(y.shape), conv(),
    ),
    "chunks swapped": (lambda s, y: torch.cat([y.chunk(2, 1)[1], y.chunk(2, 1)[0]], 1), conv()),
    "pixel unshuffle": (lambda s, y: F.pixel_unshuffle(y, 2), nn.Conv2d(16, 3, 1)),
    "slice and pad": (lambda s, y: F.pad(y[:, :, 1:, 1:], (0, 1, 0, 1)), conv()),
}


@pytest.mark.parametrize(("between", "last"), MOVES.values(), ids=MOVES)
def test_case_43_moved_channels(between, last):
    """Kept: factors follow their channels through flatten, shuffles and slices."""
    equalized(net(between, b=last), "a", "b", example=True)


def test_case_43_pixel_shuffle():
    """Left alone: pixel shuffle lays several channels into one."""
    model = net(lambda s, y: F.pixel_shuffle(y, 2), b=nn.Conv2d(1, 3, 1))
    prepared = equalized(model, example=True)
    unchanged(model, prepared, "a.weight", "b.weight")
    says(prepared, "b", "it reads other channels than another layer writes")


def test_case_43_moves_of_unknown_shape():
    """Left alone: without example inputs nobody knows which channel goes where."""
    model = net(lambda s, y: y.flatten(1), b=nn.Linear(256, 3))
    prepared = equalized(model)
    unchanged(model, prepared, "a.weight", "b.weight")
    says(prepared, "flatten", "pass example_inputs")


POOLS = {
    "max": lambda s, y: F.max_pool2d(y, 3, 1, 1),
    "avg": lambda s, y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
    "adaptive": lambda s, y: F.adaptive_avg_pool2d(y, 3),
    "relu, max, avg": lambda s, y: F.avg_pool2d(F.max_pool2d(y.relu(), 2), 2),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_case_44_pools(pool):
    """Kept: max and average pools let positive factors through."""
    assert spread(equalized(net(pool), "a", "b").a.weight) < 10


MEANS = {
    "(2, 3)": (lambda s, y: y.mean((2, 3)), nn.Linear(4, 3)),
    "[-1, -2]": (lambda s, y: torch.mean(y, [-1, -2]), nn.Linear(4, 3)),
    "keepdim": (lambda s, y: y.mean((-1, 2), keepdim=True), nn.Conv2d(4, 3, 1)),
    "keepdim and flatten": (lambda s, y: y.mean((2, 3), True).flatten(1), nn.Linear(4, 3)),
    "one dimension": (lambda s, y: y.mean(-1), nn.Conv1d(4, 3, 1)),
    "one after the other": (lambda s, y: y.mean(3).mean(dim=2), nn.Linear(4, 3)),
}


@pytest.mark.parametrize(("mean", "last"), MEANS.values(), ids=MEANS)
def test_case_44_means_over_space(mean, last):
    """Kept: a mean over all or some dimensions behind the channels is a pool, too."""
    model = net(mean, b=last)
    prepared = equalized(model, "a", "b", example=True)
    assert spread(prepared.a.weight) < spread(model.a.weight) / 4


ACROSS = {
    "channels": lambda s, y: y.mean(1),
    "channels, from the end": lambda s, y: y.mean(-3, keepdim=True),
    "channels and rows": lambda s, y: y.mean((1, 2)),
    "the batch": lambda s, y: y.mean(0),
    "everything": lambda s, y: y.mean(),
}


@pytest.mark.parametrize("mean", ACROSS.values(), ids=ACROSS)
def test_case_44_means_across_channels(mean):
    """Left alone: a mean over channels, or over the batch, ties them to one another."""
    model = net(forward=lambda s, x: (s.b(y := s.a(x).relu()), mean(s, y)))
    prepared = equalized(model)
    unchanged(model, prepared, "a.weight", "b.weight")
    says(prepared, "mean", "mean does not let factors through")


@pytest.mark.parametrize("bias", [1e3, -1e3])
def test_case_45_bias_dominated_channel(bias):
    """Kept: a bias is divided by its channel's factor, however large it is."""
    model = net(lambda s, y: y)
    model.a.bias.data[0] = bias
    prepared = equalized(model, "a", "b")
    together, divided = (m.a.weight[0] * m.b.weight[:, 0] for m in (model, prepared))
    torch.testing.assert_close(together, divided)
    factor = model.a.bias[0].item() / prepared.a.bias[0].item()
    torch.testing.assert_close(model.a.weight[0] / factor, prepared.a.weight[0])


ABSORB = {"absorb": QuantConfig(batch_norm="fold", absorb_high_bias=True)}


def high(**members):
    """conv, a batch norm whose channels all but one lie far above 0, relu, `last`."""
    members = {"a": conv(kernel=1), "bn": nn.BatchNorm2d(4), "last": nn.Conv2d(4, 4, 3), **members}
    model = Net(lambda s, x: s.last(s.bn(s.a(x)).relu()), **members)
    model.bn.running_mean.zero_()
    model.bn.running_var.fill_(1.0)
    model.bn.weight.data.fill_(0.5)
    model.bn.bias.data.copy_(torch.tensor([8.0, 5.0, 0.0, 20.0]))
    return model


@pytest.mark.parametrize(
    "last", [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), conv(padding_mode="zeros", kernel=1)], ids=str
)
def test_case_46_high_bias_absorption(last):
    """Kept: without padding an offset that no ReLU cuts goes into the layer behind."""
    model = high(last=last)
    x = (INPUT / 9).clamp(-0.3, 0.3)  # no channel leaves three deviations
    (result,) = kept(model, x, configs=ABSORB).values()
    assert changed_at(result, "absorb_high_bias") == ["a"]
    prepared = fxquant.prepare_qat(model, config=QuantConfig(batch_norm="fold"))
    taken = prepared.a.bias - result.prepared.a.bias
    torch.testing.assert_close(taken, torch.tensor([6.5, 3.5, 0.0, 18.5]))


PADDED = {
    "zeros": (conv(), "'last' pads with zeros, which an offset would have moved"),
    "same": (nn.Conv2d(4, 4, 3, padding="same"), "'last' pads with zeros"),
    "transposed": (nn.ConvTranspose2d(4, 4, 3), "'last' is transposed: how often it reads"),
}


@pytest.mark.parametrize(("last", "reason"), PADDED.values(), ids=PADDED)
def test_case_46_high_bias_before_padding(last, reason):
    """Left alone: what pads the next layer would not have the offset."""
    model = high(last=last)
    left_alone(model, INPUT, "absorb_high_bias", "a", reason, configs=ABSORB)


@pytest.mark.parametrize("depth", [2, 6])
def test_case_47_converges(depth):
    """Kept: factors settle within the cap, and a second run finds next to nothing to do."""
    model = nn.Sequential(*[m for _ in range(depth) for m in (conv(), nn.ReLU())])
    for i in range(0, 2 * depth, 2):
        model[i].weight.data *= torch.logspace(-1, 1, 4).reshape(-1, 1, 1, 1)
    kept(model, INPUT, configs=CONFIGS, near=None)
    gm = trace(copy.deepcopy(model))
    for step in (Canonicalize(), FuseConvBnRelu(), InsertObservers(), EqualizeCrossLayer()):
        step.run(gm)
    before = copy.deepcopy(gm.state_dict())
    EqualizeCrossLayer().run(gm)
    for name, value in gm.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-2, atol=1e-6)


def test_case_47_has_a_cap():
    """Kept: a range that could grow for ever is stopped."""
    classes, fixed = torch.tensor([[1]]), torch.tensor([[0]])
    first = Layer(None, torch.tensor([[[1e30]]]), classes, fixed)
    read = Layer(None, torch.tensor([[[1e-30]]]), fixed, classes)
    assert 1 < float(settle([first, read], 2)[1]) <= 1e6 * 1.001


def test_case_47_runs_once_in_a_recipe():
    """Kept: the log has one line for each layer, with the span of its factors."""
    prepared = equalized(net(), "a", "b")
    (first, second) = entries(prepared, STEP, changed=True)
    assert "inputs times 1 to 1, outputs divided by" in first.text
    assert "outputs divided by 1 to 1" in second.text


def test_case_48_scale_per_channel():
    """Kept: beside a scale per channel the log says that equalization gains little."""
    sentence = "every weight channel has a scale of its own: this gains little"
    for weight, said in ((INT8_WEIGHT, True), (QuantScheme(narrow=True), False)):
        config = replace(laws.CONFIGS["equalize"], weight=weight)
        (result,) = kept(net(), INPUT, configs={"equalize": config}).values()
        assert changed_at(result, STEP) == ["a", "b"]
        (notes,) = (record.notes for record in history(result.prepared) if record.name == STEP)
        assert (sentence in notes) is said
        assert (sentence in fxquant.explain(result.prepared)) is said
