"""GELU, in its exact form and in the one with a tanh.

    real      y = x·Φ(x) = x·(1 + erf(x/√2)) / 2                              approximate="none"
              y = x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2                  approximate="tanh"
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


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Any shape."""
    return F.gelu(input, approximate=approximate)


def _options(module: nn.Module) -> dict[str, Any]:
    return module_options(module, "approximate")


GELU = OpSpec(
    name="gelu",
    function=gelu,
    functions=(F.gelu,),
    methods=(),
    modules={nn.GELU: _options},
    read=table_reader(gelu),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(gelu),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
    real=("approximate",),
)
