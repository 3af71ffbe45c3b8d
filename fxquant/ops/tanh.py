"""Hyperbolic tangent. Its values lie between -1 and 1, whatever it reads.

    real      y = (eˣ - e⁻ˣ) / (eˣ + e⁻ˣ)
    integer   q_y = table[q_x - q_min], its entries rounded once
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.forms.tflite_ways import by_table
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import OpSpec, Output
from fxquant.ops.table import look_up, look_up_onnx, table_numbers, table_reader


def tanh(input: Tensor) -> Tensor:
    """Any shape."""
    return torch.tanh(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {}


TANH = OpSpec(
    name="tanh",
    function=tanh,
    functions=(torch.tanh,),
    methods=("tanh",),
    modules={nn.Tanh: _options},
    read=table_reader(tanh),
    output=Output.OWN,
    range=(-1.0, 1.0),
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(tanh),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
)
