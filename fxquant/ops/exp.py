"""Exponential.

    real      y = eˣ
    integer   q_y = table[q_x - q_min], its entries rounded once
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.forms.tflite_ways import by_table
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import OpSpec, Output
from fxquant.ops.table import look_up, look_up_onnx, table_numbers, table_reader


def exp(input: Tensor) -> Tensor:
    """Any shape."""
    return torch.exp(input)


EXP = OpSpec(
    name="exp",
    function=exp,
    functions=(torch.exp,),
    methods=("exp",),
    modules={},
    read=table_reader(exp),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(exp),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
)
