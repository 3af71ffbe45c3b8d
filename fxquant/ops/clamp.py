"""ReLU6, Hardtanh and clamp by constants. The output keeps its input's range.

    real      y = min(max(x, low), high)
    integer   q_y = min(max(q_x, q(low)), q(high))      q(v) = round(v/s) + z
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import IntegerCall, adds_nothing
from fxquant.ops.spec import (
    Call,
    Clamp,
    OpSpec,
    Output,
    Reader,
    RealCall,
    signature_reader,
)
from fxquant.schemes import code_of


class ClampNumbers(NamedTuple):
    """`low` and `high` (0-dim int32): the codes that stand for the two limits."""

    low: Tensor
    high: Tensor


def clamp(input: Tensor, low: float, high: float) -> Tensor:
    """Any shape."""
    return Clamp(low, high)(input)


def _like_clamp(input: Tensor, min: Any = None, max: Any = None) -> None: ...


def _like_hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> None: ...


def _like_relu6(input: Tensor, inplace: bool = False) -> None: ...


def _reader(spelling: Callable[..., None], low: str | float, high: str | float) -> Reader:
    """Read a call spelled as `spelling`; its limits are options of it, or fixed."""
    by_signature = signature_reader(spelling)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        call = by_signature(args, kwargs)
        if call is None:
            return None
        limits = [call.options[end] if isinstance(end, str) else end for end in (low, high)]
        if not all(isinstance(limit, (int, float)) or limit is None for limit in limits):
            return None  # a limit that is a tensor, or computed
        bottom = -math.inf if limits[0] is None else float(limits[0])
        top = math.inf if limits[1] is None else float(limits[1])
        if not bottom <= 0.0 <= top:
            return None  # values may leave the input's range, which the output is to keep
        return Call(call.inputs, {"low": bottom, "high": top})

    return read


def _numbers(call: RealCall) -> ClampNumbers:
    q = call.target.qparams
    low, high = (
        code_of(call.options[name], q) if math.isfinite(call.options[name]) else end
        for name, end in (("low", call.target.low), ("high", call.target.high))
    )
    return ClampNumbers(low, high)


def _kernel(n: ClampNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    return torch.clamp(codes, n.low.to(dtype), n.high.to(dtype))


def _fast(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    n: ClampNumbers = call.numbers
    if n.low.numel() > 1 or n.high.numel() > 1:
        return Plain(partial(_kernel, n, dtype))
    return Plain(partial(torch.clamp, min=int(n.low), max=int(n.high)))


def _limits(module: nn.Hardtanh) -> dict[str, Any] | None:
    low, high = float(module.min_val), float(module.max_val)
    return {"low": low, "high": high} if low <= 0.0 <= high else None


def _onnx(call: OnnxCall) -> Value:
    return call.codes[0].clamp(call.numbers.low, call.numbers.high)


def _tflite(call: TfliteCall) -> TfliteValue:
    return call.codes[0].clamp(call.numbers.low, call.numbers.high)


def _record(
    name: str,
    functions: tuple[Any, ...],
    methods: tuple[str, ...],
    modules: Mapping[type[nn.Module], Any],
    read: Reader,
) -> OpSpec:
    return OpSpec(
        name=name,
        function=clamp,
        functions=functions,
        methods=methods,
        modules=modules,
        read=read,
        output=Output.INPUT,
        range=None,
        homogeneous=False,
        weight_axis=None,
        numbers=_numbers,
        kernel=_kernel,
        accumulator=adds_nothing,
        onnx=_onnx,
        tflite=_tflite,
        fast=_fast,
        real=("low", "high"),
    )


CLAMP = _record(
    "clamp", (torch.clamp, torch.clip), ("clamp", "clip"), {}, _reader(_like_clamp, "min", "max")
)
HARDTANH = _record(
    "hardtanh",
    (F.hardtanh,),
    (),
    {nn.Hardtanh: _limits},
    _reader(_like_hardtanh, "min_val", "max_val"),
)
RELU6 = _record("relu6", (F.relu6,), (), {nn.ReLU6: _limits}, _reader(_like_relu6, 0.0, 6.0))
