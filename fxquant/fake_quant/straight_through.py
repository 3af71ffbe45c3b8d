"""Round to the grid on the way forward; let the gradient straight through on the way back.

    forward    y = clamp(floor(x / s + 1/2), qmin - z, qmax - z) · s
    backward   dx = dy where the code was not clamped, 0 where it was

An activation that only limits values, such as ReLU, limits the codes as well, and its gradient is
0 where it does.

Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons";
the mask is that of torch.fake_quantize. None is kept: the codes that were not clamped are those
of x in [(qmin - z - 1/2)·s, (qmax - z + 1/2)·s), up to the last bit of a float32 at either end.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxquant.schemes import QParams, on_host, round_half_up, to_float32

Ends = tuple[float, float]

_NEXT = 1 + 2.0**-23  # times this, a float32 becomes its neighbour away from 0, or the next but one


class _OnHost(torch.autograd.Function):
    """With the ends as numbers, which the CPU's kernels take in one pass each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, codes: Ends, inside: Ends) -> Tensor:
        ctx.save_for_backward(x)
        ctx.inside = inside
        return _rounded(x, scale, *codes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        # 0 at either end and beyond it
        return torch.ops.aten.hardtanh_backward(grads[0], x, *ctx.inside), None, None, None


class _OnDevice(torch.autograd.Function):
    """With the ends as 0-dim tensors: nothing waits for a device, and a compiler sees it all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, least: Tensor, most: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, least, most)
        return _rounded(x, scale, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, least, most = ctx.saved_tensors
        inside = (x > least) & (x < most)
        return torch.where(inside, grads[0], 0.0), None, None, None, None, None


def _rounded(x: Tensor, scale: Any, low: Any, high: Any) -> Tensor:
    y: Tensor = x.to(torch.float32) / scale  # in its place from here on
    return y.add_(0.5).clamp_(low, high).floor_().mul_(scale).to(x.dtype)


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
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ratio = x.to(torch.float32) / scale
        return ratio.add_(0.5).floor_().mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def round_to_grid(x: Tensor, scale: Tensor) -> Tensor:
    """`x` rounded to multiples of `scale`, which broadcasts, and never clamped: the gradient is
    the identity, and no mask is computed or kept.
    """
    out: Tensor = _Round.apply(x, scale)
    return out


def fake_quantize(
    x: Tensor, q: QParams, least: float = -math.inf, most: float = math.inf
) -> Tensor:
    """`x` limited to [least, most], as by a ReLU or a hardtanh, then rounded to the grid of `q`;
    same shape and dtype, straight-through gradient, 0 where a limit holds.
    """
    scheme = q.scheme
    if on_host(x):
        scale, zero_point = q.scale.item(), q.zero_point.item()
        low = max(scheme.qmin - zero_point, _code(least, scale))
        high = min(scheme.qmax - zero_point, _code(most, scale))
        first, last = max((low - 0.5) * scale * _NEXT, least), min((high + 0.5) * scale, most)
        largest = torch.finfo(x.dtype).max  # the kernel takes no number beyond it, but infinity
        inside = -math.inf if first < -largest else first, math.inf if last > largest else last
        rounded: Tensor = _OnHost.apply(x, scale, (low, high), inside)
        return rounded
    lowest = torch.maximum(scheme.qmin - q.zero_point, round_half_up(least / q.scale))
    highest = torch.minimum(scheme.qmax - q.zero_point, round_half_up(most / q.scale))
    start = ((lowest - 0.5) * q.scale * _NEXT).clamp(min=least)
    end = ((highest + 0.5) * q.scale).clamp(max=most)
    out: Tensor = _OnDevice.apply(x, q.scale, lowest, highest, start, end)
    return out


def _code(limit: float, scale: float) -> float:
    if math.isinf(limit):
        return limit
    ratio = to_float32(to_float32(limit) / scale)  # as eval() divides, so that ties agree
    return math.floor(to_float32(ratio + 0.5))
