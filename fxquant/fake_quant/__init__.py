"""Fake-quants round values to their integer grid while the network trains. One a file."""

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.straight_through import fake_quantize, round_to_grid
from fxquant.fake_quant.weight import WeightFakeQuant

__all__ = ["ActivationFakeQuant", "WeightFakeQuant", "fake_quantize", "round_to_grid"]
