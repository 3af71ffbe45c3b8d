"""Leaky ReLU. A positive factor goes through it as through ReLU.

    real      y = x where x > 0, else slope·x
    integer   q_y = table[q_x - q_min], its entries rounded once
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.tflite_ways import by_table
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import OpSpec, Output, module_options
from fxquant.ops.table import look_up, look_up_onnx, table_numbers, table_reader


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Any shape."""
    return F.leaky_relu(input, negative_slope)


def _options(module: nn.Module) -> dict[str, Any]:
    return module_options(module, "negative_slope")


LEAKY_RELU = OpSpec(
    name="leaky_relu",
    function=leaky_relu,
    functions=(F.leaky_relu,),
    methods=(),
    modules={nn.LeakyReLU: _options},
    read=table_reader(leaky_relu),
    output=Output.OWN,
    range=None,
    homogeneous=True,
    weight_axis=None,
    numbers=table_numbers(leaky_relu),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
    real=("negative_slope",),
)
