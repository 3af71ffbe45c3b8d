"""benchmarks/equalization.py: what equalization gains, on small networks with random weights."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxquant import QuantConfig

FILE = Path(__file__).parents[1] / "benchmarks" / "equalization.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("equalization_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def batches():
    return list(torch.randn(5, 32, 1, 8, 8))


def network(benchmark, act, seed=0):
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


def gain(benchmark, model, data, weights):
    """How many dB equalization gains."""
    *ranges, x = data
    with torch.no_grad():
        expected = model(x)
    found = []
    for options in ({"batch_norm": "fold"}, benchmark.EQUALIZE):
        config = QuantConfig(weight=benchmark.WEIGHTS[weights], **options)
        quantized = benchmark.quantize(model, ranges, config, from_data=False)
        found.append(benchmark.decibels(expected, quantized(x)))
    return found[1] - found[0]


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_badly_scaled_channels_gain_much(benchmark, act):
    """Of 20 seeds none gained less than 17 dB."""
    model, data = network(benchmark, act)
    benchmark.rescale(model, 6, torch.Generator().manual_seed(0))
    assert gain(benchmark, model, data, "per tensor") > 10


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_even_channels_with_a_scale_each_gain_little(benchmark, act):
    """Of 20 seeds none gained or lost more than 1.6 dB."""
    model, data = network(benchmark, act)
    assert abs(gain(benchmark, model, data, "per channel")) < 3


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("repeats", [1, 3])
def test_rescaling_keeps_every_bit(benchmark, act, repeats):
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


def test_decibels_by_hand(benchmark):
    """An error of 0.1 beside a signal of 1 lies 20 dB below it."""
    signal = torch.tensor([1.0, -1.0])
    assert benchmark.decibels(signal, torch.tensor([1.1, -0.9])) == pytest.approx(20, abs=1e-4)
    assert benchmark.decibels(signal, signal) == float("inf")
