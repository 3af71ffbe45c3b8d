"""The operators that have an integer form. One file each; the list is written, not found."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fxquant.ops.adaptive_avg_pool import (
    ADAPTIVE_AVG_POOL1D,
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_AVG_POOL3D,
)
from fxquant.ops.adaptive_max_pool import (
    ADAPTIVE_MAX_POOL1D,
    ADAPTIVE_MAX_POOL2D,
    ADAPTIVE_MAX_POOL3D,
)
from fxquant.ops.add import ADD
from fxquant.ops.affine import ADD_NUMBER, DIV_NUMBER, MUL_NUMBER, NEG, SUB_NUMBER
from fxquant.ops.avg_pool import AVG_POOL1D, AVG_POOL2D, AVG_POOL3D
from fxquant.ops.batch_norm import BATCH_NORM, FIXED_BATCH_NORM
from fxquant.ops.cat import CAT
from fxquant.ops.clamp import CLAMP, HARDTANH, RELU6
from fxquant.ops.conv import CONV1D, CONV2D, CONV3D
from fxquant.ops.conv_transpose import CONV_TRANSPOSE1D, CONV_TRANSPOSE2D, CONV_TRANSPOSE3D
from fxquant.ops.div import DIV
from fxquant.ops.elu import ELU
from fxquant.ops.embedding import EMBEDDING
from fxquant.ops.exp import EXP
from fxquant.ops.gelu import GELU
from fxquant.ops.group_norm import GROUP_NORM
from fxquant.ops.hardsigmoid import HARDSIGMOID
from fxquant.ops.hardswish import HARDSWISH
from fxquant.ops.instance_norm import INSTANCE_NORM
from fxquant.ops.interpolate import INTERPOLATE_LINEAR, INTERPOLATE_NEAREST
from fxquant.ops.layer_norm import LAYER_NORM
from fxquant.ops.leaky_relu import LEAKY_RELU
from fxquant.ops.linear import LINEAR
from fxquant.ops.matmul import MATMUL
from fxquant.ops.max_pool import MAX_POOL1D, MAX_POOL2D, MAX_POOL3D
from fxquant.ops.mean import MEAN
from fxquant.ops.mul import MUL
from fxquant.ops.new_zeros import NEW_ZEROS
from fxquant.ops.normalize import NORMALIZE
from fxquant.ops.pad import PAD, PAD_VALUE
from fxquant.ops.pad_copies import PAD_COPIES
from fxquant.ops.prelu import PRELU
from fxquant.ops.relu import RELU
from fxquant.ops.rms_norm import RMS_NORM
from fxquant.ops.scale import SCALE
from fxquant.ops.sigmoid import SIGMOID
from fxquant.ops.silu import SILU
from fxquant.ops.softmax import SOFTMAX
from fxquant.ops.spec import OpSpec
from fxquant.ops.sub import SUB
from fxquant.ops.sum import SUM
from fxquant.ops.sum_of_products import SUM_OF_PRODUCTS
from fxquant.ops.tanh import TANH
from fxquant.ops.weighted_sum import WEIGHTED_SUM
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
    FIXED_BATCH_NORM,
    RELU,
    RELU6,
    HARDTANH,
    CLAMP,
    ADD,
    WEIGHTED_SUM,
    SUM_OF_PRODUCTS,
    SCALE,
    CAT,
    MAX_POOL1D,
    MAX_POOL2D,
    MAX_POOL3D,
    ADAPTIVE_MAX_POOL1D,
    ADAPTIVE_MAX_POOL2D,
    ADAPTIVE_MAX_POOL3D,
    AVG_POOL1D,
    AVG_POOL2D,
    AVG_POOL3D,
    ADAPTIVE_AVG_POOL1D,
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_AVG_POOL3D,
    MEAN,
    SUM,
    ZERO,
    NEW_ZEROS,
    PAD,
    PAD_VALUE,
    PAD_COPIES,
    INTERPOLATE_NEAREST,
    INTERPOLATE_LINEAR,
    EMBEDDING,
    EXP,
    SIGMOID,
    TANH,
    SILU,
    GELU,
    HARDSIGMOID,
    HARDSWISH,
    ELU,
    LEAKY_RELU,
    PRELU,
    SOFTMAX,
    LAYER_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    RMS_NORM,
    NORMALIZE,
    MUL,
    SUB,
    DIV,
    ADD_NUMBER,
    SUB_NUMBER,
    MUL_NUMBER,
    DIV_NUMBER,
    NEG,
    MATMUL,
)

_BY_NAME = {op.name: op for op in OPS}


def op_named(name: str) -> OpSpec:
    """The operator of that name."""
    return _BY_NAME[name]


def spelled_as(spelling: Callable[..., Any] | str | type[nn.Module]) -> tuple[OpSpec, ...]:
    """The operators that a function, a Tensor method or a module's exact type may stand for."""
    return _BY_SPELLING.get(spelling, ())


_BY_SPELLING: dict[Any, tuple[OpSpec, ...]] = {}
for _op in OPS:
    for _spelling in [*_op.functions, *_op.methods, *_op.modules]:
        _BY_SPELLING[_spelling] = (*_BY_SPELLING.get(_spelling, ()), _op)
