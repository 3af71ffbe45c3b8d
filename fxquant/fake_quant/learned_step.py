"""The quantizer whose step is a parameter that the loss trains.

    forward    y = c · s          c = clamp(round(x / s), qmin - z, qmax - z),  s = |step|
    backward   dx = dy where the code was not clamped, 0 where it was
               ds = Σ dy · (c - x / s where it was not clamped, c where it was) / √(n · qmax)

over the n elements of x. Source: Esser et al. 2020, "Learned Step Size Quantization".
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.fake_quant.activation import ActivationFakeQuant
from fxquant.observers import Observer
from fxquant.schemes import SMALLEST_SCALE, QParams, QuantScheme, range_to_qparams, round_half_up


class LearnedStep(ActivationFakeQuant):
    """Fake-quantizes activations with a scale that is trained, from the first batch's range on.

    The first finite batch in train() sets scale and zero point; from then on the zero point
    stands still and the scale is the optimizer's, which may hold `step` before there is data.
    Values that keep their input's range are rounded with its step and do not train it.
    """

    def __init__(self, scheme: QuantScheme, observer: Observer) -> None:
        super().__init__(scheme, observer)
        self.step = nn.Parameter(torch.tensor(1.0))
        self._started = False  # a memory of `ready`, which waits for the device at each question
        self.register_load_state_dict_post_hook(_ask_again)  # type: ignore[no-untyped-call]
        if observer.seen:
            self.follow_observer()

    def forward(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Tensor:
        """`x`, limited, on the grid; same shape and dtype."""
        if (least, most) != (-math.inf, math.inf):
            x = F.hardtanh(x, least, most)
        if self.training and not self._started:
            if not self.ready:
                self.observer(x)
                self.follow_observer()
            self._started = self.ready
        out: Tensor = _Learned.apply(x, self.step, *self.qparams)
        return out

    def follow_observer(self) -> None:
        """Start from the range that the observer proposes."""
        q = range_to_qparams(*self.observer.range(self.scheme), self.scheme)
        with torch.no_grad():
            self.step.copy_(q.scale)
        self.zero_point.copy_(q.zero_point)

    @property
    def scale(self) -> Tensor:
        """The scale in force: |step|, kept where it and its multiples are positive and finite."""
        largest = torch.finfo(torch.float32).max / (self.scheme.qmax - self.scheme.qmin + 1)
        return self.step.detach().abs().clamp(SMALLEST_SCALE, largest)

    @property
    def qparams(self) -> QParams:
        """The parameters in force: 0-dim scale and zero point, without gradient."""
        return QParams(self.scale, self.zero_point, self.scheme)


def _ask_again(quantizer: nn.Module, _: Any) -> None:
    """What was loaded may have a range or not."""
    assert isinstance(quantizer, LearnedStep)
    quantizer._started = False


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme
    ) -> Tensor:
        ratio = x.to(torch.float32) / scale
        low, high = scheme.qmin - zero_point, scheme.qmax - zero_point
        rounded = round_half_up(ratio)
        inside = (rounded >= low) & (rounded <= high)
        codes = torch.clamp(rounded, low, high)
        # |step| goes down on the left of 0; where the scale is held at an end it can come back
        sign = torch.where(step < 0, -torch.ones_like(step), torch.ones_like(step))
        slope = torch.where(inside, codes - ratio, codes)
        ctx.save_for_backward(inside, slope, sign / math.sqrt(max(x.numel(), 1) * scheme.qmax))
        return (codes * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        inside, slope, factor = ctx.saved_tensors
        step = (grads[0] * slope).sum(dtype=factor.dtype) * factor
        return grads[0] * inside, step, None, None, None
