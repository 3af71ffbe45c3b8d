"""The quantizer of a weight: symmetric, its scale read off the weight itself at every use.

The scale is `max|w| / qmax`, so no weight is clipped and the straight-through gradient is
the identity: no mask is computed or kept.
"""

from __future__ import annotations

from torch import Tensor, nn

from fxquant.fake_quant.straight_through import round_to_grid
from fxquant.schemes import Channels, QuantScheme, weight_scale


class WeightFakeQuant(nn.Module):
    """Fake-quantizes a weight whose output channels lie along `channels`. It has no state."""

    def __init__(self, scheme: QuantScheme, channels: Channels) -> None:
        super().__init__()
        self.scheme = scheme
        self.channels = channels

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; same shape and dtype."""
        return round_to_grid(weight, self.channels.spread(self.scale(weight), weight))

    def scale(self, weight: Tensor) -> Tensor:
        """The scales of `weight`: float32 [channels]."""
        return weight_scale(weight, self.scheme, self.channels)

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)
