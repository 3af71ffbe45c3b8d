"""L2 normalisation: each row divided by its length. Values lie between -1 and 1.

    real      y = x/max(√Σx², eps)
    integer   q_y = z_y + u/√V/s_y, rounded once        as in moments.py, to length 1
              u = d,  V = max(Σd², (eps/s_x)²)          d = q_x - z_x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.forms.onnx import OnnxCall
from fxquant.ops.moments import (
    MomentNumbers,
    Rows,
    accumulator_of_norm,
    finish,
    moment_numbers,
    moment_reader,
    moments_to_length_one,
    norm_onnx,
    to_length_one,
)
from fxquant.ops.spec import Call, OpSpec, Output, RealCall, as_tuple


def normalize(input: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    """Any shape."""
    return F.normalize(input, 2.0, dim, eps)  # type: ignore[arg-type]  # several are fine, too


_by_signature = moment_reader(F.normalize)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _by_signature(args, kwargs)
    if call is None or call.options["p"] != 2 or call.options["out"] is not None:
        return None
    return Call(call.inputs, {name: call.options[name] for name in ("dim", "eps")})


def _numbers(call: RealCall) -> MomentNumbers:
    return moment_numbers(call, call.options["eps"] ** 2)


def _kernel(
    n: MomentNumbers, dtype: torch.dtype, codes: Tensor, dim: int | tuple[int, ...]
) -> Tensor:
    return finish(n, dtype, to_length_one(n, codes, as_tuple(dim)))


def _rows(call: OnnxCall) -> Rows:
    return Rows(call.codes[0], as_tuple(call.settings["dim"]))


NORMALIZE = OpSpec(
    name="normalize",
    function=normalize,
    functions=(F.normalize,),
    methods=(),
    modules={},
    read=_read,
    output=Output.OWN,
    range=(-1.0, 1.0),
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=accumulator_of_norm,
    onnx=norm_onnx(_rows, moments_to_length_one),
    real=("eps",),
)
