"""Batch norm on its own (after a pool, a sum or a concat), with running statistics.

    real      y = f[c]·x + o[c]          f = γ/√(σ²+ε),  o = β - μ·f
    integer   q_y = clamp(z_y + (((q_x - z_x)·m[c] + o_q[c] + 2^(S-1)) >> S))

with signed multipliers m·2^-S = f·s_x/s_y and o_q = round(o/s_y · 2^S): one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value, centred_value, finish_value
from fxquant.forms.tflite_ways import by_channel
from fxquant.intmath import centred, per_channel
from fxquant.ops.accumulator import Accumulator, IntegerCall, reach
from fxquant.ops.site import batch_norm_affine
from fxquant.ops.spec import (
    Call,
    OpSpec,
    Output,
    Parameter,
    RealCall,
    not_spelled,
    signature_reader,
)
from fxquant.rounding import Rounding, rescale_of

_OFFSET_LIMIT = 2.0**62  # so that the sum stays inside int64


class BatchNormNumbers(NamedTuple):
    """Per channel: `multiplier`, `shift`, `offset` (int64 [C]); the others 0-dim int32."""

    multiplier: Tensor
    shift: Tensor
    offset: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def batch_norm(input: Tensor, *, batch_norm: Callable[[Tensor], Tensor]) -> Tensor:
    """[N, C, ...] through the BatchNorm module handed in; same shape."""
    return batch_norm(input)


def fixed_batch_norm(
    input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None,
    bias: Tensor | None, eps: float,
) -> Tensor:
    """[N, C, ...] through statistics that no mode changes; same shape."""
    return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)


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


def _numbers(call: RealCall) -> BatchNormNumbers:
    affine = call.affine or batch_norm_affine(SimpleNamespace(**call.options))
    s_y = call.target.qparams.scale.double()
    factor, offset = (values.detach().double() / s_y for values in affine)
    rescale = rescale_of(factor * call.inputs[0].scale.double())
    offset = torch.ldexp(offset, rescale.shift).round()
    return BatchNormNumbers(
        multiplier=rescale.multiplier,
        shift=rescale.shift,
        offset=offset.clamp(-_OFFSET_LIMIT, _OFFSET_LIMIT).to(torch.int64),
        x_zero=call.inputs[0].zero_point,
        y_zero=call.target.qparams.zero_point,
        low=call.target.low,
        high=call.target.high,
        rounding=call.target.rounding,
    )


def _kernel(n: BatchNormNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    dims = codes.dim()
    product = centred(codes, n.x_zero) * per_channel(n.multiplier, 1, dims)
    product = product + per_channel(n.offset, 1, dims)
    y = n.rounding.shift(product, per_channel(n.shift, 1, dims)) + n.y_zero
    return torch.clamp(y, n.low, n.high).to(dtype)


def _accumulator(call: IntegerCall) -> Accumulator:
    n: BatchNormNumbers = call.numbers
    product = reach(call.inputs[0].scheme, n.x_zero) * n.multiplier.abs()
    return Accumulator(tuple((product + n.offset.abs()).tolist()), 2, bits=64)


def _onnx(call: OnnxCall) -> Value:
    n: BatchNormNumbers = call.numbers
    assert call.codes[0].shape is not None  # as of all that the integer network itself gives
    dims = len(call.codes[0].shape)
    multiplier, offset, shift = (
        per_channel(values, 1, dims) for values in (n.multiplier, n.offset, n.shift)
    )
    total = centred_value(call.codes[0], n.x_zero) * multiplier + offset
    return finish_value(total, n.rounding, shift, n, call.dtype)


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
    accumulator=_accumulator,
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
    accumulator=_accumulator,
    onnx=_onnx,
    tflite=by_channel,
    real=("running_mean", "running_var", "weight", "bias", "eps"),
)
"""Called as a function, with `training=False`."""
