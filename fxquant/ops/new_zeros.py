"""Zeros that are allocated, `x.new_zeros(shape)` and `zeros_like(x)`: DARTS' `none` where channels
change.

    real      y = 0
    integer   q_y = z_x

They keep the range of `x`, so their scale is never 0 and never infinite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import Call, OpSpec, Output, ZeroPoint, as_tuple, zero_point


def new_zeros(input: Tensor, size: Any = None) -> Tensor:
    """Zeros of shape `size`, that of `input` if None."""
    return torch.zeros_like(input) if size is None else input.new_zeros(size)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    named = dict(kwargs)
    # x.dtype and x.device, which a graph asks for as nodes; any other would be another tensor
    asked = [named.pop(name) for name in ("dtype", "device") if named.get(name) is not None]
    size = args[1:] if len(args) > 1 else (named.pop("size", None),)
    if not args or not all(isinstance(x, fx.Node) for x in (args[0], *asked)) or named:
        return None
    return Call(args[:1], {"size": size[0] if len(size) == 1 else size})


def _kernel(n: ZeroPoint, dtype: torch.dtype, codes: Tensor, size: Any) -> Tensor:
    return new_zeros(codes, size) + n.zero.to(dtype)


def _onnx(call: OnnxCall) -> Value:
    (x,), zero, size = call.codes, call.numbers.zero.to(call.dtype), call.settings["size"]
    if size is None:
        shape = call.graph.node("Shape", x, dtype=torch.int64)
    else:
        shape = call.graph.sizes(as_tuple(size), call.rows)
    return call.graph.node("Expand", zero, shape, dtype=call.dtype)


NEW_ZEROS = OpSpec(
    name="new_zeros",
    function=new_zeros,
    functions=(torch.zeros_like,),
    methods=("new_zeros",),
    modules={},
    read=_read,
    output=Output.EXACT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=zero_point,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_onnx,
    allocates=True,
)
