"""Round to the grid on the way forward; let the gradient straight through on the way back.

    forward    y = (clamp(round(x / s) + z, qmin, qmax) - z) · s
    backward   dx = dy where the code was not clamped, 0 where it was

Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons";
the mask is that of torch.fake_quantize.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.schemes import QParams, round_half_up


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        codes = round_half_up(x.to(torch.float32) / scale)
        low, high = qmin - zero_point, qmax - zero_point
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return (torch.clamp(codes, low, high) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None, None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return (round_half_up(x.to(torch.float32) / scale) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def round_to_grid(x: Tensor, scale: Tensor) -> Tensor:
    """`x` rounded to multiples of `scale`, which broadcasts, and never clamped: the gradient is
    the identity, and no mask is computed or kept.
    """
    out: Tensor = _Round.apply(x, scale)
    return out


def fake_quantize(x: Tensor, q: QParams) -> Tensor:
    """`x` rounded to the grid of `q`; same shape and dtype, straight-through gradient."""
    out: Tensor = _StraightThrough.apply(
        x, q.scale, q.zero_point, q.scheme.qmin, q.scheme.qmax
    )
    return out
