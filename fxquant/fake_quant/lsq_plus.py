"""Learned step and learned offset: an asymmetric grid that moves and stretches.

    x ≈ q · s + b        q = clamp(round((x - b) / s), qmin, qmax)

Integers need 0 to be a code, so b is a multiple of s: z = round(-b / s), clamped to the codes.
    ds = Σ dy · (q - (x - b) / s where it was not clamped, q where it was)
    db = Σ dy · (0 where it was not clamped, 1 where it was)
both times 1 / √(n · Q), Q the largest code. The first batch starts both where its error is least,
of the shares of its range; a weight has no offset and starts at max |μ ± 3σ| / Q.

Source: Bhalgat et al. 2020, "LSQ+: Improving low-bit quantization through learnable offsets and
better initialization", equations 3 to 6. As the learned r and b of a post-quantization transform,
r·q + b, they are one idea.
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
    round_learned,
    stand_in,
    sum_over_ranks,
)
from fxquant.fake_quant.lsq import LearnedWeight, trained_step
from fxquant.fake_quant.method import FakeQuant
from fxquant.fake_quant.weight import WeightFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import (
    SMALLEST_SCALE,
    Channels,
    QParams,
    QuantScheme,
    dequantize,
    quantize,
    range_to_qparams,
    round_half_up,
)

SHARES = tuple(share / 20 for share in range(20, 1, -1))  # of the first batch's range


@dataclass(frozen=True)
class LSQPlus(FakeQuant):
    """Scales are parameters, `step`, and so is where the codes of an activation begin, `offset`."""

    def activation(self, scheme: QuantScheme, observer: Observer) -> ActivationFakeQuant:
        """With a step and an offset; a symmetric scheme has no offset to learn."""
        return LearnedOffset(scheme, observer)

    def weight(self, scheme: QuantScheme, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """With a step for each channel, or for all, and no offset."""
        rows = channels.rows(weight.detach().float())
        values = rows if scheme.per_channel else rows.reshape(1, -1)
        mean, sigma = values.mean(1), values.std(1, correction=0)
        largest = torch.maximum((mean - 3 * sigma).abs(), (mean + 3 * sigma).abs())
        largest = torch.minimum(largest, values.abs().amax(1))
        start = (largest / scheme.qmax).clamp(min=SMALLEST_SCALE).expand(len(rows))
        return LearnedWeight(scheme, channels, start)


class LearnedOffset(LearnedGrid):
    """Fake-quantizes activations with a scale and an offset that are trained."""

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.step = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(0.0))
        if observer.seen:
            self.follow_observer()

    def start_from(self, low: Tensor, high: Tensor, x: Tensor | None) -> None:
        """Where the values are hit best, of shares of the range."""
        q = range_to_qparams(low, high, self.scheme)
        if x is not None:
            scales = q.scale * q.scale.new_tensor(SHARES)
            errors = [
                (dequantize(quantize(x, q._replace(scale=s)), q._replace(scale=s)) - x)
                .square().sum(dtype=torch.float64)
                for s in scales
            ]
            q = q._replace(scale=scales[sum_over_ranks(torch.stack(errors)).argmin()])
        self.step.copy_(q.scale)
        self.offset.copy_(-q.zero_point * q.scale)

    def rounded(self, x: Tensor) -> Tensor:
        """On the grid, with LSQ+'s gradients for step and offset."""
        q, count = self.qparams, features(x)
        scale = trained_step(self.step, q.scale, count, torch.tensor(self.scheme.qmax))
        offset = None
        if not self.scheme.symmetric:
            offset = stand_in(self.offset, self.offset, 1 / math.sqrt(count * self.scheme.qmax))
        return round_learned(x, scale, q.zero_point, self.scheme, offset)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""
        scale, scheme = held(self.step.detach().abs(), self.scheme), self.scheme
        if scheme.symmetric:
            return QParams(scale, self.zero_point, scheme)
        code = round_half_up(-self.offset.detach() / scale).nan_to_num()
        return QParams(scale, code.clamp(scheme.qmin, scheme.qmax).to(torch.int32), scheme)
