"""ReLU6, Hardtanh and clamp by constants. The output keeps its input's range.

    real      y = min(max(x, low), high)
    integer   q_y = min(max(q_x, q(low)), q(high))      q(v) = round(v/s) + z
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.ops.site import Clamp
from fxquant.ops.spec import Call, OpSpec, Output, RealCall
from fxquant.schemes import code_of


class ClampNumbers(NamedTuple):
    """`low` and `high` (0-dim int32): the codes that stand for the two limits."""

    low: Tensor
    high: Tensor


def clamp(input: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Any shape."""
    return Clamp(low, high)(input)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """clamp(x, min, max), hardtanh(x, min_val, max_val): constants only, None is no limit."""
    names = {"min": "low", "max": "high", "min_val": "low", "max_val": "high"}
    found = dict(zip(("low", "high"), args[1:3], strict=False))
    found.update({names[name]: value for name, value in kwargs.items() if name in names})
    if any(isinstance(value, fx.Node) for value in found.values()):
        return None
    low, high = found.get("low"), found.get("high")
    return _call(args[0], -math.inf if low is None else low, math.inf if high is None else high)


def _call(x: Any, low: float, high: float) -> Call | None:
    return Call((x,), {"low": float(low), "high": float(high)}) if low <= high else None


def _read_relu6(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    return _call(args[0] if args else kwargs["input"], 0.0, 6.0)


def _read_hardtanh(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    return _read((args[0], *(args[1:3] or (-1.0, 1.0))), kwargs)


def _numbers(call: RealCall) -> ClampNumbers:
    q = call.target.qparams
    low, high = (
        code_of(call.options[name], q) if math.isfinite(call.options[name]) else end
        for name, end in (("low", call.target.low), ("high", call.target.high))
    )
    return ClampNumbers(low, high)


def _kernel(n: ClampNumbers, dtype: torch.dtype, codes: Tensor, low: float, high: float) -> Tensor:
    return torch.clamp(codes, n.low.to(dtype), n.high.to(dtype))


def _record(name: str, functions: tuple[Any, ...], methods: tuple[str, ...],
            modules: Mapping[type[nn.Module], Any], read: Any) -> OpSpec:
    return OpSpec(
        name=name,
        function=clamp,
        functions=functions,
        methods=methods,
        modules=modules,
        read=read,
        output=Output.INPUT,
        weight_axis=None,
        folds=False,
        numbers=_numbers,
        kernel=_kernel,
    )


def _limits(module: nn.Hardtanh) -> dict[str, Any]:
    return {"low": float(module.min_val), "high": float(module.max_val)}


CLAMP = _record("clamp", (torch.clamp, torch.clip), ("clamp", "clip"), {}, _read)
RELU6 = _record("relu6", (F.relu6,), (), {nn.ReLU6: _limits}, _read_relu6)
HARDTANH = _record("hardtanh", (F.hardtanh,), (), {nn.Hardtanh: _limits}, _read_hardtanh)
