"""Layers of integer weights between float values: dynamic ranges, and weights alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import Override, QuantConfig, QuantScheme
from fxquant.errors import ConfigError, NonFiniteError, StageError
from fxquant.sites.quantized_layer import IntegerLayer, QuantizedLayer
from tests import laws
from tests.strategies import NetSpec, chain, net_specs

SPEC = chain("conv", "bn", "relu", "dropout", "conv", "sigmoid", head=True)
DYNAMIC, WEIGHT_ONLY = QuantConfig(mode="dynamic"), QuantConfig(mode="weight_only")
INT4 = QuantScheme(4, narrow=True, per_channel=True)
GROUPS = QuantConfig(mode="weight_only", weight=INT4, group_size=4)


def test_a_dynamic_linear_layer_by_hand():
    """x = [-1, 2.2, 3], weights [127, -64, 1]·4/127: s_x = 4/255, z_x = 64, q_x = 0, 204, 255.

    Σ w_q·(q_x - z_x) = 127·(-64) - 64·140 + 1·191 = -16897, times 4/255 · 4/127, plus ½.
    """
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -64.0, 1.0]]) / 127 * 4)
        layer.bias.fill_(0.5)
    quantized = fxquant.convert(fxquant.prepare_ptq(nn.Sequential(layer), config=DYNAMIC))
    (integers,) = [m for m in quantized.modules() if isinstance(m, IntegerLayer)]
    assert integers.weight.tolist() == [[127, -64, 1]]
    assert integers.weight.dtype is torch.int8
    expected = -16897 * (4 / 255) * (4 / 127) + 0.5
    assert float(quantized(torch.tensor([[-1.0, 2.2, 3.0]]))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", [DYNAMIC, WEIGHT_ONLY], ids=["dynamic", "weight_only"])
@settings(max_examples=15, deadline=None)
@given(spec=net_specs(5))
def test_eval_is_convert(config, spec: NetSpec):
    prepared = fxquant.prepare_ptq(spec.build(), config=config)
    quantized = fxquant.convert(prepared)
    for x in (spec.inputs(), 9 * spec.inputs(3, 1), spec.inputs() * math.nan):
        for ours, theirs in zip(laws.flat(quantized(x)), laws.flat(prepared(x)), strict=True):
            assert ours is theirs is None or torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert not any(isinstance(m, QuantizedLayer) for m in quantized.modules())


@pytest.mark.parametrize("config", [DYNAMIC, WEIGHT_ONLY, GROUPS], ids=lambda c: c.mode)
def test_it_is_near_the_float_network_and_smaller(config):
    net = SPEC.build().eval()
    prepared = fxquant.prepare_ptq(net, config=config)
    quantized = fxquant.convert(prepared)
    x = SPEC.inputs(8)
    error = (quantized(x) - net(x)).norm() / net(x).norm()
    assert 0 < error < (0.02 if config.weight.bits == 8 else 0.1)
    layers = [m for m in quantized.modules() if isinstance(m, IntegerLayer)]
    assert len(layers) == 3
    assert not any(p.dim() > 1 for p in quantized.parameters())


def test_groups_have_scales_of_their_own():
    layer = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0] * 4 + [0.07] * 4, [0.7] * 4 + [70.0] * 4]))
    quantized = fxquant.convert(fxquant.prepare_ptq(nn.Sequential(layer), config=GROUPS))
    (integers,) = [m for m in quantized.modules() if isinstance(m, IntegerLayer)]
    assert integers.scale.tolist() == pytest.approx([1.0, 0.01, 0.1, 10.0])
    torch.testing.assert_close(quantized(torch.eye(8)), layer.weight.detach().T)


@given(st.integers(1, 4), st.integers(2, 16), st.booleans())
@settings(max_examples=20, deadline=None)
def test_sums_are_exact(width, bits, symmetric):
    """Against Python's integers: with weights of 1 and inputs on the grid nothing is rounded."""
    scheme = QuantScheme(bits, signed=True, symmetric=symmetric)
    layer = nn.Linear(width, 1, bias=False)
    nn.init.ones_(layer.weight)
    config = QuantConfig(mode="dynamic", activation=scheme)
    quantized = fxquant.convert(fxquant.prepare_ptq(nn.Sequential(layer), config=config))
    x = torch.full((1, width), 3.0)
    torch.testing.assert_close(quantized(x), torch.full((1, 1), 3.0 * width))


@pytest.mark.parametrize("config", [DYNAMIC, WEIGHT_ONLY, GROUPS], ids=lambda c: c.mode)
def test_it_trains(config):
    prepared = fxquant.prepare_qat(SPEC.build(), config=config).train()
    prepared(SPEC.inputs()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
    quantized = fxquant.convert(prepared)
    assert torch.equal(quantized(SPEC.inputs()), prepared.eval()(SPEC.inputs()))


@pytest.mark.parametrize("config", [DYNAMIC, WEIGHT_ONLY], ids=lambda c: c.mode)
def test_half_precision_leaves_scales_alone(config):
    """A scale of 1e-9 would be 0."""
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.mul_(1e-7)
    quantized = fxquant.convert(fxquant.prepare_ptq(net, config=config))
    (layer,) = [m for m in quantized.modules() if isinstance(m, IntegerLayer)]
    expected = layer.scale.clone()
    y = quantized.half()(torch.ones(1, 3).half())
    assert y.dtype is torch.float16
    assert torch.equal(layer.scale, expected)


def test_batches_without_a_range_are_left_as_they_are():
    quantized = fxquant.convert(fxquant.prepare_ptq(SPEC.build(), config=DYNAMIC))
    assert quantized(SPEC.inputs() * math.inf).isnan().all()
    conv = fxquant.prepare_ptq(chain("conv").build(), config=DYNAMIC)
    assert fxquant.convert(conv)(SPEC.inputs()[:0]).shape[0] == 0


def test_overrides_and_first_and_last_layers():
    config = QuantConfig(
        mode="weight_only", weight=INT4, first_last_bits=8,
        overrides=(Override(path="classifier", weight=6),),
    )
    prepared = fxquant.prepare_ptq(SPEC.build(), config=config)
    bits = [m.weight_quant.scheme.bits for m in prepared.modules() if isinstance(m, QuantizedLayer)]
    assert bits == [8, 4, 6]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "online"}, "mode is 'static', 'dynamic' or 'weight_only', got 'online'"),
        ({"group_size": 4}, "group_size needs mode='weight_only'"),
        ({"mode": "weight_only", "group_size": 0}, "a number of weights, got 0"),
        ({"mode": "weight_only", "group_size": 2, "weight": QuantScheme()}, "per_channel=True"),
        ({"mode": "dynamic", "batch_norm": "fold", "equalize": True}, "needs mode='static'"),
        (
            {"mode": "weight_only", "overrides": (Override(path="*", activation=4),)},
            "sets what mode='weight_only' does not read",
        ),
    ],
)
def test_settings_that_do_not_go_together(wrong, message):
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**wrong)


def test_refusals():
    with pytest.raises(ConfigError, match=r"group_size=5 does not divide the 36 weights .*steps_0"):
        fxquant.prepare_ptq(
            SPEC.build(), config=QuantConfig(mode="weight_only", group_size=5)
        )
    prepared = fxquant.prepare_ptq(SPEC.build(), config=WEIGHT_ONLY)
    with pytest.raises(StageError, match="a float graph with quantized layers"):
        fxquant.calibrate(prepared, [SPEC.inputs()])
    with pytest.raises(StageError, match="a float graph with integer layers"):
        fxquant.audit(fxquant.convert(prepared))
    with torch.no_grad():
        prepared.steps[0].weight[0] = math.nan
    with pytest.raises(NonFiniteError, match="steps_0"):
        fxquant.convert(prepared)
