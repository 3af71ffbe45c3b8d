"""Instance norm without running statistics: each channel of each sample to mean 0, variance 1.

    real      y = w[c]·(x - μ)/√(σ² + eps) + b[c]                μ, σ² over a channel's N places
    integer   q_y = z_y + (w[c]·u/√V + b[c])/s_y, rounded once   as in moments.py, about the mean
              u = N·d - Σd,  V = N·Σd² - (Σd)² + N²·eps/s_x²     d = q_x - z_x

With running statistics eval() is another function, of x alone: that has no integer form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall
from fxquant.ops.moments import (
    MomentNumbers,
    Rows,
    about_mean,
    accumulator_of_norm,
    finish,
    moment_reader,
    moments_about_mean,
    norm_numbers,
    norm_onnx,
    parameters_of_norm,
)
from fxquant.ops.spec import Call, OpSpec, Output, module_options


def instance_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axis: int
) -> Tensor:
    """[N, C, ...], or [C, ...] where `axis`, the one of the channels, says so; same out."""
    batch = input if axis % input.dim() else input.unsqueeze(0)
    y = F.instance_norm(batch, weight=weight, bias=bias, eps=eps)
    return y.reshape(input.shape)


_NO_STATISTICS = "an instance norm with running statistics has no integer form"
_by_signature = moment_reader(F.instance_norm)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str | None:
    call = _by_signature(args, kwargs)
    if call is None:
        return None
    statistics = call.options["running_mean"], call.options["running_var"]
    if call.options["use_input_stats"] is not True or statistics != (None, None):
        return _NO_STATISTICS
    options = {name: call.options[name] for name in ("weight", "bias", "eps")}
    return Call(call.inputs, options | {"axis": 1})


def _options_over(dims: int) -> Callable[[Any], dict[str, Any] | str]:
    def options(module: Any) -> dict[str, Any] | str:
        if module.running_mean is not None:
            return _NO_STATISTICS
        axis = {"axis": -1 - dims}  # with or without a batch
        return parameters_of_norm(module) | module_options(module, "eps") | axis

    return options


def _kernel(n: MomentNumbers, dtype: torch.dtype, codes: Tensor, axis: int) -> Tensor:
    channels = axis % codes.dim()
    units = about_mean(n, codes, tuple(range(channels + 1, codes.dim())))
    return finish(n, dtype, units, axis)


def _rows(call: OnnxCall) -> Rows:
    axis, rank = call.settings["axis"], len(call.codes[0].sizes)
    return Rows(call.codes[0], tuple(range(axis % rank + 1, rank)), axis)


INSTANCE_NORM = OpSpec(
    name="instance_norm",
    function=instance_norm,
    functions=(F.instance_norm,),
    methods=(),
    modules={
        nn.InstanceNorm1d: _options_over(1),
        nn.InstanceNorm2d: _options_over(2),
        nn.InstanceNorm3d: _options_over(3),
    },
    read=_read,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=norm_numbers,
    kernel=_kernel,
    accumulator=accumulator_of_norm,
    onnx=norm_onnx(_rows, moments_about_mean),
    real=("weight", "bias", "eps"),
)
