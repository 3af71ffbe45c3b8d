"""Integer arithmetic as hardware does it: exact sums, then one multiply, shift and clamp.

    y = clamp(((acc · m + 2^(S-1)) >> S) + z, low, high)

`acc` is an exact integer of at most 32 bits, `m` an integer of 31 bits, `S` a shift of at
most 44 bits; `>>` floors, so the rounding is half-up, unless another one is asked for
(`rounding.py`). Every number that a layer needs is made here, once, for the prepared model's eval
and for the converted model alike.
"""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fxquant.rounding import HALF_UP, Rescale, Rounding
from fxquant.schemes import (
    LARGEST,
    SMALLEST_SCALE,
    Channels,
    QParams,
    QuantScheme,
    next_power_of_two,
    round_half_up,
)

ACCUMULATOR_BITS = 32  # of a sum, unless fewer are asked for
FLOAT32_EXACT = 2**24  # sums of integers below this are exact in float32, in any order
_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


Bits = TypeVar("Bits", int, Tensor)


def accumulator_limit(bits: Bits) -> Bits:
    """Sums in so many bits stay below, in absolute value. A bias stays within half of it: the
    products have the other half.
    """
    return 1 << (bits - 1)


class Target(NamedTuple):
    """Where a result goes: its parameters, the codes it is clamped to (0-dim int32), and how it is
    rounded on the way.

    `low` and `high` are the scheme's ends, or tighter where an activation is fused.
    """

    qparams: QParams
    low: Tensor
    high: Tensor
    rounding: Rounding = HALF_UP

    def rescale(self, *scales: Tensor) -> Rescale:
        """What brings a product of integers with these scales to the output: Π s_i / s_y."""
        reals = self.rounding.reals
        above = reduce(operator.mul, (scale.to(reals) for scale in scales))
        return self.rounding.rescale(above / self.qparams.scale.to(reals))


def shift_by(value: Tensor, by: Tensor) -> Tensor:
    """`value · 2^by`, floored: int64 in and out, `by` of any sign."""
    # a right shift by 64 or more is no shift at all in most machines
    return torch.where(by < 0, value >> (-by).clamp(0, 63), value << by.clamp(min=0))


def integer_root(value: Tensor) -> Tensor:
    """`√value`, floored: int64 in and out, from 0 to 2^62.

    However the device rounds its float64 square root, it is off by less than one.
    """
    root = value.double().sqrt().to(torch.int64)
    root = root - (root * root > value).to(torch.int64)
    return root + ((root + 1) * (root + 1) <= value).to(torch.int64)


def sum_of_mean(mean: Tensor, count: Tensor) -> Tensor:
    """The sum of `count` integers, int64, from their mean in float64; `count` broadcasts.

    Below 2^40 mean·count lies within a few 2^-12 of it, also where torch divides once per
    dimension: rounding gives the sum back.
    """
    return exact_integer(mean * count)


class LayerNumbers(NamedTuple):
    """What an integer convolution or linear layer is made of; C output channels.

    `weight` int8 in the float weight's shape; `bias` int32 [C] at scale s_x·s_w; `bound`
    int64 [C], no partial sum of the products exceeds it; `multiplier` and `shift` [C], a
    `Rescale`; the others 0-dim int32.
    """

    weight: Tensor
    bias: Tensor
    bound: Tensor
    multiplier: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def layer_numbers(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    scheme: QuantScheme,
    channels: Channels,
    x: QParams,
    target: Target,
    accumulator_bits: int = ACCUMULATOR_BITS,
) -> LayerNumbers:
    """All integers of a layer from its real weight, bias and weight scale (float32 [C]).

        w_q = round(w / s_w)    b_q = round(b / (s_x·s_w))    m·2^-S = s_x·s_w / s_y

    A bias that would not fit half of the accumulator, 2^30 in 32 bits, at its scale (a channel
    with tiny weights) enlarges the scale of its channel until it fits; the weights then shrink,
    as they should beside it.
    """
    bias_limit = accumulator_limit(accumulator_bits) // 2
    s_x = x.scale.double()
    b = (torch.zeros_like(scale) if bias is None else bias).double()
    s_w = torch.maximum(scale.double(), b.abs() / (s_x * bias_limit))
    s_w = s_w.clamp(SMALLEST_SCALE, LARGEST).float()
    s_w = next_power_of_two(s_w) if scheme.power_of_two else s_w  # of a folded batch norm, too
    codes = round_half_up(weight.float() / channels.spread(s_w, weight))
    codes = codes.clamp(scheme.qmin, scheme.qmax)
    s_acc = s_x * s_w.double()
    b_codes = round_half_up(b / s_acc).clamp(-bias_limit, bias_limit)
    rescale = target.rescale(x.scale, s_w)
    return LayerNumbers(
        weight=codes.to(scheme.dtype),
        bias=b_codes.to(torch.int32),
        bound=accumulator_bound(codes, channels, x),
        multiplier=rescale.multiplier,
        shift=rescale.shift,
        x_zero=x.zero_point,
        y_zero=target.qparams.zero_point,
        low=target.low,
        high=target.high,
        rounding=target.rounding,
    )


def finish_layer(total: Tensor, n: LayerNumbers, axis: int, dtype: torch.dtype) -> Tensor:
    """From the sums of products (in a carrier; channels along `axis`) to the codes."""
    bias, multiplier, shift = (
        per_channel(values, axis, total.dim()) for values in (n.bias, n.multiplier, n.shift)
    )
    acc = exact_integer(total) + bias
    rescale = Rescale(multiplier, shift)
    return n.rounding.requantize(acc, rescale, n.y_zero, n.low, n.high, dtype)


def per_channel(values: Tensor, axis: int, dims: int) -> Tensor:
    """A vector [C] shaped to broadcast along `axis` of a tensor with `dims` dimensions."""
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)


def accumulator_bound(codes: Tensor, channels: Channels, x: QParams) -> Tensor:
    """The largest absolute value of any partial sum, for each output channel: int64 [C].

    With d = q - z in [d_lo, d_hi] around 0, sums lie between Σ min(w·d_hi, w·d_lo) and
    Σ max(w·d_hi, w·d_lo), in any order of summation and with any part padded by zeros.
    """
    rows = channels.rows(codes.to(torch.float64))
    positive, negative = rows.clamp(min=0).sum(1), -rows.clamp(max=0).sum(1)
    high = (x.scheme.qmax - x.zero_point).double()
    low = (x.zero_point - x.scheme.qmin).double()
    top = positive * high + negative * low
    bottom = positive * low + negative * high
    return torch.maximum(top, bottom).to(torch.int64)


def carrier(bound: Tensor, *codes: torch.dtype, worst: int | None = None) -> torch.dtype:
    """The float type whose kernels sum products of such codes exactly, whatever their order.

    float32 below 2^24. float64 beyond it, and wherever float32 kernels may not be plain sums
    of products: Winograd and FFT (NNPACK without oneDNN, cuDNN) round on the way; and where asked
    to be quick (torch.set_float32_matmul_precision) they cut operands of more than 8 bits off.

    To ask `bound` would end a compiled graph, which goes by `worst`, what no bound exceeds, and is
    to run with oneDNN on where it was compiled so.
    """
    if any(dtype.itemsize > 1 for dtype in codes):
        return torch.float64
    enabled = True
    if worst is None or not torch.compiler.is_compiling():
        worst, enabled = int(bound.max()), torch._C._get_mkldnn_enabled()
    plain = bound.device.type == "cpu" and _HAS_ONEDNN and enabled
    return torch.float32 if plain and worst < FLOAT32_EXACT else torch.float64


def exact_integer(total: Tensor) -> Tensor:
    """A sum computed in a float carrier, as int64."""
    return total.round().to(torch.int64)


def centred(codes: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """`q - z`, in int64 or a float carrier: exact, and 0 where the real number is 0, as padding is.
    """
    return codes.to(dtype) - zero_point.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: it would round carriers to half precision."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
