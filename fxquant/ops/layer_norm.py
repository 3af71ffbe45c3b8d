"""Layer norm: each row to mean 0 and variance 1, over the last dimensions.

    real      y = w·(x - μ)/√(σ² + eps) + b                      μ, σ² over the N values of a row
    integer   q_y = z_y + (w·u/√V + b)/s_y, rounded once         as in moments.py, about the mean
              u = N·d - Σd,  V = N·Σd² - (Σd)² + N²·eps/s_x²     d = q_x - z_x
"""

from __future__ import annotations

from collections.abc import Sequence
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
from fxquant.ops.spec import OpSpec, Output, module_options


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """[..., *normalized_shape], same out; weight and bias have the normalized shape."""
    return F.layer_norm(input, list(normalized_shape), weight, bias, eps)


def _options(module: nn.LayerNorm) -> dict[str, Any]:
    return parameters_of_norm(module) | module_options(module, "normalized_shape", "eps")


def _kernel(
    n: MomentNumbers, dtype: torch.dtype, codes: Tensor, normalized_shape: Sequence[int]
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return finish(n, dtype, about_mean(n, codes, dims))


def _rows(call: OnnxCall) -> Rows:
    return Rows(call.codes[0], tuple(range(-len(call.settings["normalized_shape"]), 0)))


LAYER_NORM = OpSpec(
    name="layer_norm",
    function=layer_norm,
    functions=(F.layer_norm, torch.layer_norm),
    methods=(),
    modules={nn.LayerNorm: _options},
    read=moment_reader(layer_norm),
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
