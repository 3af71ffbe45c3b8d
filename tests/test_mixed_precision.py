"""How many bits each layer needs: what is measured, and that the choice is the best there is."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import BINARY, INQ, TERNARY, TWN, QuantConfig
from fxquant.errors import ConfigError, DataError
from fxquant.layer_costs import Layer, Sensitivity
from fxquant.mixed_precision import cheapest
from fxquant.sites.flow import sites
from tests import laws
from tests.strategies import chain, net_specs

SPEC = chain("conv", "bn", "relu", "conv_depthwise", "down_and_up", "conv", head=True)
BATCHES = [SPEC.inputs(4, seed) for seed in range(2)]


@settings(deadline=None, max_examples=100)
@given(
    options=st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.floats(0, 10)), min_size=1, max_size=4),
        min_size=1, max_size=5,
    ),
    spare=st.integers(0, 40),
)
def test_no_choice_is_better(options, spare):
    """Against every one there is."""
    prices = [[price for price, _ in layer] for layer in options]
    costs = [[cost for _, cost in layer] for layer in options]
    budget = sum(map(min, prices)) + spare
    picks = cheapest(prices, costs, budget)

    def total(table, picks):
        return sum(row[pick] for row, pick in zip(table, picks, strict=True))

    ways = itertools.product(*(range(len(layer)) for layer in options))
    best = min(total(costs, way) for way in ways if total(prices, way) <= budget)
    assert total(prices, picks) <= budget
    assert total(costs, picks) == pytest.approx(best)


@settings(deadline=None, max_examples=10)
@given(spec=net_specs(5))
def test_more_bits_cost_less_and_the_model_is_not_touched(spec):
    model = spec.build()
    laws.capture(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        found = fxquant.sensitivity(model, [spec.inputs()], bits=(1, 2, 12))
    except DataError:
        return  # a network that has no number in its output
    for layer in found.layers:
        assert layer.cost[12] <= layer.cost[2] * 1e-3 + 1e-9
        assert layer.weights > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_noise_by_hand():
    """One weight, 0.4 beside 1 in 2 bits: 0 beside 1. On x = (1, 0): all of y is noise."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.4, 1.0]]))
    (one,) = fxquant.sensitivity(layer, [torch.tensor([[1.0, 0.0]])], bits=(2, 4)).layers
    assert one.cost[2] == pytest.approx(1.0)
    assert one.cost[4] == pytest.approx(((0.4 - 3 / 7) / 0.4) ** 2, rel=1e-4)
    assert (one.weights, one.products, one.activation) == (2, 2, 8)


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(weight=BINARY), QuantConfig(fake_quant=INQ("uniform")),
        QuantConfig(weight_fake_quant=INQ()), QuantConfig(weight_fake_quant=TWN(), weight=TERNARY),
    ],
    ids=("binary", "uniform", "powers of two", "ternary"),
)
def test_it_is_compared_with_the_float_model(config):
    """However weights are rounded: but for the one layer, nothing is."""
    found = fxquant.sensitivity(SPEC.build(), BATCHES, bits=(2, 16), config=config)
    powers = config.weight_fake_quant == INQ()
    for layer in found.layers:
        assert layer.cost[16] < (layer.cost[2] if powers else 1e-7) <= layer.cost[2]


def test_the_rise_of_a_loss_with_labels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(16, 12), torch.arange(16) % 3) for _ in range(2)]
    told = []
    found = fxquant.sensitivity(
        model, batches, bits=(2, 8), tell=lambda *now: told.append(now),
        loss=lambda y, batch: F.cross_entropy(y, batch[1]),
    )
    assert told == [(1, 2), (2, 2)]
    assert found.measure == "loss"
    quantized = nn.Sequential(*model)
    before = [F.cross_entropy(model(x), y).item() for x, y in batches]
    with torch.no_grad():
        weight = model[1].weight.clone()
        scale = weight.abs().amax(1, keepdim=True)
        model[1].weight.copy_((weight / scale + 0.5).floor() * scale)
    after = [F.cross_entropy(quantized(x), y).item() for x, y in batches]
    assert found.layers[0].cost[2] == pytest.approx((sum(after) - sum(before)) / 2, abs=1e-5)
    assert "+" in str(found) or "-" in str(found)


class Layers(nn.Module):
    """3 to 6 channels on 8 × 8, half the size, back to 8 × 8 with 2 groups, then 10 of a mean."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, 2, 1)
        self.b = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.c = nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2)
        self.d = nn.Linear(4, 10)

    def forward(self, x):
        return self.d(self.c(self.b(self.b(self.a(x)))).mean((2, 3)))


def test_weights_and_products_are_counted():
    found = fxquant.sensitivity(Layers(), [torch.randn(2, 3, 8, 8)], bits=(4,))
    counted = {layer.sites: (layer.weights, layer.products) for layer in found.layers}
    assert counted == {
        ("a",): (6 * 27, 6 * 16 * 27),
        ("b", "b_1"): (6 * 9, 2 * 6 * 16 * 9),  # called twice, stored once
        ("c",): (6 * 2 * 16, 6 * 16 * 2 * 16),  # each input goes to 2 channels, 16 places
        ("d",): (40, 40),
    }


@pytest.mark.parametrize("budget", [{"size": 150.0}, {"bit_operations": 3e5}])
def test_what_is_chosen_is_what_is_prepared(budget):
    torch.manual_seed(0)
    model, x = Layers(), torch.randn(2, 3, 8, 8)
    found = fxquant.sensitivity(model, [x], bits=(2, 4, 8))
    chosen = fxquant.choose_bits(found, **budget)
    prepared = fxquant.prepare_qat(model, config=QuantConfig(overrides=chosen.overrides))
    bits = {
        node.name: site.weight_quant.scheme.bits
        for node, site in sites(prepared)
        if site.weight_quant is not None
    }
    assert bits == chosen.bits
    assert len(set(bits.values())) > 1
    by_site = {layer.sites[0]: layer for layer in found.layers}
    if "size" in budget:
        spent = sum(layer.weights * bits[site] for site, layer in by_site.items()) / 8
    else:
        spent = sum(layer.products * 8 * bits[site] for site, layer in by_site.items())
    assert chosen.spent == spent <= next(iter(budget.values()))
    laws.settle(prepared, x)
    laws.assert_equal(fxquant.convert(prepared)(x), prepared(x))


def test_hundreds_of_layers_are_chosen_exactly_and_soon():
    generator = torch.Generator().manual_seed(0)
    sizes = (torch.randint(1, 65, (150,), generator=generator) * 576).tolist()
    noise = torch.rand(150, generator=generator).tolist()
    layers = tuple(
        Layer((f"l{i}",), "", size, size, 8, {b: n * 4.0**-b for b in (2, 4, 8)})
        for i, (size, n) in enumerate(zip(sizes, noise, strict=True))
    )
    chosen = fxquant.choose_bits(Sensitivity(layers, (2, 4, 8), "noise"), size=sum(sizes) / 2)
    assert chosen.spent <= sum(sizes) / 2
    assert chosen.spent > 0.999 * sum(sizes) / 2
    assert chosen.cost < sum(n * 4.0**-4 for n in noise)  # 4 bits everywhere take as much


def test_mistakes():
    model = SPEC.build()
    found = fxquant.sensitivity(model, BATCHES, bits=(4, 8))
    with pytest.raises(ConfigError, match="takes one budget"):
        fxquant.choose_bits(found)
    with pytest.raises(ConfigError, match="takes one budget"):
        fxquant.choose_bits(found, size=1.0, bit_operations=1.0)
    with pytest.raises(ConfigError, match="size=10 is below .*, which 4 bits take everywhere"):
        fxquant.choose_bits(found, size=10.0)
    with pytest.raises(ConfigError, match="bit_operations is a positive number, got nan"):
        fxquant.choose_bits(found, bit_operations=math.nan)
    with pytest.raises(ConfigError, match="1 to 16 bits, got bits=17"):
        fxquant.sensitivity(model, BATCHES, bits=(17,))
    with pytest.raises(ConfigError, match="some numbers of bits, got none"):
        fxquant.sensitivity(model, BATCHES, bits=())
    with pytest.raises(DataError, match="no batch"):
        fxquant.sensitivity(model, [])
    with pytest.raises(DataError, match="holds NaN"):
        fxquant.sensitivity(model, [BATCHES[0] * math.nan])


def test_it_is_shown(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `see`")
    found = fxquant.sensitivity(SPEC.build(), BATCHES, bits=(2, 8))
    assert str(found).splitlines()[0].split() == ["layer", "weights", "2", "b", "8", "b", "(dB)"]
    chosen = fxquant.choose_bits(found, size=1e4)
    assert set(chosen.bits.values()) == {8}
    found.plot(tmp_path / "bits.svg", chosen.bits)
    assert b"<svg" in (tmp_path / "bits.svg").read_bytes()
    with pytest.raises(ConfigError, match="ends in .png, .svg or .pdf"):
        found.plot(tmp_path / "bits.txt")
