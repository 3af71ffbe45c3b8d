"""Stochastic rounding in training: up with the probability of the fraction, so right on average.

    forward    c = floor(x / s + u)        u uniform in [0, 1), drawn anew for every element
    backward   straight through, 0 where the code was clamped

eval() and the integers round to the nearest. Scales follow what comes by.

Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import ObservedStep, ObservedWeight
from fxquant.fake_quant.projection import Projection
from fxquant.fake_quant.straight_through import fake_quantize, round_to_grid
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import EVERYWHERE, Channels, Ends, QParams, QuantScheme


@dataclass(frozen=True)
class ByChance(Projection):
    """To one of the two codes around, to the nearer one more often."""

    def activation(
        self, x: Tensor, q: QParams, limits: Ends, extremes: Ends = EVERYWHERE
    ) -> Tensor:
        """Limited before anything is drawn."""
        if limits != EVERYWHERE:
            x = F.hardtanh(x, *limits)
        return fake_quantize(_moved(x, q.scale), q)

    def weight(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The largest are codes already, and stay."""
        return round_to_grid(_moved(weight, scale), scale)


def _moved(x: Tensor, scale: Tensor) -> Tensor:
    """So far that the nearest code is the one that was drawn: floor(x/s + u) is
    floor((x + (u - 1/2)·s)/s + 1/2). A code stays, whatever is drawn.
    """
    by = (torch.rand_like(x, dtype=torch.float32) - 0.5).clamp(-0.499, 0.499)
    return x + (by * scale).to(x.dtype)


@dataclass(frozen=True)
class Stochastic(FakeQuant):
    """As StraightThrough, but what lies between two codes goes to either, by chance."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With the range that `observer` proposes."""
        return ObservedStep(scheme, observer, ByChance())

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With the largest weight of each channel."""
        return ObservedWeight(scheme, channels, ByChance())
