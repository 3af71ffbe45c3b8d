"""Group norm: each group of channels of each sample to mean 0 and variance 1.

    real      y = w[c]·(x - μ)/√(σ² + eps) + b[c]                μ, σ² over the N values of a group
    integer   q_y = z_y + (w[c]·u/√V + b[c])/s_y, rounded once   as in moments.py, about the mean
              u = N·d - Σd,  V = N·Σd² - (Σd)² + N²·eps/s_x²     d = q_x - z_x
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall
from fxquant.ops.moments import (
    MomentNumbers,
    Rows,
    Units,
    about_mean,
    accumulator_of_norm,
    finish,
    moment_reader,
    moments_about_mean,
    norm_numbers,
    norm_onnx,
    parameters_of_norm,
)
from fxquant.ops.spec import OpSpec, Output, module_options


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """[N, C, ...], same out; weight and bias [C]."""
    return F.group_norm(input, num_groups, weight, bias, eps)


def _options(module: nn.GroupNorm) -> dict[str, Any]:
    return parameters_of_norm(module) | module_options(module, "num_groups", "eps")


def _kernel(n: MomentNumbers, dtype: torch.dtype, codes: Tensor, num_groups: int) -> Tensor:
    N, C, *places = codes.shape
    grouped = codes.reshape(N, num_groups, C // num_groups, *places)
    t, bits = about_mean(n, grouped, tuple(range(2, grouped.dim())))
    return finish(n, dtype, Units(t.flatten(1, 2), bits), axis=1)


def _rows(call: OnnxCall) -> Rows:
    (x,), groups = call.codes, call.settings["num_groups"]
    assert x.shape is not None  # as of all that the integer network itself gives
    batch, _, *places = x.shape
    shape = (batch, groups, x.sizes[1] // groups, *places)
    grouped = x.reshape(shape)
    grouped.shape = shape
    return Rows(grouped, tuple(range(2, len(shape))), 1)


GROUP_NORM = OpSpec(
    name="group_norm",
    function=group_norm,
    functions=(F.group_norm, torch.group_norm),
    methods=(),
    modules={nn.GroupNorm: _options},
    read=moment_reader(group_norm),
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
