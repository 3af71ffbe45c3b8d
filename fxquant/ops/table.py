"""What one-byte functions have in common: one table holds every result there is.

    real      y = f(x)
    integer   q_y = table[q_x - q_min]
              table[i] = clamp(z_y + round(f(s_x·(q_min + i - z_x)) / s_y))

Codes of 8 bits have a table of 256 entries. They are made in float64, each rounded once: nothing is
approximated. The kernel only looks up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.forms.onnx import OnnxCall, Value
from fxquant.kernels.bytes import look_up_in
from fxquant.ops.spec import Call, Reader, RealCall, signature_reader


class TableNumbers(NamedTuple):
    """`table`: the output's code for every code of the input, from `lowest` (0-dim int32) on."""

    table: Tensor
    lowest: Tensor


def table_reader(function: Callable[..., Tensor]) -> Reader:
    """Read a call by the signature of `function`; whether it is in place does not matter."""
    by_signature = signature_reader(function)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        call = by_signature(args, kwargs)
        if call is None:
            return None
        settings = {name: value for name, value in call.options.items() if name != "inplace"}
        if any(isinstance(value, fx.Node) for value in settings.values()):
            return None  # a number that the graph computes is not known when the table is made
        return Call(call.inputs, settings)

    return read


def table_numbers(function: Callable[..., Tensor]) -> Callable[[RealCall], TableNumbers]:
    """How to make the table of `function(x, **options)`, which computes in the dtype of x."""

    def numbers(call: RealCall) -> TableNumbers:
        x, (y, low, high, rounding) = call.inputs[0], call.target
        codes = torch.arange(x.scheme.qmin, x.scheme.qmax + 1, device=x.scale.device)
        real = function((codes - x.zero_point).double() * x.scale.double(), **call.options)
        results = rounding.nearest(real / y.scale.double()) + y.zero_point
        lowest = torch.full_like(x.zero_point, x.scheme.qmin)
        return TableNumbers(torch.clamp(results, low, high).to(y.scheme.dtype), lowest)

    return numbers


def look_up(n: TableNumbers, dtype: torch.dtype, codes: Tensor) -> Tensor:
    """The kernel of every such function."""
    return look_up_in(n.table, codes.to(torch.int32) - n.lowest)


def look_up_onnx(call: OnnxCall) -> Value:
    """The form of every such function."""
    n: TableNumbers = call.numbers
    return (call.codes[0].to(torch.int32) - n.lowest).look_up(n.table)
