"""benchmarks/equalization.py: what equalization gains, on small networks with random weights."""

import pytest
import torch
from torch import nn

import equalization as benchmark
from fxquant import QuantConfig
from measures import decibels


def batches():
    return list(torch.randn(5, 32, 1, 8, 8))


def network(act, seed=0):
    """A network with one block a stage, whose batch norms have seen random images."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model, data = benchmark.MobileNet(act, width=4, repeats=1), batches()
        for bn in model.modules():
            if isinstance(bn, nn.BatchNorm2d):
                nn.init.uniform_(bn.weight, 0.5, 1.5)
                nn.init.normal_(bn.bias, 0, 0.5)
                bn.momentum = None
        for x in data[:4]:
            model(x)
    return model.eval(), data


def gain(model, data, weights):
    """How many dB equalization gains."""
    *ranges, x = data
    with torch.no_grad():
        expected = model(x)
    found = []
    for options in ({"batch_norm": "fold"}, benchmark.EQUALIZE):
        config = QuantConfig(weight=benchmark.WEIGHTS[weights], **options)
        quantized = benchmark.quantize(model, ranges, config, from_data=False)
        found.append(decibels(expected, quantized(x)))
    return found[1] - found[0]


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_badly_scaled_channels_gain_much(act):
    """Of 20 seeds none gained less than 17 dB."""
    model, data = network(act)
    benchmark.rescale(model, 6, torch.Generator().manual_seed(0))
    assert gain(model, data, "per tensor") > 10


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_even_channels_with_a_scale_each_gain_little(act):
    """Of 20 seeds none gained or lost more than 1.6 dB."""
    model, data = network(act)
    assert abs(gain(model, data, "per channel")) < 3


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("repeats", [1, 3])
def test_rescaling_keeps_every_bit(act, repeats):
    torch.manual_seed(0)
    model, x = benchmark.MobileNet(act, 2, repeats).eval(), torch.randn(4, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        benchmark.rescale(model, 6, torch.Generator().manual_seed(0))
        assert torch.equal(model(x), expected)
    moved = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    norms = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    linear = {name for name in norms if name.endswith("bn3.weight")}
    assert moved & norms == (norms if act is nn.ReLU else linear)
