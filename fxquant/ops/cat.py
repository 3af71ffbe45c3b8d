"""Concatenation of n tensors, each brought to the output's range.

    real      y = [x_1, …, x_n]
    integer   q_y = clamp(z_y + (((q_i - z_i)·m_i + 2^(S_i-1)) >> S_i))     m_i·2^-S_i = s_i/s_y

Operands that share the output's parameters come through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.forms.onnx import OnnxCall, Value, centred_value, requantize
from fxquant.forms.qdq import grids_of, to_codes, to_real
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import by_table, concatenated
from fxquant.intmath import centred
from fxquant.kernels.bytes import ByteTable, byte_table
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import IntegerCall, Operand, adds_nothing
from fxquant.ops.operands import (
    OperandNumbers,
    SumInInt32,
    operand_numbers,
    scales_of,
    sum_in_int32,
)
from fxquant.ops.spec import Call, OpSpec, Output, RealCall
from fxquant.rounding import FP32_RNE, Rescale, common_rescale
from fxquant.schemes import dequantize


def cat(*inputs: Tensor, dim: int) -> Tensor:
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


def _numbers(call: RealCall) -> OperandNumbers:
    return operand_numbers(call, call.target.rescale(scales_of(call)))


def _kernel(n: OperandNumbers, dtype: torch.dtype, *codes: Tensor, dim: int) -> Tensor:
    return torch.cat([_rescaled(n, dtype, i, x) for i, x in enumerate(codes)], dim)


def _rescaled(n: OperandNumbers, dtype: torch.dtype, i: int, codes: Tensor) -> Tensor:
    """Operand `i` in the output's range."""
    rescale = Rescale(n.multiplier[i], n.shift[i])
    x = centred(codes, n.x_zero[i])
    return n.rounding.requantize(x, rescale, n.y_zero, n.low, n.high, dtype)


def _fast(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    n: OperandNumbers = call.numbers
    bytes_ = dtype.itemsize == 1 and all(x.scheme.dtype == dtype for x in call.inputs)
    if not bytes_ or n.low.numel() > 1 or n.high.numel() > 1:
        return Plain(partial(_kernel, n, dtype))
    ways = [partial(_rescaled, n, dtype, i) for i in range(len(call.inputs))]
    tables = [byte_table(way, x.scheme) for way, x in zip(ways, call.inputs, strict=True)]
    shorter = [
        _in_int32(n, i, call.inputs[i], dtype, table) or way
        for i, (way, table) in enumerate(zip(ways, tables, strict=True))
    ]
    return Plain(partial(_join, shorter, tables))


def _in_int32(
    n: OperandNumbers, i: int, x: Operand, dtype: torch.dtype, table: ByteTable | None
) -> SumInInt32 | None:
    """Operand `i` with a multiplier short enough for int32, if every code comes out the same."""
    factor = torch.ldexp(n.multiplier[i : i + 1].double(), -n.shift[i])
    rescale, zero = common_rescale(factor), n.x_zero[i : i + 1]
    alone = n._replace(multiplier=rescale.multiplier, shift=rescale.shift, x_zero=zero)
    short = sum_in_int32(alone, [x], dtype)
    if short is None or table is None or not torch.equal(short(table.stored), table.table):
        return None
    return short


def _join(
    ways: Sequence[Callable[[Tensor], Tensor]], tables: Sequence[ByteTable | None],
    *codes: Tensor, dim: int,
) -> Tensor:
    """By tables; by arithmetic where that is compiled into one loop, which cannot look up."""
    compiled = torch.compiler.is_compiling()
    parts = [
        x if table is None else (way if compiled else table)(x)
        for x, way, table in zip(codes, ways, tables, strict=True)
    ]
    return torch.cat(parts, dim)


def _onnx(call: OnnxCall) -> Value:
    n: OperandNumbers = call.numbers
    parts = []
    for x, zero, multiplier, shift in zip(
        call.codes, n.x_zero, n.multiplier, n.shift, strict=True
    ):
        rescale = Rescale(multiplier, shift)
        same = _keeps_codes(x, zero, rescale, n)
        d = centred_value(x, zero)
        parts.append(x if same else requantize(d, n.rounding, rescale, n, call.dtype))
    return call.graph.node("Concat", *parts, dtype=call.dtype, axis=call.settings["dim"])


def _qdq(call: OnnxCall) -> Value | None:
    """Concat, which engines run as QLinearConcat; of codes, where all share one scale.

    They divide (q - z_i)·s_i by s_y, where we multiply by s_i/s_y: an operand of which a code would
    come out otherwise, as ties may, is brought to the output's scale before.
    """
    n, grids, axis = call.numbers, grids_of(call), call.settings["dim"]
    rescales = [*map(Rescale, n.multiplier, n.shift)]
    operands = zip(call.codes, n.x_zero, rescales, strict=True)
    if grids is None or all(_keeps_codes(x, zero, rescale, n) for x, zero, rescale in operands):
        return None
    parts = []
    for i, (x, q) in enumerate(zip(call.codes, grids, strict=True)):
        codes = torch.arange(q.scheme.qmin, q.scheme.qmax + 1).to(x.dtype)
        divided = FP32_RNE.quantize(dequantize(codes, q), call.output).clamp(n.low, n.high)
        if not torch.equal(divided, _rescaled(n, call.dtype, i, codes)):
            d = centred_value(x, n.x_zero[i])
            x, q = requantize(d, n.rounding, rescales[i], n, call.dtype), call.output
        parts.append(to_real(x, q.scale, q.zero_point))
    real = call.graph.node("Concat", *parts, dtype=torch.float32, axis=axis)
    return to_codes(call, real)


def _tflite(call: TfliteCall) -> TfliteValue:
    """CONCATENATION of codes that share a scale: the others are looked up before."""
    n: OperandNumbers = call.numbers
    parts = []
    for i, x in enumerate(call.codes):
        rescale = Rescale(n.multiplier[i], n.shift[i])
        same = x.dtype == call.dtype and _keeps_codes(x, n.x_zero[i], rescale, n)
        one = call._replace(codes=(x,), kernel=partial(_rescaled, n, call.dtype, i))
        parts.append(x if same else by_table(one))
    return concatenated(call, parts, call.settings["dim"])


def _keeps_codes(x: Value | TfliteValue, zero: Tensor, rescale: Rescale, n: OperandNumbers) -> bool:
    """Whether an operand comes through unchanged."""
    one = float(rescale.multiplier) == 2.0 ** int(rescale.shift)
    ends = torch.iinfo(x.dtype)
    unlimited = int(n.low.max()) <= ends.min and int(n.high.min()) >= ends.max
    return one and int(zero) == int(n.y_zero) and unlimited


CAT = OpSpec(
    name="cat",
    function=cat,
    functions=(torch.cat, torch.concat, torch.concatenate),
    methods=(),
    modules={},
    read=_read,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_onnx,
    tflite=_tflite,
    qdq=_qdq,
    fast=_fast,
)
