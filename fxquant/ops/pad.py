"""Padding with a constant. The output keeps its input's range.

    real      y = x, and v around it
    integer   q_y = q_x, and round(v/s) + z around it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.ops.spec import Call, OpSpec, Output, RealCall, signature_reader
from fxquant.schemes import code_of


class PadNumbers(NamedTuple):
    """`fill`, 0-dim int32: the code that stands for the constant."""

    fill: Tensor


def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """As torch.nn.functional.pad: pairs of widths, the last dimension first."""
    return F.pad(input, pad, mode, value)


_signature = signature_reader(pad)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _signature(args, kwargs)
    if call is None or call.options["mode"] != "constant":
        return None
    return None if isinstance(call.options["value"], fx.Node) else call


def _options(module: Any) -> dict[str, Any]:
    return {"pad": module.padding, "mode": "constant", "value": getattr(module, "value", 0.0)}


def _numbers(call: RealCall) -> PadNumbers:
    return PadNumbers(code_of(call.options["value"] or 0.0, call.target.qparams))


def _kernel(
    n: PadNumbers, dtype: torch.dtype, codes: Tensor, pad: Any, mode: str, value: float | None
) -> Tensor:
    return F.pad(codes, pad, mode, int(n.fill))


PAD = OpSpec(
    name="pad",
    function=pad,
    functions=(F.pad,),
    methods=(),
    modules={
        nn.ConstantPad1d: _options,
        nn.ConstantPad2d: _options,
        nn.ConstantPad3d: _options,
        nn.ZeroPad1d: _options,
        nn.ZeroPad2d: _options,
        nn.ZeroPad3d: _options,
    },
    read=_read,
    output=Output.INPUT,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
)
