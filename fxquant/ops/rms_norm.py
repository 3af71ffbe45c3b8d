"""RMS norm: each row divided by the root of its mean square, over the last dimensions.

    real      y = w·x/√(Σx²/N + eps)                      over the N values of a row
    integer   q_y = z_y + w·u/√V/s_y, rounded once        as in moments.py, about zero
              u = N·d,  V = N·Σd² + N²·eps/s_x²           d = q_x - z_x

An eps that is not given is the distance of 1 from the next number, as in torch.
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
    about_zero,
    accumulator_of_norm,
    finish,
    moment_numbers,
    moment_reader,
    moments_about_zero,
    norm_onnx,
    parameters_of_norm,
)
from fxquant.ops.spec import OpSpec, Output, RealCall, module_options


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """[..., *normalized_shape], same out; the weight has the normalized shape."""
    return F.rms_norm(input, list(normalized_shape), weight, eps)


# as a table, since torch.compile does not know finfo of a tensor's type
_EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


def _options(module: nn.RMSNorm) -> dict[str, Any]:
    weight = {"weight": parameters_of_norm(module)["weight"]}
    return weight | module_options(module, "normalized_shape", "eps")


def _numbers(call: RealCall) -> MomentNumbers:
    eps = call.options["eps"]
    return moment_numbers(call, _EPS[call.inputs[0].scale.dtype] if eps is None else eps)


def _kernel(
    n: MomentNumbers, dtype: torch.dtype, codes: Tensor, normalized_shape: Sequence[int]
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return finish(n, dtype, about_zero(n, codes, dims))


def _rows(call: OnnxCall) -> Rows:
    return Rows(call.codes[0], tuple(range(-len(call.settings["normalized_shape"]), 0)))


RMS_NORM = OpSpec(
    name="rms_norm",
    function=rms_norm,
    functions=(F.rms_norm, torch.rms_norm),
    methods=(),
    modules={nn.RMSNorm: _options},
    read=moment_reader(rms_norm),
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=accumulator_of_norm,
    onnx=norm_onnx(_rows, moments_about_zero),
    real=("weight", "eps"),
)
