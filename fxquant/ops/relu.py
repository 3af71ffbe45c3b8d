"""ReLU on its own. Its output keeps its input's range, so nothing is rounded.

    real      y = max(x, 0)
    integer   q_y = max(q_x, z_x)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.ops.spec import OpSpec, Output, RealCall, signature_reader


class ReLUNumbers(NamedTuple):
    """`zero` (0-dim int32): the code that stands for 0."""

    zero: Tensor


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Any shape; out of place whatever `inplace` says (capture made the reads agree)."""
    return torch.relu(input)


def _options(module: nn.Module) -> dict[str, Any]:
    return {"inplace": False}


def _numbers(call: RealCall) -> ReLUNumbers:
    return ReLUNumbers(call.target.qparams.zero_point)


def _kernel(n: ReLUNumbers, dtype: torch.dtype, codes: Tensor, inplace: bool) -> Tensor:
    return torch.maximum(codes, n.zero.to(dtype))


RELU = OpSpec(
    name="relu",
    function=relu,
    functions=(F.relu, torch.relu),
    methods=("relu",),
    modules={nn.ReLU: _options},
    read=signature_reader(relu),
    output=Output.EXACT,
    weight_axis=None,
    folds=False,
    numbers=_numbers,
    kernel=_kernel,
)
