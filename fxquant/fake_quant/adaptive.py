"""Rounding that is learned: each weight goes up or down, whichever serves the output better.

    soft       w̃ = clamp(floor(w / s) + h, qmin, qmax) · s
               h = clamp(1.2 · sigmoid(v) - 0.1, 0, 1)
    settled    h is 0 or 1
    penalty    1 - |2h - 1|^β, on average: drives h there as β falls

`v` starts where w̃ = w. The largest weights stay where they are, so that a scale that is read off
the weights is the same before and after.

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
equations 21 to 25.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.schemes import round_half_up

_STRETCH, _SHIFT = 1.2, -0.1  # of the sigmoid, so that 0 and 1 are reached


class AdaptiveRounding(WeightFakeQuant):
    """Fake-quantizes one weight, whose scales another quantizer gives, while rounding is learned.
    """

    def __init__(self, quantizer: WeightFakeQuant, weight: Tensor) -> None:
        super().__init__(quantizer.scheme, quantizer.channels)
        real = weight.detach().float()
        scale = self.channels.spread(quantizer.scale(weight), weight)
        ratio = real / scale
        self.register_buffer("step", scale)
        self.register_buffer("below", ratio.floor())
        self.register_buffer("nearest", round_half_up(ratio))
        self.register_buffer("fixed", ratio.abs() >= self.scheme.qmax * (1 - 1e-6))
        rest = (ratio - ratio.floor()).clamp(1e-4, 1 - 1e-4)
        self.rise = nn.Parameter(((rest - _SHIFT) / _STRETCH).logit())

    step: Tensor
    below: Tensor
    nearest: Tensor
    fixed: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """Between the two grid points around each weight; the gradient goes to `rise` alone."""
        return self._on_grid(self.below + self._up()).to(weight.dtype)

    def scale(self, weight: Tensor) -> Tensor:
        """Those of the quantizer that it stands in for."""
        return self.channels.largest(self.step)

    def settled(self) -> Tensor:
        """The weight, every one on its grid: float32."""
        return self._on_grid(self.below + (self._up() >= 0.5).float()).detach()

    def penalty(self, beta: float) -> Tensor:
        """How far from 0 and 1 they are that may still go either way: 0-dim."""
        free = torch.where(self.fixed, 1.0, self._up())
        return (1 - (2 * free - 1).abs().pow(beta)).mean()

    def _up(self) -> Tensor:
        return (self.rise.sigmoid() * _STRETCH + _SHIFT).clamp(0, 1)

    def _on_grid(self, codes: Tensor) -> Tensor:
        codes = torch.where(self.fixed, self.nearest, codes)
        return codes.clamp(self.scheme.qmin, self.scheme.qmax) * self.step
