"""A tensor and plain numbers: `2 * x`, `x / 3`, `x + 1`, `x - 0.5`, `2 - x`, `-x`; one rounding.

    real      y = f·x + o
    integer   q_y = clamp(z_y + (((q_x - z_x)·m + o_q + 2^(S-1)) >> S))

with m·2^-S = f·s_x/s_y, of either sign, and o_q = round(o/s_y · 2^S), as in
`ops/factor_and_offset.py`. Every spelling is read into
f and o; what is multiplied by 0 is another operator.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.tflite_ways import by_table
from fxquant.ops.factor_and_offset import (
    AffineNumbers,
    affine_accumulator,
    affine_kernel,
    affine_numbers,
    affine_onnx,
)
from fxquant.ops.spec import Call, OpSpec, Output, Reader, RealCall

DOES_NOTHING = {"factor": 1.0, "offset": 0.0}


def affine(input: Tensor, factor: float, offset: float) -> Tensor:
    """Any shape."""
    return input * factor + offset


def _plus(x: int, numbers: list[float]) -> tuple[float, float]:
    return 1.0, numbers[1 - x]


def _minus(x: int, numbers: list[float]) -> tuple[float, float]:
    return (1.0, -numbers[1]) if x == 0 else (-1.0, numbers[0])


def _times(x: int, numbers: list[float]) -> tuple[float, float] | None:
    number = numbers[1 - x]
    return None if number == 0 else (number, 0.0)  # zero is an operator of its own


def _over(x: int, numbers: list[float]) -> tuple[float, float] | None:
    return None if x == 1 or numbers[1] == 0 else (1 / numbers[1], 0.0)


Coefficients = Callable[[int, list[float]], tuple[float, float] | None]


def _reader(coefficients: Coefficients, **defaults: Any) -> Reader:
    """Read a tensor and a number, in either order, beside settings that are at their defaults.

    `coefficients(x, numbers)` gives factor and offset; the tensor is operand `x`, 0 or 1.
    """

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        named = dict(kwargs)
        operands = [*args, *(named.pop(name) for name in ("input", "other") if name in named)]
        nodes = [x for x in operands if isinstance(x, fx.Node)]
        numbers = [x if _is_number(x) else math.nan for x in operands]
        if len(operands) != 2 or len(nodes) != 1 or named not in ({}, defaults):
            return None
        found = coefficients(operands.index(nodes[0]), numbers)
        if found is None or not all(map(math.isfinite, found)):
            return None  # also where what is no tensor is no number either
        factor, offset = map(float, found)
        return Call((nodes[0],), {"factor": factor, "offset": offset})

    return read


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _read_neg(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    operands = (*args, *kwargs.values())
    if len(operands) != 1 or not isinstance(operands[0], fx.Node):
        return None
    return Call(operands, {"factor": -1.0, "offset": 0.0})


def _numbers(call: RealCall) -> AffineNumbers:
    s_x, s_y = call.inputs[0].scale.double(), call.target.qparams.scale.double()
    return affine_numbers(call, call.options["factor"] * s_x / s_y, call.options["offset"] / s_y)


def _onnx(call: OnnxCall) -> Value:
    return affine_onnx(call, call.numbers)


def _record(
    name: str, functions: tuple[Any, ...], methods: tuple[str, ...], read: Reader,
    *, homogeneous: bool,
) -> OpSpec:
    return OpSpec(
        name=name,
        function=affine,
        functions=functions,
        methods=methods,
        modules={},
        read=read,
        output=Output.OWN,
        range=None,
        homogeneous=homogeneous,
        weight_axis=None,
        numbers=_numbers,
        kernel=affine_kernel,
        accumulator=affine_accumulator,
        onnx=_onnx,
        tflite=by_table,
        real=("factor", "offset"),
    )


ADD_NUMBER = _record(
    "add_number", (operator.add, torch.add), ("add",), _reader(_plus, alpha=1), homogeneous=False
)
SUB_NUMBER = _record(
    "sub_number",
    (operator.sub, torch.sub, torch.subtract),
    ("sub", "subtract"),
    _reader(_minus, alpha=1),
    homogeneous=False,
)
MUL_NUMBER = _record(
    "mul_number",
    (operator.mul, torch.mul, torch.multiply),
    ("mul", "multiply"),
    _reader(_times),
    homogeneous=True,
)
DIV_NUMBER = _record(
    "div_number",
    (operator.truediv, torch.div, torch.divide, torch.true_divide),
    ("div", "divide", "true_divide"),
    _reader(_over, rounding_mode=None),
    homogeneous=True,
)
NEG = _record(
    "neg",
    (operator.neg, torch.neg, torch.negative),
    ("neg", "negative"),
    _read_neg,
    homogeneous=True,
)
