"""Padding with a constant: with 0 the output keeps its input's range, else it has its own.

    real      y = x, and v around it
    integer   q_y = q_x, and z_x around it                              v = 0
              q_y = rescaled to s_y, and round(v/s_y) + z_y around it   any v
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.movable import widths_in_order
from fxquant.forms.onnx import OnnxCall, Value, centred_value, pad_codes, requantize
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import by_table
from fxquant.intmath import centred
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import IntegerCall, adds_nothing
from fxquant.ops.spec import (
    Call,
    OpSpec,
    Output,
    Reader,
    RealCall,
    ZeroPoint,
    signature_reader,
    zero_point,
)
from fxquant.rounding import Rescale, Rounding
from fxquant.schemes import code_of


def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """As torch.nn.functional.pad: pairs of widths, the last dimension first."""
    return F.pad(input, pad, mode, value)


class PadValueNumbers(NamedTuple):
    """`multiplier`, `shift`, a `Rescale`, of s_x/s_y; the others int32: all 0-dim."""

    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    fill: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def _reader(zeros: bool) -> Reader:
    """Read a call that pads with zeros, or one that pads with another constant."""
    by_signature = signature_reader(pad)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        call = by_signature(args, kwargs)
        if call is None or call.options["mode"] != "constant":
            return None
        value = call.options["value"] or 0.0
        fits = isinstance(value, (int, float)) and (value == 0) is zeros
        return call if fits and math.isfinite(value) else None

    return read


def _zero_options(module: Any) -> dict[str, Any] | None:
    return _options(module) if getattr(module, "value", 0.0) == 0 else None


def _value_options(module: Any) -> dict[str, Any] | None:
    return _options(module) if math.isfinite(module.value) and module.value != 0 else None


def _options(module: Any) -> dict[str, Any]:
    return {"pad": module.padding, "mode": "constant", "value": getattr(module, "value", 0.0)}


def _pad_zero(n: ZeroPoint, dtype: torch.dtype, codes: Tensor, pad: Any, mode: str) -> Tensor:
    return _filled_by_tensor(n.zero, codes, pad, mode)


def _filled_by_tensor(fill: Tensor, codes: Tensor, pad: Any, mode: str) -> Tensor:
    """To ask for the number would wait for a device, or end a compiled graph."""
    return F.pad(centred(codes, fill), pad, mode).add_(fill).to(codes.dtype)


def _filled(fill: int, codes: Tensor, pad: Any, mode: str) -> Tensor:
    return F.pad(codes, pad, mode, fill)


def _fast_zero(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    return Plain(partial(_filled, int(call.numbers.zero)))


def _value_numbers(call: RealCall) -> PadValueNumbers:
    q = call.target.qparams
    multiplier, shift = call.target.rescale(call.inputs[0].scale)
    fill = code_of(call.options["value"], q)
    x_zero, (_, low, high, rounding) = call.inputs[0].zero_point, call.target
    return PadValueNumbers(multiplier, shift, x_zero, q.zero_point, fill, low, high, rounding)


def _pad_value(
    n: PadValueNumbers, dtype: torch.dtype, codes: Tensor, pad: Any, mode: str
) -> Tensor:
    return _filled_by_tensor(_fill(n), _rescaled(n, dtype, codes), pad, mode)


def _fill(n: PadValueNumbers) -> Tensor:
    return n.fill.clamp(n.low, n.high)


def _rescaled(n: PadValueNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    d, rescale = centred(codes, n.x_zero), Rescale(n.multiplier, n.shift)
    return n.rounding.requantize(d, rescale, n.y_zero, n.low, n.high, dtype)


def _rescaled_and_filled(
    fill: int, n: PadValueNumbers, dtype: torch.dtype, codes: Tensor, pad: Any, mode: str
) -> Tensor:
    return _filled(fill, _rescaled(n, dtype, codes), pad, mode)


def _fast_value(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    n: PadValueNumbers = call.numbers
    return Plain(partial(_rescaled_and_filled, int(_fill(n)), n, dtype))


def _zero_onnx(call: OnnxCall) -> Value:
    return pad_codes(call.codes[0], widths_in_order(call.settings["pad"]), call.numbers.zero)


def _value_onnx(call: OnnxCall) -> Value:
    n: PadValueNumbers = call.numbers
    d = centred_value(call.codes[0], n.x_zero)
    inner = requantize(d, n.rounding, Rescale(n.multiplier, n.shift), n, call.dtype)
    inner.shape = d.shape
    return pad_codes(inner, widths_in_order(call.settings["pad"]), n.fill.clamp(n.low, n.high))


def _zero_tflite(call: TfliteCall) -> TfliteValue:
    return call.codes[0].pad(widths_in_order(call.settings["pad"]), int(call.numbers.zero))


def _value_tflite(call: TfliteCall) -> TfliteValue:
    n: PadValueNumbers = call.numbers
    inner = by_table(call._replace(kernel=partial(_rescaled, n, call.dtype)))
    return inner.pad(widths_in_order(call.settings["pad"]), int(_fill(n)))


PAD = OpSpec(
    name="pad",
    function=pad,
    functions=(F.pad,),
    methods=(),
    modules={
        nn.ConstantPad1d: _zero_options,
        nn.ConstantPad2d: _zero_options,
        nn.ConstantPad3d: _zero_options,
        nn.ZeroPad1d: _zero_options,
        nn.ZeroPad2d: _zero_options,
        nn.ZeroPad3d: _zero_options,
    },
    read=_reader(zeros=True),
    output=Output.EXACT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=zero_point,
    kernel=_pad_zero,
    fast=_fast_zero,
    accumulator=adds_nothing,
    onnx=_zero_onnx,
    tflite=_zero_tflite,
    real=("value",),
)

PAD_VALUE = OpSpec(
    name="pad_value",
    function=pad,
    functions=(F.pad,),
    methods=(),
    modules={
        nn.ConstantPad1d: _value_options,
        nn.ConstantPad2d: _value_options,
        nn.ConstantPad3d: _value_options,
    },
    read=_reader(zeros=False),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_value_numbers,
    kernel=_pad_value,
    fast=_fast_value,
    accumulator=adds_nothing,
    onnx=_value_onnx,
    tflite=_value_tflite,
    real=("value",),
)
