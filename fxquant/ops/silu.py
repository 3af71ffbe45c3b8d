"""SiLU, also called swish.

    real      y = x / (1 + e⁻ˣ)
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


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Any shape."""
    return F.silu(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {}


SILU = OpSpec(
    name="silu",
    function=silu,
    functions=(F.silu,),
    methods=(),
    modules={nn.SiLU: _options},
    read=table_reader(silu),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=table_numbers(silu),
    kernel=look_up,
    accumulator=adds_nothing,
    onnx=look_up_onnx,
    tflite=by_table,
)
