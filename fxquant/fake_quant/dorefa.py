"""Weights bent by tanh, so that a few large ones do not take the codes of all others.

    w_q = round(t / s)        t = max|w| · tanh(w) / max|tanh(w)|        s = max|t| / qmax

The paper's grid goes from -1 to 1 in 2^k levels, of which none is 0. Ours is the scheme's, which
holds 0, and keeps max|w|, so that a network trained in float stays what it is; a batch norm behind
would divide that out. The paper's clamp of activations to [0, 1] is an activation of the network,
`nn.Hardtanh(0, 1)`, whose range is known and which is fused. Gradients follow the tanh.

Source: Zhou et al. 2016, "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with
Low Bitwidth Gradients", section 2.3; for 1 bit see few_levels.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import ObservedStep
from fxquant.fake_quant.stages import StagedWeight, Tanh
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import Channels, QuantScheme


@dataclass(frozen=True)
class DoReFa(FakeQuant):
    """Weights are bent by tanh before they are rounded; activations are as by StraightThrough."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With the range that `observer` proposes."""
        return ObservedStep(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """Bent, then with the largest weight of each channel."""
        return StagedWeight(scheme, channels, Tanh())
