"""The quantizer of a weight: symmetric, its scale read off the weight itself at every use.

The scale is `max|w| / qmax`, so no weight is clipped and the straight-through gradient is
the identity: no mask is computed or kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.schemes import Channels, QuantScheme, round_half_up, weight_scale


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        return (round_half_up(weight.to(torch.float32) / scale) * scale).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class WeightFakeQuant(nn.Module):
    """Fake-quantizes a weight whose output channels lie along `channels`. It has no state."""

    def __init__(self, scheme: QuantScheme, channels: Channels) -> None:
        super().__init__()
        self.scheme = scheme
        self.channels = channels

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; same shape and dtype."""
        scale = self.channels.spread(self.scale(weight), weight)
        out: Tensor = _RoundWeight.apply(weight, scale)
        return out

    def scale(self, weight: Tensor) -> Tensor:
        """The scales of `weight`: float32 [channels]."""
        return weight_scale(weight, self.scheme, self.channels)

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)
