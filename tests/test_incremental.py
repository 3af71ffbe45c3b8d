"""Incremental quantization: a share of the weights stands on codes, the rest trains on."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import INQ, LSQ, Override, QuantConfig, QuantScheme
from fxquant.errors import ConfigError, NonFiniteError, StageError
from fxquant.schemes import INT8_WEIGHT, UINT8, Channels
from fxquant.sites.flow import sites
from tests import laws
from tests.strategies import chain, net_specs

SPEC = chain("conv", "bn", "relu", "conv_depthwise", "conv_transposed", head=True)
CODES = st.sampled_from(("powers_of_two", "uniform"))
SHARES = (0.0, 0.5, 0.875, 1.0)


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizer(weight, codes="powers_of_two", **scheme):
    scheme = QuantScheme(**{"bits": 4, "narrow": True} | scheme)
    return INQ(codes).weight(scheme, Channels(), weight)


def prepared(config=None, spec=SPEC):
    return fxquant.prepare_qat(spec.build(), config=config or QuantConfig(fake_quant=INQ()))


def step(network, x, rate=0.05):
    """One step of gradient descent with momentum and weight decay."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        found = [y for y in laws.flat(network(x)) if y is not None and y.requires_grad]
        if not found:
            return
        sum(y.tanh().square().mean() for y in found).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


@settings(max_examples=15, deadline=None)
@given(
    spec=net_specs(5), codes=CODES, bits=st.integers(2, 9), per_channel=st.booleans(),
    power_of_two=st.booleans(), fold=st.booleans(),
)
def test_at_every_share_eval_is_convert(spec, codes, bits, per_channel, power_of_two, fold):
    laws.capture(spec.build())  # or it is refused honestly
    weight = QuantScheme(
        bits=bits, narrow=True, per_channel=per_channel, power_of_two=power_of_two
    )
    config = QuantConfig(
        weight=weight, weight_fake_quant=INQ(codes), batch_norm="fold" if fold else "train"
    )
    network = prepared(config, spec)
    if not any(site.weight_quant for _, site in sites(network)):
        return
    for share in SHARES:
        fxquant.fix_weights(network, share)
        step(network, spec.inputs(4))
        x = spec.inputs(3, seed=7)
        quantized = fxquant.convert(network)
        laws.assert_equal(quantized(x), network.eval()(x))
        fresh = prepared(config, spec)
        fresh.load_state_dict(network.state_dict())
        laws.assert_equal(fresh.eval()(x), network(x))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99), codes=CODES, bits=st.integers(2, 9), per_channel=st.booleans(),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4).map(sorted),
)
def test_the_largest_are_fixed_and_stay(seed, codes, bits, per_channel, shares):
    """Of each step, against Python's sorted; whatever becomes of the weights in between."""
    weight = values(seed, 5, 7)
    quant = quantizer(weight, codes, bits=bits, per_channel=per_channel)
    fixed = set()
    for number, share in enumerate(shares):
        order = sorted(set(range(35)) - fixed, key=lambda i: -abs(float(weight.view(-1)[i])))
        fixed |= set(order[: math.floor(share * 35 + 0.5) - len(fixed)])
        before, of_before = quant(weight).detach(), quant.fixed.clone()
        quant.fix(weight, share)
        assert set(quant.fixed.flatten().nonzero().flatten().tolist()) == fixed
        assert torch.equal(quant(weight)[of_before], before[of_before])
        again = copy.deepcopy(quant.state_dict())
        quant.fix(weight + 1, share)
        assert all(torch.equal(v, again[k]) for k, v in quant.state_dict().items())
        weight = torch.where(quant.fixed, values(seed + number, 5, 7), weight * 1.1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), codes=CODES, bits=st.integers(2, 9), share=st.floats(0, 1))
def test_training_sees_codes_where_they_are_fixed_and_has_no_gradient_there(
    seed, codes, bits, share
):
    weight = values(seed, 4, 3, 3, 3).requires_grad_()
    quant = quantizer(weight, codes, bits=bits)
    quant.fix(weight, share)
    y = quant(weight)
    y.backward(torch.ones_like(y))
    assert torch.equal(weight.grad, (~quant.fixed).float())
    assert torch.equal(y[~quant.fixed], weight[~quant.fixed])
    assert torch.equal(y[quant.fixed], quant.eval()(weight)[quant.fixed])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), bits=st.integers(2, 9), power_of_two=st.booleans())
def test_codes_are_the_papers(seed, bits, power_of_two):
    """Equation 4 in plain Python: the element β of P with (α+β)/2 <= |w| < 3β/2, α before it."""
    weight = values(seed, 1, 40)
    quant = quantizer(weight, bits=bits, power_of_two=power_of_two)
    quant.fix(weight, 1.0)
    largest = max(map(abs, weight.flatten().tolist()))
    top = largest
    if power_of_two:  # equation 1: n1 = floor(log2(4·max / 3))
        top = 2.0 ** math.floor(math.log2(4 * largest / 3))
    levels = [0.0, *(top / 2**k for k in reversed(range(bits - 1)))]
    for w, found in zip(weight.flatten().tolist(), quant(weight).flatten().tolist(), strict=True):
        expected = 0.0
        for alpha, beta in itertools.pairwise(levels):
            expected = beta if (alpha + beta) / 2 <= abs(w) else expected
        assert found == pytest.approx(math.copysign(expected, w), rel=1e-6)


def test_by_hand():
    """max|w| = 6 in 4 bits: s = 6/4, codes up to 4. 2 of 5 are fixed: 6 and -4, which are 4 and -2:
    4/1.5 = 2.67 lies in [1.5, 3). Then 3 of 5, with the scale as it stands: 5.1/1.5 is 4.
    """
    weight = torch.tensor([[6.0, -4.0, 1.0, 0.4, -0.2]])
    quant = quantizer(weight)
    quant.fix(weight, 0.4)
    assert quant.codes.tolist() == [[4, -2, 0, 0, 0]]
    torch.testing.assert_close(quant(weight), torch.tensor([[6.0, -3.0, 1.0, 0.4, -0.2]]))
    weight[0, 4] = -5.1  # the rest trained on
    quant.fix(weight, 0.6)
    assert quant.codes.tolist() == [[4, -2, 0, 0, -4]]
    quant.fix(weight, 1.0)
    assert quant.codes.tolist() == [[4, -2, 1, 0, -4]]
    assert quant.step.tolist() == [1.5]


def test_a_channel_has_its_scale_from_its_first_fixed_weight_on():
    weight = torch.tensor([[7.0, 3.0], [0.7, 0.1]])
    quant = quantizer(weight, "uniform", per_channel=True)
    quant.fix(weight, 0.5)
    assert quant.step.tolist() == [1.0, 0.0]
    weight = torch.tensor([[99.0, 99.0], [1.4, 0.2]])
    assert quant.scale(weight).tolist() == pytest.approx([1.0, 0.2])
    quant.fix(weight, 1.0)
    assert quant.codes.tolist() == [[7, 3], [7, 1]]


def test_fixed_codes_are_those_that_ship():
    """After steps with momentum and weight decay, which move the parameters all the same. (A batch
    norm with a negative factor would turn their signs.)
    """
    spec = chain("conv", "relu", "conv_depthwise", "conv_transposed", head=True)
    network = prepared(QuantConfig(weight=INT8_WEIGHT.with_bits(4), fake_quant=INQ()), spec)
    fxquant.fix_weights(network, 0.5)
    fixed = {node.name: site.weight_quant for node, site in sites(network) if site.weight_quant}
    before = {name: (q.codes * q.fixed).clone() for name, q in fixed.items()}
    step(network, SPEC.inputs(8))
    quantized = fxquant.convert(network)
    shipped = {n.target.split(".")[-1]: n for n in quantized.graph.nodes if n.op == "call_module"}
    for name, codes in before.items():
        found = quantized.get_submodule(shipped[name].target).weight
        assert torch.equal(found[fixed[name].fixed], codes[fixed[name].fixed])
        assert set(found.flatten().tolist()) <= {0, 1, 2, 4, -1, -2, -4}


def test_a_layer_called_twice_and_a_tied_weight_have_one_set_of_codes():
    spec = chain("conv", "again", "relu", "tied")
    network = prepared(spec=spec)
    fxquant.fix_weights(network, 0.5)
    step(network, spec.inputs(4))
    fxquant.fix_weights(network, 1.0)
    first, *others = [site.weight_quant.codes for _, site in sites(network)]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_layers_between_float_values(mode):
    group = 4 if mode == "weight_only" else None
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4) if group is None else nn.ReLU())
    config = QuantConfig(mode=mode, weight_fake_quant=INQ("uniform"), group_size=group)
    network, x = fxquant.prepare_qat(net, config=config), values(0, 5, 8)
    for share in SHARES:
        fxquant.fix_weights(network, share)
        step(network, x)
        assert torch.equal(fxquant.convert(network)(x), network.eval()(x))


def test_chosen_for_some_layers_beside_other_methods(tmp_path):
    config = QuantConfig(
        activation=UINT8.with_bits(4), fake_quant=LSQ(),
        overrides=(Override(path="steps.3", weight_fake_quant=INQ("uniform")),),
    )
    network = prepared(config)
    fxquant.fix_weights(network, 1.0)
    step(network, SPEC.inputs(4))
    x = SPEC.inputs(2, 9)
    assert torch.equal(fxquant.convert(network)(x), network.eval()(x))
    pytest.importorskip("yaml", reason="pyyaml is in the extra `yaml`")
    fxquant.save_config(config, tmp_path / "c.yaml")
    assert fxquant.load_config(tmp_path / "c.yaml") == config
    pytest.importorskip("safetensors", reason="safetensors is in the extra `save`")
    fxquant.save(network, tmp_path / "n.safetensors")
    assert torch.equal(fxquant.load(tmp_path / "n.safetensors")(x), network(x))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf, "all", None, True])
def test_a_share_lies_in_0_and_1(share):
    with pytest.raises(ConfigError, match=r"share lies in \[0, 1\], got"):
        fxquant.fix_weights(prepared(), share)


def test_what_cannot_be_fixed_changes_nothing():
    network = prepared()
    fxquant.fix_weights(network, 0.5)
    with pytest.raises(ConfigError, match=r"share=0.25, but 72 of 144 weights of .*steps_0.*stay"):
        fxquant.fix_weights(network, 0.25)
    with torch.no_grad():
        network.get_parameter("classifier.weight")[0, 0] = math.nan
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(NonFiniteError, match="the weight of .*classifier.* holds NaN"):
        fxquant.fix_weights(network, 1.0)
    for name, value in network.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())
    with pytest.raises(ConfigError, match="no weight is fixed step by step"):
        fxquant.fix_weights(prepared(QuantConfig()), 0.5)
    with pytest.raises(StageError, match="fix_weights takes what prepare_qat returned, got"):
        fxquant.fix_weights(SPEC.build(), 0.5)
    with pytest.raises(ConfigError, match="'powers_of_two' or 'uniform', got 'uniforn'"):
        INQ("uniforn")
