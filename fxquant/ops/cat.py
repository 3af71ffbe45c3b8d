"""Concatenation of n tensors, each brought to the output's range.

    real      y = [x_1, …, x_n]
    integer   q_y = clamp(z_y + (((q_i - z_i)·m_i + 2^(S_i-1)) >> S_i))     m_i·2^-S_i = s_i/s_y

Operands that share the output's parameters come through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.intmath import Rescale, requantize, rescale_of
from fxquant.ops.spec import Call, OpSpec, Output, RealCall


class CatNumbers(NamedTuple):
    """`multiplier`, `shift` int64 [n], `x_zero` int32 [n], per operand; the others 0-dim."""

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor


def cat(*inputs: Tensor, dim: int = 0) -> Tensor:
    """Tensors of one shape but for `dim`."""
    return torch.cat(inputs, dim)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    named = dict(zip(("tensors", "dim"), args, strict=False)) | dict(kwargs)
    inputs = named.get("tensors")
    dim = named.get("dim", named.get("axis", 0))
    if not isinstance(inputs, (tuple, list)) or not isinstance(dim, int):
        return None
    if not all(isinstance(x, fx.Node) for x in inputs):
        return None
    return Call(tuple(inputs), {"dim": dim})


def _numbers(call: RealCall) -> CatNumbers:
    scales = torch.stack([q.scale for q in call.inputs]).double()
    rescale = rescale_of(scales / call.target.qparams.scale.double())
    return CatNumbers(
        multiplier=rescale.multiplier,
        shift=rescale.shift,
        x_zero=torch.stack([q.zero_point for q in call.inputs]),
        y_zero=call.target.qparams.zero_point,
        low=call.target.low,
        high=call.target.high,
    )


def _kernel(n: CatNumbers, dtype: torch.dtype, *codes: Tensor, dim: int) -> Tensor:
    rows = zip(codes, n.x_zero, n.multiplier, n.shift, strict=True)
    parts = [
        requantize(
            x.to(torch.int64) - zero, Rescale(multiplier, shift), n.y_zero, n.low, n.high, dtype
        )
        for x, zero, multiplier, shift in rows
    ]
    return torch.cat(parts, dim)


CAT = OpSpec(
    name="cat",
    function=cat,
    functions=(torch.cat, torch.concat, torch.concatenate),
    methods=(),
    modules={},
    read=_read,
    output=Output.OWN,
    weight_axis=None,
    folds=False,
    numbers=_numbers,
    kernel=_kernel,
)
