"""ELU.

    real      y = x where x > 0, else α·(eˣ - 1)
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


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Any shape."""
    return F.elu(input, alpha)


def _options(module: nn.Module) -> dict[str, Any]:
    return module_options(module, "alpha")


ELU = OpSpec(
    name="elu",
    function=elu,
    functions=(F.elu,),
    methods=(),
    modules={nn.ELU: _options},
    read=table_reader(elu),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(elu),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
    real=("alpha",),
)
