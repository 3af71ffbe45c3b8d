"""Wider layers of fewer bits: what they take is counted, and what they compute is what ships."""

import pytest
import torch
from torch import nn

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.layer_costs import Sensitivity
from fxquant.schemes import UINT8
from tests import laws

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )


def spent(width: int, bits: int, **budget: float) -> float:
    """What the inner layer takes with weights of so many bits: bytes, or bit operations."""
    config = QuantConfig(activation=UINT8.with_bits(bits))
    found = fxquant.sensitivity(network(width).eval(), [X], (bits,), config)
    inner = Sensitivity(found.layers[1:2], found.bits, found.measure)
    return fxquant.choose_bits(inner, **budget).spent


def test_twice_the_width_takes_a_quarter_of_the_bits():
    """9·w² weights: 8 bits for w = 8 are as many bytes as 2 bits for w = 16, and the products, of
    activations with as few bits, a quarter of the bit operations.
    """
    assert spent(8, 8, size=1e9) == spent(16, 2, size=1e9) == 9 * 64
    assert spent(8, 8, bit_operations=1e12) == 4 * spent(16, 2, bit_operations=1e12)


@pytest.mark.parametrize(("width", "bits"), [(8, 4), (16, 4), (16, 2), (32, 2)])
def test_they_train_and_ship(width, bits):
    config = QuantConfig(
        weight=QuantScheme(bits, narrow=True, per_channel=True), activation=UINT8.with_bits(bits),
        first_last_bits=8, fake_quant=fxquant.LSQ(),
    )
    prepared = fxquant.prepare_qat(network(width), config=config)
    prepared(X).square().mean().backward()
    laws.assert_equal(fxquant.convert(prepared)(X), prepared.eval()(X))
