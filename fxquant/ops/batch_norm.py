"""Batch norm on its own (after a pool, a sum or a concat), with running statistics.

    real      y = f[c]·x + o[c]          f = γ/√(σ²+ε),  o = β - μ·f
    integer   q_y = clamp(z_y + (((q_x - z_x)·m[c] + o_q[c] + 2^(S-1)) >> S))

with signed multipliers m·2^-S = f·s_x/s_y and o_q = round(o/s_y · 2^S), as in
`ops/factor_and_offset.py`: one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.tflite_ways import by_channel
from fxquant.intmath import per_channel
from fxquant.ops.factor_and_offset import (
    AffineNumbers,
    affine_accumulator,
    affine_kernel,
    affine_numbers,
    affine_onnx,
)
from fxquant.ops.spec import (
    Affine,
    Call,
    OpSpec,
    Output,
    Parameter,
    RealCall,
    not_spelled,
    signature_reader,
)


def batch_norm(input: Tensor, *, batch_norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[N, C, ...] through the BatchNorm module handed in; same shape."""
    return batch_norm(input)


def fixed_batch_norm(
    input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None,
    bias: Tensor | None, eps: float,
) -> Tensor:
    """[N, C, ...] through statistics that no mode changes; same shape."""
    return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)


def batch_norm_affine(batch_norm: object) -> Affine:
    """A batch norm in eval() as `y = factor · x + offset`.

        factor = γ / √(σ² + ε)        offset = β - μ · factor
    """
    bn: Any = batch_norm
    factor = torch.rsqrt(bn.running_var + bn.eps)
    if bn.weight is not None:
        factor = factor * bn.weight
    offset = -bn.running_mean * factor
    return Affine(factor, offset if bn.bias is None else offset + bn.bias)


_by_signature = signature_reader(F.batch_norm)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str | None:
    call = _by_signature(args, kwargs)
    if call is None:
        return None
    options = dict(call.options)
    del options["momentum"]
    if options.pop("training") is not False or options["running_mean"] is None:
        return "it normalises each batch by itself, which is no fixed function"
    return Call(call.inputs, options)


def _options(module: Any) -> dict[str, Any] | None:
    # without running statistics it normalises each batch by itself: not a fixed function
    return None if module.running_mean is None else {"batch_norm": Parameter("")}


def _numbers(call: RealCall) -> AffineNumbers:
    affine = call.affine or batch_norm_affine(SimpleNamespace(**call.options))
    s_y = call.target.qparams.scale.double()
    factor, offset = (values.detach().double() / s_y for values in affine)
    return affine_numbers(call, factor * call.inputs[0].scale.double(), offset)


def _along_channels(n: AffineNumbers, dims: int) -> AffineNumbers:
    multiplier, shift, offset = (per_channel(x, 1, dims) for x in n[:3])
    return n._replace(multiplier=multiplier, shift=shift, offset=offset)


def _kernel(n: AffineNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    return affine_kernel(_along_channels(n, codes.dim()), dtype, codes)


def _onnx(call: OnnxCall) -> Value:
    shape = call.codes[0].shape
    assert shape is not None  # as of all that the integer network itself gives
    return affine_onnx(call, _along_channels(call.numbers, len(shape)))


BATCH_NORM = OpSpec(
    name="batch_norm",
    function=batch_norm,
    functions=(),
    methods=(),
    modules={
        nn.BatchNorm1d: _options,
        nn.BatchNorm2d: _options,
        nn.BatchNorm3d: _options,
        nn.SyncBatchNorm: _options,
    },
    read=not_spelled,  # only modules: what functions read has no state to train
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=affine_accumulator,
    onnx=_onnx,
    tflite=by_channel,
    real=("batch_norm",),
)

FIXED_BATCH_NORM = OpSpec(
    name="fixed_batch_norm",
    function=fixed_batch_norm,
    functions=(F.batch_norm,),
    methods=(),
    modules={},
    read=_read,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=affine_accumulator,
    onnx=_onnx,
    tflite=by_channel,
    real=("running_mean", "running_var", "weight", "bias", "eps"),
)
"""Called as a function, with `training=False`."""
