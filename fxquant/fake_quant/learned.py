"""Grids whose numbers are parameters: rounding with gradients for the scale and for an offset.

    forward    y = c · s          c = clamp(round(x / s), qmin - z, qmax - z)
    backward   dx = dy where the code was not clamped, 0 where it was
               ds = Σ dy · (c - x / s where it was not clamped, c where it was)

With an offset b, of which z = round(-b / s) is made, the ends lie at q·s + b, q = c + z:

               ds = Σ dy · (c - x / s where it was not clamped, q where it was)
               db = Σ dy · (0 where it was not clamped, 1 where it was)

LSQ, LSQ+ and TQT are this, each with its own way from parameters to s and b. In float32 whatever
the type of x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import LARGEST, SMALLEST_SCALE, QuantScheme, round_half_up


class LearnedGrid(ActivationFakeQuant, ABC):
    """Fake-quantizes activations with numbers that are trained, from the first batch on.

    The first finite batch in train() starts them; from then on they are the optimizer's, which
    may hold them before there is data. Values that keep their input's range are rounded with
    them and do not train them.
    """

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self._started = False  # a memory of `ready`, which waits for the device at each question

    def forward(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited, on the grid; same shape and dtype."""
        if (least, most) != (-math.inf, math.inf):
            x = F.hardtanh(x, least, most)
        if self.training and not self._started:
            if not self.ready:
                self.observer(x)
                self._start(x.detach().float())
            self._started = self.ready
        return self.rounded(x)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._started = False  # what was loaded may have a range or not

    def follow_observer(self) -> None:
        """Start from the range that the observer proposes."""
        with torch.no_grad():
            self.start_from(*self.observer.range(self.scheme), None)

    def _start(self, x: Tensor) -> None:
        if self.ready:
            with torch.no_grad():
                self.start_from(*self.observer.range(self.scheme), x[x.isfinite()])

    @abstractmethod
    def start_from(self, low: Tensor, high: Tensor, x: Tensor | None) -> None:
        """Set parameters and zero point from the range, 0-dim, and from the finite values of this
        rank's first batch, where it is that which starts them.
        """

    @abstractmethod
    def rounded(self, x: Tensor) -> Tensor:
        """`x` on the grid of `qparams`, with the gradients of the method."""


def round_learned(
    x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme, offset: Tensor | None = None
) -> Tensor:
    """`x` on the grid of `scale`, float32, and `zero_point`, which broadcast; same shape and dtype.

    Gradients reach `scale` and, if it is one, the offset that `zero_point` was made of.
    """
    out: Tensor = _Learned.apply(x, scale, zero_point, scheme, offset)
    return out


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme,
        offset: Tensor | None,
    ) -> Tensor:
        ratio = x.to(torch.float32) / scale
        low, high = scheme.qmin - zero_point, scheme.qmax - zero_point
        rounded = round_half_up(ratio)
        inside = (rounded >= low) & (rounded <= high)
        codes = torch.clamp(rounded, low, high)
        at_ends = codes if offset is None else codes + zero_point
        slope = torch.where(inside, codes - ratio, at_ends)
        ctx.save_for_backward(inside, slope, scale, offset)
        return (codes * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope, scale, offset = ctx.saved_tensors
        dy = grads[0].to(scale.dtype)
        d_offset = None if offset is None else (dy * ~inside).sum_to_size(offset.shape)
        return grads[0] * inside, (dy * slope).sum_to_size(scale.shape), None, None, d_offset


def stand_in(parameter: Tensor, value: Tensor, slope: Tensor | float) -> Tensor:
    """`value` on the way forward; on the way back `parameter` gets the gradient times `slope`."""
    out: Tensor = _StandIn.apply(parameter, value, slope)
    return out


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor, slope: Tensor | float) -> Tensor:
        ctx.slope = slope
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.slope, None, None


def held(scale: Tensor, scheme: QuantScheme) -> Tensor:
    """A scale kept where it and its multiples are positive and finite."""
    largest = LARGEST / (scheme.qmax - scheme.qmin + 1)
    return scale.clamp(SMALLEST_SCALE, largest)


def features(x: Tensor) -> int:
    """So many values there are for each example of a batch; at least 1."""
    return max(x.numel() // max(x.shape[0], 1), 1) if x.dim() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of the values of all ranks where training is distributed: 0-dim, 0 for none."""
    parts = torch.stack((x.sum(dtype=torch.float64), x.new_tensor(x.numel(), dtype=torch.float64)))
    total, count = sum_over_ranks(parts)
    mean: Tensor = total / count.clamp(min=1)
    return mean.float()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of what all ranks bring, where training is distributed."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
