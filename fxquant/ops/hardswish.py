"""Hardswish: x times its hardsigmoid.

    real      y = x·min(max(x + 3, 0), 6) / 6
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


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Any shape."""
    return F.hardswish(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {}


HARDSWISH = OpSpec(
    name="hardswish",
    function=hardswish,
    functions=(F.hardswish,),
    methods=(),
    modules={nn.Hardswish: _options},
    read=table_reader(hardswish),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(hardswish),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
)
