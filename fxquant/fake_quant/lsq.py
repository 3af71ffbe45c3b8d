"""Learned step size: the scales of activations and weights are parameters that the loss trains.

    s = |step|        the gradient of the step is that of s, times 1 / √(n · Q)

over n features of an example, or n weights of a step; Q is the number of codes above the zero
point (or below it, where these are more). The start is 2·E|x| / √Q, over the first batch or the
weights, or what spans their range if that is smaller: a larger step would leave codes unused.

Source: Esser et al. 2020, "Learned Step Size Quantization", sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.fake_quant.learned import (
    LearnedGrid,
    features,
    held,
    mean_over_ranks,
    round_learned,
    stand_in,
)
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import Channels, QParams, QuantScheme, range_to_qparams, weight_scale


@dataclass(frozen=True)
class LSQ(FakeQuant):
    """Scales are parameters, `step` (weight decay would shrink them)."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With a step that the first batch starts; the zero point is that of its range."""
        return LearnedStep(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With a step for each channel, or for all."""
        largest = weight_scale(weight, scheme, channels)
        mean = channels.rows(weight.detach().float().abs()).mean(1)
        mean = mean if scheme.per_channel else mean.mean().expand_as(mean)
        return LearnedWeight(scheme, channels, start_of(mean, scheme.qmax, largest))


class LearnedStep(LearnedGrid):
    """Fake-quantizes activations with a scale that is trained."""

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.step = nn.Parameter(torch.tensor(1.0))
        if observer.seen:
            self.follow_observer()

    def start_from(self, low: Tensor, high: Tensor, x: Tensor | None) -> None:
        """The step from the mean size of the values, the zero point from their range."""
        q = range_to_qparams(low, high, self.scheme)
        self.zero_point.copy_(q.zero_point)
        self.step.copy_(q.scale)
        if x is not None:
            self.step.copy_(start_of(mean_over_ranks(x.abs()), self._largest_code, q.scale))

    def rounded(self, x: Tensor) -> Tensor:
        """On the grid, with LSQ's gradient for the step."""
        scale = trained_step(self.step, self.scale, features(x), self._largest_code)
        return round_learned(x, scale, self.zero_point, self.scheme)

    @property
    def _largest_code(self) -> Tensor:
        above, below = self.scheme.qmax - self.zero_point, self.zero_point - self.scheme.qmin
        return torch.maximum(above, below - 1)  # the paper counts those above: -8..7 has 7

    @property
    def scale(self) -> Tensor:
        """The scale in force: |step|, kept where it and its multiples are positive and finite."""
        return held(self.step.detach().abs(), self.scheme)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""
        return QParams(self.scale, self.zero_point, self.scheme)


class LearnedWeight(WeightFakeQuant):
    """Fake-quantizes a weight with scales that are trained."""

    def __init__(self, scheme: QuantScheme, channels: Channels, start: Tensor) -> None:
        """`start`: the scale of each channel, [C]; all equal if the scheme has one for all."""
        super().__init__(scheme, channels)
        self.step = nn.Parameter((start if scheme.per_channel else start[:1]).clone())
        self._count = len(start)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, with LSQ's gradient for the step."""
        scale = held(self.step.detach().abs(), self.scheme)
        each = weight.numel() // len(self.step)
        scale = trained_step(self.step, scale, each, torch.tensor(self.scheme.qmax))
        scale = self.channels.spread(scale.expand(self._count), weight)
        return round_learned(weight, scale, torch.zeros_like(scale), self.scheme)

    def scale(self, weight: Tensor) -> Tensor:
        """|step|, as for activations."""
        return held(self.step.detach().abs(), self.scheme).float().expand(self._count)


def start_of(mean: Tensor, largest_code: Tensor | int, largest: Tensor) -> Tensor:
    """The step for values whose mean size is `mean`, at most the one that spans their range."""
    step = 2 * mean / torch.as_tensor(largest_code).sqrt()
    return torch.where(mean > 0, torch.minimum(step, largest), largest)


def trained_step(step: Tensor, scale: Tensor, count: int, largest_code: Tensor) -> Tensor:
    """`scale`, made of |step|, with LSQ's gradient: it shrinks with the number of values."""
    # |step| goes down on the left of 0; where the scale is held at an end it can come back
    sign = torch.where(step < 0, -torch.ones_like(step), torch.ones_like(step)).detach()
    return stand_in(step, scale, sign / (math.sqrt(count) * largest_code.sqrt()))
