"""Three stages of a weight, composed: shape it, project it on integers, give them a meaning.

    t = transform(w)        s = max|t| / qmax        q = projection(t / s)        y = q · r

`r` is s itself, or a parameter for each channel that the loss trains: dr = Σ dy · q. An activation
has the same three: its clamp shapes it, and its r·q + b with both learned is LSQ+, where b, a
multiple of r, is the zero point.

Source: the pre-quantization transform, projection and post-quantization transform of course notes
on quantization, which leave the choice of each open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError
from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.learned import held, stand_in
from fxquant.fake_quant.lsq_plus import LearnedOffset
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.observed_step import NEAREST, ObservedStep
from fxquant.fake_quant.projection import Projection
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.fields import check_fields
from fxquant.observers import Observer
from fxquant.schemes import Channels, QuantScheme, weight_scale


class Transform(ABC):
    """A frozen record that shapes a weight before it is rounded."""

    @abstractmethod
    def __call__(self, weight: Tensor, channels: Channels) -> Tensor:
        """Same shape and dtype, with a gradient."""


@dataclass(frozen=True)
class Plain(Transform):
    """The weight as it is."""

    def __call__(self, weight: Tensor, channels: Channels) -> Tensor:
        """The same tensor."""
        return weight


@dataclass(frozen=True)
class Tanh(Transform):
    """Large weights come nearer to the others: `max|w| · tanh(w) / max|tanh(w)|`."""

    def __call__(self, weight: Tensor, channels: Channels) -> Tensor:
        """The largest stays what it is; it has no gradient of its own."""
        bent = weight.tanh()
        most = bent.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
        return bent * (weight.detach().abs().amax() / most)


@dataclass(frozen=True)
class Clipped(Transform):
    """Outliers of each channel are clipped at so many standard deviations about 0: less range,
    more resolution. They have no gradient.
    """

    stds: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.stds < float("inf"):
            raise ConfigError(f"stds is a positive number, got {self.stds!r}")

    def __call__(self, weight: Tensor, channels: Channels) -> Tensor:
        """Clamped."""
        limit = self.stds * channels.rows(weight.detach()).square().mean(1).sqrt()
        spread = channels.spread(limit, weight)
        return weight.clamp(-spread, spread)


@dataclass(frozen=True)
class Stages(FakeQuant):
    """`transform` shapes a weight, `projection` takes it to codes; `learned` says whether what
    codes stand for is learned.
    """

    transform: Transform = field(default_factory=Plain)
    projection: Projection = NEAREST
    learned: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.transform, Transform):
            raise ConfigError(f"transform is a record such as Tanh(), got {self.transform!r}")
        if not isinstance(self.projection, Projection):
            raise ConfigError(f"projection is a record such as Nearest(), got {self.projection!r}")

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With the observed range, or with r and b learned."""
        if self.learned:
            return LearnedOffset(scheme, observer)
        return ObservedStep(scheme, observer, self.projection)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With the three stages."""
        made = StagedWeight(scheme, channels, self.transform, self.projection)
        if self.learned:
            made.learn(weight)
        return made


class StagedWeight(WeightFakeQuant):
    """Fake-quantizes a weight stage by stage."""

    def __init__(
        self, scheme: QuantScheme, channels: Channels, transform: Transform,
        projection: Projection = NEAREST,
    ) -> None:
        super().__init__(scheme, channels)
        self.before = transform
        self.projection = projection
        self.factor: nn.Parameter | None = None

    def learn(self, weight: Tensor) -> None:
        """From here on r is a parameter, `factor`, that starts as the step of `weight`."""
        self.factor = nn.Parameter(self._step(self.before(weight.detach(), self.channels)))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, with the gradients of all stages."""
        shaped = self.before(weight, self.channels)
        step = self.channels.spread(self._step(shaped), weight)
        projection = self.projection if self.training else NEAREST
        rounded = projection.weight(shaped, step)
        if self.factor is None:
            return rounded
        sign = torch.where(self.factor < 0, -1.0, 1.0)
        factor = stand_in(self.factor, held(self.factor.detach().abs(), self.scheme), sign)
        factor = self.channels.spread(factor, weight)
        return (rounded / step * factor).to(weight.dtype)

    def scale(self, weight: Tensor) -> Tensor:
        """r of each channel."""
        if self.factor is None:
            return self._step(self.before(weight.detach(), self.channels))
        return held(self.factor.detach().abs(), self.scheme).float()

    def transform(self, weight: Tensor) -> Tensor:
        """Shaped, and brought from steps of s to steps of r."""
        shaped = self.before(weight.detach(), self.channels)
        if self.factor is None:
            return shaped
        ratio = self.scale(weight) / self._step(shaped)
        return shaped * self.channels.spread(ratio, weight)

    def _step(self, shaped: Tensor) -> Tensor:
        return weight_scale(shaped, self.scheme, self.channels)
