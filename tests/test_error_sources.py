"""benchmarks/error_sources.py: which value's rounding costs most, and which image's."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

import error_sources
import fxquant


@pytest.mark.parametrize("coarse", ["first", "second"])
def test_the_value_with_two_bits_costs_most(coarse):
    torch.manual_seed(0)
    names = ("first", "relu", "second", "tanh", "last")
    layers = (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    net = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    x = torch.randn(32, 4)
    config = fxquant.QuantConfig(overrides=(fxquant.Override(path=coarse, activation=2),))
    prepared = fxquant.prepare_qat(net, x, config)
    prepared(x)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}

    found = error_sources.of_values(prepared.eval(), x)

    assert (found.number, found.worst) == (4, coarse)  # the ReLU is the first layer's
    assert found.alone < 20 < error_sources.of_values(prepared_in_8_bits(net, x), x).alone
    assert found.together == pytest.approx(found.alone, abs=1)
    after = prepared.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def prepared_in_8_bits(net, x):
    prepared = fxquant.prepare_qat(net, x)
    prepared(x)
    return prepared.eval()


def test_one_image_makes_nine_tenths_of_the_error():
    real = torch.ones(3, 2)
    ours = real + torch.tensor([[0.3, 0.0], [0.0, 0.1], [0.0, 0.0]])
    found = error_sources.of_images(real, ours)
    assert found.share == pytest.approx(0.9)
    assert found.median == pytest.approx(10 * math.log10(2 / 0.1**2), abs=1e-4)


def test_no_error_is_no_images():
    same = torch.ones(3, 2)
    assert error_sources.of_images(same, same) == error_sources.OfImages(math.inf, 0.0)
