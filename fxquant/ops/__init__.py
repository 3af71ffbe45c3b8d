"""The operators that have an integer form. One file each; the list is written, not found."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxquant.ops.adaptive_avg_pool import (
    ADAPTIVE_AVG_POOL1D,
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_AVG_POOL3D,
)
from fxquant.ops.add import ADD
from fxquant.ops.avg_pool import AVG_POOL1D, AVG_POOL2D, AVG_POOL3D
from fxquant.ops.batch_norm import BATCH_NORM
from fxquant.ops.cat import CAT
from fxquant.ops.clamp import CLAMP, HARDTANH, RELU6
from fxquant.ops.conv import CONV1D, CONV2D, CONV3D
from fxquant.ops.conv_transpose import CONV_TRANSPOSE1D, CONV_TRANSPOSE2D, CONV_TRANSPOSE3D
from fxquant.ops.linear import LINEAR
from fxquant.ops.max_pool import MAX_POOL1D, MAX_POOL2D, MAX_POOL3D
from fxquant.ops.mean import MEAN
from fxquant.ops.pad import PAD
from fxquant.ops.relu import RELU
from fxquant.ops.spec import OpSpec
from fxquant.ops.zero import ZERO

OPS: tuple[OpSpec, ...] = (
    CONV1D,
    CONV2D,
    CONV3D,
    CONV_TRANSPOSE1D,
    CONV_TRANSPOSE2D,
    CONV_TRANSPOSE3D,
    LINEAR,
    BATCH_NORM,
    RELU,
    RELU6,
    HARDTANH,
    CLAMP,
    ADD,
    CAT,
    MAX_POOL1D,
    MAX_POOL2D,
    MAX_POOL3D,
    AVG_POOL1D,
    AVG_POOL2D,
    AVG_POOL3D,
    ADAPTIVE_AVG_POOL1D,
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_AVG_POOL3D,
    MEAN,
    ZERO,
    PAD,
)

_BY_NAME = {op.name: op for op in OPS}
_BY_FUNCTION = {function: op for op in OPS for function in op.functions}
_BY_METHOD = {method: op for op in OPS for method in op.methods}
_BY_MODULE = {module: op for op in OPS for module in op.modules}


def op_named(name: str) -> OpSpec:
    """The operator of that name."""
    return _BY_NAME[name]


def op_of_function(function: Callable[..., Any]) -> OpSpec | None:
    """The operator that a function in user code spells."""
    return _BY_FUNCTION.get(function)


def op_of_method(method: str) -> OpSpec | None:
    """The operator that a Tensor method in user code spells."""
    return _BY_METHOD.get(method)


def op_of_module(module: nn.Module) -> OpSpec | None:
    """The operator that a module stands for; only of exactly that type."""
    return _BY_MODULE.get(type(module))
