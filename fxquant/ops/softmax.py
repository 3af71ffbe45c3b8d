"""Softmax over one dimension. Its values lie between 0 and 1, whatever it reads.

    real      y_i = e^(x_i - max x) / Σ e^(x_j - max x)
    integer   e_i = table[max q - q_i]                     table[d] = round(2^20 · e^(-s_x·d))
              q_y = clamp(z_y + floor((2·e_i·m + (Σ e_j << S)) / (Σ e_j << (S + 1))))

with m·2^-S = 1/s_y. The exponentials are looked up, their sum is exact, one division rounds. The
table of wider codes ends where its entries are 0, and so does every distance beyond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.errors import AccumulatorError
from fxquant.forms.onnx import OnnxCall, Value, of_values
from fxquant.ops.accumulator import Accumulator, IntegerCall
from fxquant.ops.spec import Call, OpSpec, Output, RealCall, signature_reader
from fxquant.rounding import MULTIPLIER_BITS, Rounding, rescale_of
from fxquant.schemes import QParams

ONE_BITS = 20  # e^0 is 2^20
# Nothing leaves int64: e_i <= 2^20 and m < 2^31, so 2·e_i·m < 2^52; S <= 24 and Σ e_j is at most
# 2^20 a column, so (Σ e_j << (S + 1)) <= 2^62 up to 2^17 columns. The dividend stays below 2^62.
_MAX_SHIFT = 24
_NOTHING = math.log(2 ** (ONE_BITS + 1))  # e to minus this is half of the last bit
MAX_COLUMNS = 2**17


class SoftmaxNumbers(NamedTuple):
    """`table`: int32, the exponential of each distance from the largest code; `multiplier` and
    `shift`, 0-dim int64, of 1/s_y; the others 0-dim int32.
    """

    table: Tensor
    multiplier: Tensor
    shift: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def softmax(input: Tensor, dim: int) -> Tensor:
    """Any shape."""
    return torch.softmax(input, dim)


def _like_softmax(
    input: Tensor, dim: Any = None, dtype: Any = None, _stacklevel: int = 3
) -> None: ...


_by_signature = signature_reader(_like_softmax)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _by_signature(args, kwargs)
    if call is None or call.options["dtype"] is not None or call.options["dim"] is None:
        return None  # without `dim` it depends on how many dimensions there are
    return Call(call.inputs, {"dim": call.options["dim"]})


def _options(module: nn.Softmax) -> dict[str, Any] | None:
    return None if module.dim is None else {"dim": module.dim}


def _options2d(module: nn.Softmax2d) -> dict[str, Any]:
    return {"dim": -3}  # of [N, C, H, W] and of [C, H, W]


def _numbers(call: RealCall) -> SoftmaxNumbers:
    x, (y, low, high, rounding) = call.inputs[0], call.target
    distances = torch.arange(_farthest(x) + 1, device=x.scale.device)
    exponentials = torch.ldexp(torch.exp(-distances * x.scale.double()), torch.tensor(ONE_BITS))
    steps = 1 / y.scale.double()
    shift = rescale_of(steps).shift.clamp(max=_MAX_SHIFT)
    multiplier = torch.ldexp(steps, shift).round().clamp(max=2**MULTIPLIER_BITS - 1)
    table = exponentials.round().to(torch.int32)
    multiplier = multiplier.to(torch.int64)
    return SoftmaxNumbers(table, multiplier, shift, y.zero_point, low, high, rounding)


def _farthest(x: QParams) -> int:
    """The largest distance in the table: of any two codes, or one whose exponential is 0."""
    steps = x.scheme.qmax - x.scheme.qmin
    if x.scheme.is_byte:
        return steps  # which does not wait for the device
    return int(min(steps, _NOTHING / float(x.scale) + 2))


def _kernel(n: SoftmaxNumbers, dtype: torch.dtype, codes: Tensor, dim: int) -> Tensor:
    columns = codes.shape[dim] if codes.dim() else 1
    if columns == 0:
        return codes.to(dtype)
    if columns > MAX_COLUMNS:
        raise AccumulatorError(
            f"softmax over {columns} values may leave 64 bits, {MAX_COLUMNS} may not.\n"
            "What to do: keep it in float, QuantConfig(keep_float=(…,))."
        )
    wide = codes.to(torch.int32)
    distances = (wide.amax(dim, keepdim=True) - wide).clamp(max=len(n.table) - 1)
    looked_up = torch.index_select(n.table, 0, distances.flatten()).reshape(codes.shape)
    exponentials = looked_up.to(torch.int64)
    total = exponentials.sum(dim, keepdim=True)
    y = n.rounding.divide(exponentials * n.multiplier, total << n.shift) + n.y_zero
    return torch.clamp(y, n.low, n.high).to(dtype)


def _accumulator(call: IntegerCall) -> Accumulator:
    n: SoftmaxNumbers = call.numbers
    shape = call.inputs[0].shape
    if shape is None or "dim" not in call.settings:
        return Accumulator(None, None, bits=64)
    columns = shape[call.settings["dim"]] if shape else 1
    divisor = columns << ONE_BITS + int(n.shift)
    dividend = (int(n.multiplier) << ONE_BITS + 1) + divisor
    return Accumulator((max(dividend, 2 * divisor),), columns, bits=64)


def _onnx(call: OnnxCall) -> Value:
    n: SoftmaxNumbers = call.numbers
    wide, dim = call.codes[0].to(torch.int32), call.settings["dim"]
    distances = (wide.reduce("ReduceMax", [dim]) - wide).clamp(0, len(n.table) - 1)
    exponentials = distances.look_up(n.table).to(torch.int64)
    total = exponentials.reduce("ReduceSum", [dim])
    y = of_values(n.rounding.divide)(exponentials * n.multiplier, total << n.shift) + n.y_zero
    return y.clamp(n.low, n.high).to(call.dtype)


SOFTMAX = OpSpec(
    name="softmax",
    function=softmax,
    functions=(F.softmax, torch.softmax),
    methods=("softmax",),
    modules={nn.Softmax: _options, nn.Softmax2d: _options2d},
    read=_read,
    output=Output.OWN,
    range=(0.0, 1.0),
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_kernel,
    accumulator=_accumulator,
    onnx=_onnx,
)
