"""Fake-quants round values to their integer grid while the network trains. One a file."""

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.learned_step import LearnedStep
from fxquant.fake_quant.observed_step import ObservedStep
from fxquant.fake_quant.straight_through import fake_quantize, round_to_grid
from fxquant.fake_quant.weight import WeightFakeQuant

__all__ = [
    "ActivationFakeQuant",
    "LearnedStep",
    "ObservedStep",
    "WeightFakeQuant",
    "fake_quantize",
    "round_to_grid",
]
