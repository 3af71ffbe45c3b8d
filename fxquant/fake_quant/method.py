"""The choice of a user: how values are rounded while the network trains."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import Channels, QuantScheme


class FakeQuant(ABC):
    """A frozen record, such as `LSQ()`, that makes the quantizers of activations and of weights."""

    @abstractmethod
    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """The quantizer of a value that `observer` watches."""

    @abstractmethod
    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """The quantizer of `weight`, as it is now; a learned scale starts from it."""
