"""Sigmoid. Its values lie between 0 and 1, whatever it reads.

    real      y = 1 / (1 + e⁻ˣ)
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


def sigmoid(input: Tensor) -> Tensor:
    """Any shape."""
    return torch.sigmoid(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {}


SIGMOID = OpSpec(
    name="sigmoid",
    function=sigmoid,
    functions=(torch.sigmoid, torch.special.expit),
    methods=("sigmoid",),
    modules={nn.Sigmoid: _options},
    read=table_reader(sigmoid),
    output=Output.OWN,
    range=(0.0, 1.0),
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(sigmoid),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
)
