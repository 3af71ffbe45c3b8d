"""Rounding that is learned after training: what it moves, what it leaves alone, that it helps."""

import copy
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import BINARY, LSQ, TERNARY, TWN, DoReFa, QuantConfig
from fxquant.errors import ConfigError, DataError, UncalibratedError
from fxquant.fake_quant import AdaptiveRounding, ObservedWeight
from fxquant.schemes import Channels, round_half_up
from fxquant.sites.flow import sites
from fxquant.sites.parameters import parameters_of
from tests import laws
from tests.strategies import chain, net_specs

SPEC = chain("conv", "bn", "relu", "conv_depthwise", "relu6", "conv", head=True)
BATCHES = [SPEC.inputs(16, seed) for seed in range(3)]


def calibrated(model, batches, bits=3, **settings):
    config = QuantConfig(weight=BINARY.with_bits(bits), **settings)
    prepared = fxquant.prepare_ptq(model, config=config)
    fxquant.calibrate(prepared, batches)
    return prepared


def codes(prepared):
    """The integer weight of each layer, by its name."""
    found = {}
    for node, site in sites(prepared):
        if site.weight_quant is not None:
            weight, quant = parameters_of(prepared, node)[0], site.weight_quant
            scale = quant.channels.spread(quant.scale(weight), weight)
            found[node.name] = (quant.transform(weight) / scale).detach(), scale
    return found


@settings(max_examples=6, deadline=None)
@given(
    spec=net_specs(5), bits=st.integers(2, 8), fake_quant=st.sampled_from([LSQ(), DoReFa()]),
    per_channel=st.booleans(), blocks=st.booleans(),
)
def test_every_weight_goes_to_a_grid_point_beside_it(spec, bits, fake_quant, per_channel, blocks):
    laws.capture(spec.build())  # or it is refused honestly
    batches = [spec.inputs(4, seed) for seed in range(2)]
    weight = fxquant.QuantScheme(bits=bits, narrow=True, per_channel=per_channel)
    config = QuantConfig(weight=weight, fake_quant=fake_quant)
    prepared = fxquant.prepare_ptq(spec.build(), config=config)
    fxquant.calibrate(prepared, batches)
    before = codes(prepared)
    with suppress(ConfigError):  # some have no layer to learn
        fxquant.learn_rounding(prepared, batches, ("steps",) if blocks else (), steps=3, rate=0.5)
    for name, (ratio, scale) in codes(prepared).items():
        was, scale_before = before[name]
        torch.testing.assert_close(scale, scale_before, rtol=1e-6, atol=0)
        limit = was.clamp(weight.qmin, weight.qmax)
        assert ((ratio - limit).abs() < 1.001).all()
    x = spec.inputs(3, seed=9)
    laws.assert_equal(fxquant.convert(prepared)(x), prepared(x))


@pytest.mark.parametrize("blocks", [(), ("0",)])
def test_the_output_comes_nearer_to_that_of_the_float_network(blocks):
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(nn.Sequential(*convs), nn.Conv2d(8, 4, 1))
    wanted = model(BATCHES[0])
    fine = fxquant.QuantScheme(bits=16, symmetric=False)  # so that weights alone make errors
    prepared = calibrated(model, BATCHES, activation=fine)
    before = (prepared(BATCHES[0]) - wanted).square().mean()
    told = []
    fxquant.learn_rounding(
        prepared, BATCHES, blocks, steps=40, rate=0.1, tell=lambda *now: told.append(now)
    )
    assert (prepared(BATCHES[0]) - wanted).square().mean() < 0.8 * before
    units = 2 if blocks else 3  # the last layer lies outside
    assert told == [(i + 1, 40 * units) for i in range(40 * units)]


def test_the_largest_weight_of_a_channel_stays():
    weight = torch.tensor([[0.7, -0.32, 0.11], [-1.4, 0.5, 0.0]])
    quant = ObservedWeight(BINARY.with_bits(4), Channels())
    adaptive = AdaptiveRounding(quant, weight)
    torch.testing.assert_close(adaptive(weight), weight, rtol=0, atol=1e-4)  # starts as it is
    torch.testing.assert_close(adaptive.scale(weight), quant.scale(weight))
    with torch.no_grad():
        adaptive.rise.fill_(9.0)
    assert (adaptive.settled() * 10).round().int().tolist() == [[7, -3, 2], [-14, 6, 2]]
    with torch.no_grad():
        adaptive.rise.fill_(-9.0)
    assert (adaptive.settled() * 10).round().int().tolist() == [[7, -4, 1], [-14, 4, 0]]
    assert adaptive.penalty(2.0) == 0
    with torch.no_grad():
        adaptive.rise.fill_(0.0)
    assert adaptive.penalty(2.0).item() == pytest.approx(4 / 6)  # four may still go either way


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(3))
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()))


def test_what_is_left_alone():
    """Shared weights, modes, activations' ranges, biases, gradients."""
    torch.manual_seed(0)
    prepared = calibrated(Tied(), BATCHES).train()
    prepared.c.eval()
    modes = [m.training for m in prepared.modules()]
    before = copy.deepcopy(prepared.state_dict())
    fxquant.learn_rounding(prepared, BATCHES, steps=20, rate=0.1)
    after = prepared.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"c.weight"}
    assert list(before) == list(after)
    assert modes == [m.training for m in prepared.modules()]
    assert all(p.grad is None for p in prepared.parameters())


def test_a_failure_on_the_way_leaves_the_quantizers_in_their_places():
    prepared = calibrated(SPEC.build(), BATCHES)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = [type(m) for m in prepared.modules()]
    with pytest.raises(KeyboardInterrupt):
        fxquant.learn_rounding(prepared, BATCHES, steps=5, tell=stop)
    assert [type(m) for m in prepared.modules()] == before
    assert not any(m.training for m in prepared.modules())
    assert torch.equal(fxquant.convert(prepared)(BATCHES[0]), prepared(BATCHES[0]))


def test_what_cannot_be_learned_is_refused():
    prepared = calibrated(SPEC.build(), BATCHES)
    with pytest.raises(ConfigError, match="no module with a layer matches 'step'; did you mean"):
        fxquant.learn_rounding(prepared, BATCHES, ("step",))
    with pytest.raises(DataError, match="there is no batch"):
        fxquant.learn_rounding(prepared, [])
    for name, value in (("steps", 0), ("steps", 1.5), ("rate", 0.0), ("rate", float("nan"))):
        with pytest.raises(ConfigError, match=f"{name} .*, got {value}"):
            fxquant.learn_rounding(prepared, BATCHES, **{name: value})
    ternary = QuantConfig(weight=TERNARY, fake_quant=TWN())
    with pytest.raises(UncalibratedError, match="learn_rounding needs ranges"):
        fxquant.learn_rounding(fxquant.prepare_ptq(SPEC.build(), config=ternary), BATCHES)
    shaped = fxquant.prepare_ptq(SPEC.build(), config=ternary)
    fxquant.calibrate(shaped, BATCHES)
    with pytest.raises(ConfigError, match="no layer whose weight is its own and rounded as it is"):
        fxquant.learn_rounding(shaped, BATCHES)


def test_rounding_up_or_down_by_hand():
    """Weights 0.45 and 0.4 on x = (1, 1) give 0.85: to the nearest they give 0, but 1 is nearer."""
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.45, 0.4, 7.0]]))
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [-1.0, -1.0, 0.0]])
    prepared = calibrated(layer, [x], bits=4)
    fxquant.learn_rounding(prepared, [x], steps=300, rate=5e-2)
    (ratio, _), = codes(prepared).values()
    assert round_half_up(ratio)[0].tolist() == [1, 0, 7]
