"""Hardsigmoid: straight from -3 to 3, and constant beyond.

    real      y = min(max(x + 3, 0), 6) / 6
    integer   q_y = table[q_x - q_min], its entries rounded once
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.tflite_ways import by_table
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.spec import OpSpec, Output
from fxquant.ops.table import look_up, look_up_onnx, table_numbers, table_reader


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Any shape."""
    return F.hardsigmoid(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {}


HARDSIGMOID = OpSpec(
    name="hardsigmoid",
    function=hardsigmoid,
    functions=(F.hardsigmoid,),
    methods=(),
    modules={nn.Hardsigmoid: _options},
    read=table_reader(hardsigmoid),
    output=Output.OWN,
    range=(0.0, 1.0),
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(hardsigmoid),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
)
