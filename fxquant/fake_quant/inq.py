"""Incremental quantization: a growing share of the weights stands on codes, the rest trains on.

    train()    y = q · s where fixed, w elsewhere                dw = 0 where fixed, dy elsewhere
    eval()     y = q · s everywhere, the rest rounded as it is

`fix_weights(prepared, share)` fixes the largest weights of each layer, by absolute value, up to a
share; what is fixed stays, whatever an optimizer does. The scale of a channel stands from its first
fixed weight on, its largest one, and follows the largest until then. Codes are

    powers_of_two    0 and ±2^k up to qmax:  2^k for 0.75·2^k <= |w|/s < 1.5·2^k,  0 below 1/2
                     s = max|w| / 2^K, K the largest k; the power of two next to it by the same rule
                     where the scheme has power_of_two (live batch norms move it, then)
    uniform          round(w / s), as by StraightThrough

The paper's b bits, b >= 3, are a scheme of 2^(b-2) + 1: its 5 have codes up to ±128 in 9.

Source: Zhou et al. 2017, "Incremental Network Quantization: Towards Lossless CNNs with
Low-Precision Weights", equations 1 to 4, and its pruning-inspired partition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import ObservedStep
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import SMALLEST_SCALE, Channels, QuantScheme, round_half_up, weight_scale


@dataclass(frozen=True)
class INQ(FakeQuant):
    """Weights are not rounded in training until fix_weights fixes them; activations are as by
    StraightThrough. `codes` says on what they are fixed: 0 and powers of two, or all codes.
    """

    codes: Literal["powers_of_two", "uniform"] = "powers_of_two"

    def __post_init__(self) -> None:
        if self.codes not in ("powers_of_two", "uniform"):
            raise ConfigError(f"codes are 'powers_of_two' or 'uniform', got {self.codes!r}")

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With the range that `observer` proposes."""
        return ObservedStep(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With none fixed yet."""
        return IncrementalWeight(scheme, channels, weight, self.codes == "powers_of_two")


class IncrementalWeight(WeightFakeQuant):
    """Fake-quantizes a weight of which a part is fixed: codes that stay, float32 scales [C], 0 for
    the channels without any.
    """

    fixed: Tensor
    codes: Tensor
    step: Tensor

    def __init__(
        self, scheme: QuantScheme, channels: Channels, weight: Tensor, powers: bool
    ) -> None:
        super().__init__(scheme, channels)
        self.powers = powers
        rows = len(channels.rows(weight))
        self.register_buffer("fixed", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("codes", torch.zeros_like(weight, dtype=scheme.dtype))
        self.register_buffer("step", torch.zeros(rows, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """In training the weight where it is not fixed; the gradient is 0 where it is."""
        if not self.training:
            return self.transform(weight).to(weight.dtype)
        real = self.codes * self.channels.spread(self.step, weight)
        return torch.where(self.fixed, real.to(weight.dtype), weight)

    def scale(self, weight: Tensor) -> Tensor:
        """As they stand, or those of the largest weights."""
        return torch.where(self.step > 0, self.step, self._following(weight.detach()))

    def transform(self, weight: Tensor) -> Tensor:
        """Codes times the scale, so that rounding gives the codes: float32."""
        scale = self.channels.spread(self.scale(weight), weight)
        return torch.where(self.fixed, self.codes, self._codes(weight.detach(), scale)) * scale

    def count(self, share: float) -> int:
        """How many weights are such a share."""
        return int(share * self.fixed.numel() + 0.5)

    @torch.no_grad()
    def fix(self, weight: Tensor, share: float) -> None:
        """Fix the largest of `weight`, which is finite, until `share` of all are fixed, or leave
        it at those that are.
        """
        weight = weight.detach().reshape(self.fixed.shape)
        scale = self.scale(weight)
        size = weight.abs().float().masked_fill(self.fixed, torch.inf).flatten()
        fixed = self.fixed.flatten().clone()
        fixed[size.argsort(descending=True, stable=True)[: self.count(share)]] = True
        fixed = fixed.reshape(self.fixed.shape)
        codes = self._codes(weight, self.channels.spread(scale, weight)).to(self.codes.dtype)
        self.codes.copy_(torch.where(self.fixed, self.codes, codes * fixed))
        self.fixed.copy_(fixed)
        begun = self.channels.rows(fixed).any(1)
        begun = begun if self.scheme.per_channel else begun.any()
        self.step.copy_(torch.where(begun, scale, self.step))

    def _following(self, weight: Tensor) -> Tensor:
        if not self.powers:
            return weight_scale(weight, self.scheme, self.channels)
        scale = weight_scale(weight, replace(self.scheme, power_of_two=False), self.channels)
        scale = scale * (self.scheme.qmax / self._top)
        return nearest_power(scale).clamp(SMALLEST_SCALE) if self.scheme.power_of_two else scale

    def _codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        ratio = weight.float() / scale
        if not self.powers:
            return round_half_up(ratio).clamp(self.scheme.qmin, self.scheme.qmax)
        size = nearest_power(ratio.abs()).clamp(1, self._top)
        return torch.where(ratio.abs() >= 0.5, size * ratio.sign(), 0.0)

    @property
    def _top(self) -> int:
        """The largest power of two among the codes."""
        return 1 << (self.scheme.qmax.bit_length() - 1)


def nearest_power(x: Tensor) -> Tensor:
    """The power of two 2^k with 0.75·2^k <= x < 1.5·2^k: float32, for x above 0."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa < 0.75).to(exponent.dtype))
