"""ReLU on its own. Its output keeps its input's range, so nothing is rounded.

    real      y = max(x, 0)
    integer   q_y = max(q_x, z_x)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import IntegerCall, adds_nothing
from fxquant.ops.spec import OpSpec, Output, ZeroPoint, signature_reader, zero_point


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Any shape; out of place whatever `inplace` says (capture made the reads agree)."""
    return torch.relu(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {"inplace": False}


def _kernel(n: ZeroPoint, dtype: torch.dtype, codes: Tensor, inplace: bool) -> Tensor:
    return torch.maximum(codes, n.zero.to(dtype))


def _onnx(call: OnnxCall) -> Value:
    return call.codes[0].clamp(min=call.numbers.zero)


def _tflite(call: TfliteCall) -> TfliteValue:
    (x,), zero = call.codes, call.numbers.zero
    return x.clamp(zero, torch.full_like(zero, torch.iinfo(call.dtype).max))


def _fast(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    return Plain(partial(_above, int(call.numbers.zero)))


def _above(zero: int, codes: Tensor, inplace: bool) -> Tensor:
    return torch.clamp(codes, min=zero)


RELU = OpSpec(
    name="relu",
    function=relu,
    functions=(F.relu, torch.relu),
    methods=("relu",),
    modules={nn.ReLU: _options},
    read=signature_reader(relu),
    output=Output.EXACT,
    range=None,
    homogeneous=True,
    weight_axis=None,
    numbers=zero_point,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_onnx,
    tflite=_tflite,
    fast=_fast,
)
