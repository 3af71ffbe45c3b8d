"""One operator on codes and parameters that a test chooses, without a network around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.intmath import Target
from fxquant.ops import op_named
from fxquant.ops.spec import RealCall
from fxquant.rounding import HALF_UP, Rounding
from fxquant.schemes import UINT8, QParams, QuantScheme


def qparams(scale: float, zero_point: int, scheme: QuantScheme = UINT8) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), scheme)


def all_codes(scheme: QuantScheme = UINT8) -> Tensor:
    """Every code once, in order."""
    return torch.arange(scheme.qmin, scheme.qmax + 1).to(scheme.dtype)


def pairs(a: QParams, b: QParams) -> tuple[Tensor, Tensor]:
    """Every pair of codes, in the order of `itertools.product`."""
    grid = torch.cartesian_prod(all_codes(a.scheme).long(), all_codes(b.scheme).long())
    return grid[:, 0].to(a.scheme.dtype), grid[:, 1].to(b.scheme.dtype)


def real_call(
    inputs: tuple[QParams, ...], output: QParams, options: dict[str, Any],
    rounding: Rounding = HALF_UP,
) -> RealCall:
    """A call whose result is clamped to nothing but the scheme's ends."""
    low, high = (
        torch.tensor(end, dtype=torch.int32) for end in (output.scheme.qmin, output.scheme.qmax)
    )
    return RealCall(inputs, Target(output, low, high, rounding), None, None, options)


def integers(
    name: str, inputs: tuple[QParams, ...], output: QParams, *codes: Tensor,
    rounding: Rounding = HALF_UP, **options: Any,
) -> Tensor:
    """The codes that the operator of that name gives."""
    op = op_named(name)
    numbers = op.numbers(real_call(inputs, output, options, rounding))
    settings = {k: v for k, v in options.items() if k not in op.real}  # they are in the numbers
    return op.kernel(numbers, output.scheme.dtype, *codes, **settings)
