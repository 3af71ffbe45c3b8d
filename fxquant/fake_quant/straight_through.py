"""Round to the grid on the way forward; let the gradient straight through on the way back.

    forward    y = clamp(floor(x / s + 1/2), qmin - z, qmax - z) · s
    backward   dx = dy where the code was not clamped, 0 where it was

An activation that only limits values, such as ReLU, limits the codes as well, and its gradient is
0 where it does.

Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons";
the mask is that of torch.fake_quantize. A byte of it is kept for each element, and nothing where a
batch is known to lie inside the range.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxquant.schemes import (
    EVERYWHERE,
    SMALLEST_SCALE,
    Ends,
    QParams,
    on_host,
    round_half_up,
    to_float32,
)

_NEXT = 1 + 2.0**-23  # times this, a float32 becomes its neighbour away from 0, or the next but one


class _OnHost(torch.autograd.Function):
    """With numbers, which the CPU's kernels take in one pass each. Comparisons that give bools
    take five times as long as those that give floats; an int8 is made of these in no time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, inside: Ends, ends: Ends) -> Tensor:
        real = x.to(torch.float32)
        y = real.clamp(*inside)
        ctx.save_for_backward(torch.eq(y, real, out=torch.empty_like(y)).to(torch.int8))
        if ends != inside:
            y = real.clamp(*ends)
        return _rounded(y.div_(scale), scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return inside.to(grads[0].dtype).mul_(grads[0]), None, None, None


class _OnDevice(torch.autograd.Function):
    """With the ends as 0-dim tensors: nothing waits for a device, and a compiler sees it all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, least: Tensor, most: Tensor
    ) -> Tensor:
        ctx.save_for_backward((x > least) & (x < most))
        codes = (x.to(torch.float32) / scale).add_(0.5).clamp_(low, high)
        return codes.floor_().mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0.0), None, None, None, None, None


def _rounded(ratio: Tensor, scale: float | Tensor) -> Tensor:
    """In its place."""
    return ratio.add_(0.5).floor_().mul_(scale)


def pass_through(x: Tensor, y: Tensor) -> Tensor:
    """`y`, whose gradient is given to `x` as it is."""
    out: Tensor = _PassThrough.apply(x, y)
    return out


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float | Tensor) -> Tensor:
        return _rounded(x.to(torch.float32) / scale, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def round_to_grid(x: Tensor, scale: float | Tensor) -> Tensor:
    """`x` rounded to multiples of `scale`, which broadcasts, and never clamped: the gradient is
    the identity, and no mask is computed or kept.
    """
    out: Tensor = _Round.apply(x, scale)
    return out


def fake_quantize(
    x: Tensor,
    q: QParams,
    least: float = -math.inf,
    most: float = math.inf,
    extremes: Ends = EVERYWHERE,
) -> Tensor:
    """`x` limited to [least, most], as by a ReLU or a hardtanh, then rounded to the grid of `q`;
    same shape and dtype, straight-through gradient, 0 where a limit holds.

    All of `x` lies between `extremes`: where these are known to be inside, no mask is needed.
    """
    scheme = q.scheme
    if on_host(x):
        scale, zero_point = q.scale.item(), int(q.zero_point.item())
        ends, inside = _ends(scheme.qmin - zero_point, scheme.qmax - zero_point, scale, least, most)
        if inside[0] <= extremes[0] and extremes[1] <= inside[1]:
            return round_to_grid(x, scale)
        rounded: Tensor = _OnHost.apply(x, scale, inside, ends)
        return rounded
    lowest = torch.maximum(scheme.qmin - q.zero_point, round_half_up(least / q.scale))
    highest = torch.minimum(scheme.qmax - q.zero_point, round_half_up(most / q.scale))
    start = ((lowest - 0.5) * q.scale * _NEXT).clamp(min=least)
    end = ((highest + 0.5) * q.scale).clamp(max=most)
    out: Tensor = _OnDevice.apply(x, q.scale, lowest, highest, start, end)
    return out


def _ends(low: int, high: int, scale: float, least: float, most: float) -> tuple[Ends, Ends]:
    """To what values are clamped, so that their codes lie in [low, high], and between what, ends
    included, their gradients pass. Mostly the two are one: then one clamp serves both.
    """
    first, last = _inwards((low - 0.5) * scale, 1), _inwards((high + 0.5) * scale, -1)
    if (least, most) == EVERYWHERE:
        return (first, last), (first, last)
    ends = max(first, least), min(last, most)
    inside = max(first, _inwards(least, 1)), min(last, _inwards(most, -1))
    if [_code(end, scale) for end in ends] != [_code(end, scale) for end in inside]:
        return ends, inside  # a limit is a tie, which belongs to the code above it
    return inside, inside


def _inwards(end: float, direction: int) -> float:
    """The float32 next to the end of a range, or the next but one, so that no rounding leads out
    of it; from 0 to the first that is not subnormal, and so slow.
    """
    return to_float32(end + direction * max(abs(end) * 2.0**-22, SMALLEST_SCALE))


def _code(x: float, scale: float) -> float:
    """The code of a number, its zero point taken off, as eval() computes it, so that ties agree."""
    ratio = to_float32(to_float32(x) / scale)
    return ratio if math.isinf(ratio) else math.floor(to_float32(ratio + 0.5))
