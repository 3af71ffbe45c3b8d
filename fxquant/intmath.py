"""Integer arithmetic as hardware does it: exact sums, then one multiply, shift and clamp.

    y = clamp(((acc · m + 2^(S-1)) >> S) + z, low, high)

`acc` is an exact integer of at most 32 bits, `m` an integer of 31 bits, `S` a shift of at
most 44 bits; `>>` floors, so the rounding is half-up. Every number that a layer needs is
made here, once, for the prepared model's eval and for the converted model alike.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.schemes import SMALLEST_SCALE, Channels, QParams, QuantScheme, round_half_up

MULTIPLIER_BITS = 31
MAX_SHIFT = 44  # up to here float64 evaluates the formula exactly too
ACCUMULATOR_LIMIT = 2**31  # sums stay below, in absolute value
BIAS_LIMIT = 2**30  # half of the accumulator; the products have the other half
FLOAT32_EXACT = 2**24  # sums of integers below this are exact in float32, in any order


class Rescale(NamedTuple):
    """A real factor as `multiplier · 2^-shift`, both int64 of one shape."""

    multiplier: Tensor
    shift: Tensor


class Target(NamedTuple):
    """Where a result goes: its parameters, and the codes it is clamped to (0-dim int32).

    `low` and `high` are the scheme's ends, or tighter where an activation is fused.
    """

    qparams: QParams
    low: Tensor
    high: Tensor


def rescale_of(factor: Tensor) -> Rescale:
    """The nearest `m · 2^-S` to each real factor (float64, any sign, any shape).

    `m` has 31 bits while S <= 44; smaller factors have fewer. A factor beyond 2^31 becomes
    the largest `m` there is: any non-zero accumulator saturates with it, as it should.
    """
    mantissa, exponent = torch.frexp(factor.to(torch.float64))
    shift = (MULTIPLIER_BITS - exponent).clamp(0, MAX_SHIFT)
    multiplier = torch.ldexp(mantissa, exponent + shift).round()
    top = 2**MULTIPLIER_BITS
    # rounding up to 2^31 moves one bit from the multiplier to the shift
    full = (multiplier.abs() == top) & (shift > 0)
    multiplier = torch.where(full, multiplier / 2, multiplier).clamp(-(top - 1), top - 1)
    return Rescale(multiplier.to(torch.int64), (shift - full.to(shift.dtype)).to(torch.int64))


def common_rescale(factors: Tensor, most: int = 30) -> Rescale:
    """Multipliers of n factors (float64, shape [n], any signs) over one common shift (0-dim).

    The multipliers are short enough for n products of a 9-bit number and the rounding term
    to fit 32 bits: 21 bits for two operands, 19 for eight. The shift is at `most` 30; a sum of
    longer numbers, whose factors are smaller, has 64 bits and may shift further.
    """
    bits = 22 - max(len(factors) - 1, 1).bit_length()
    _, exponent = torch.frexp(factors.abs().max())
    shift = (bits - exponent).clamp(0, most)
    top = 2**bits - 1
    multiplier = torch.ldexp(factors, shift).round().clamp(-top, top)
    return Rescale(multiplier.to(torch.int64), shift.to(torch.int64))


def shift_half_up(product: Tensor, shift: Tensor) -> Tensor:
    """`product / 2^shift`, rounded half-up: int64 in and out."""
    return (product + ((1 << shift) >> 1)) >> shift


def shift_half_up_(product: Tensor, shift: Tensor) -> Tensor:
    """The same in the memory of `product`, where fresh memory would cost more than the shift."""
    return product.add_((1 << shift) >> 1).bitwise_right_shift_(shift)


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


def divide_half_up(total: Tensor, divisor: Tensor) -> Tensor:
    """`total / divisor`, rounded half-up: int64 in and out, divisor positive."""
    return torch.div(2 * total + divisor, 2 * divisor, rounding_mode="floor")


def mean_half_up(mean: Tensor, count: Tensor) -> Tensor:
    """The mean of `count` integers, rounded half-up, from `mean`, their sum divided in float64.
    `count` is int64 and broadcasts; int64 out.

    |sum| < 2^32, so mean·count lies within a few 2^-20 of it, also where torch divides once per
    dimension: rounding gives the sum back.
    """
    return divide_half_up(exact_integer(mean * count), count)


def requantize(
    acc: Tensor, rescale: Rescale, zero_point: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype
) -> Tensor:
    """Accumulator (int64) to codes of `dtype`: the formula at the top of this file."""
    codes = shift_half_up(acc * rescale.multiplier, rescale.shift) + zero_point
    return torch.clamp(codes, low, high).to(dtype)


class LayerNumbers(NamedTuple):
    """What an integer convolution or linear layer is made of; C output channels.

    `weight` int8 in the float weight's shape; `bias` int32 [C] at scale s_x·s_w; `bound`
    int64 [C], no partial sum of the products exceeds it; `multiplier` and `shift` int64 [C];
    the others 0-dim int32.
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


def layer_numbers(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    scheme: QuantScheme,
    channels: Channels,
    x: QParams,
    target: Target,
) -> LayerNumbers:
    """All integers of a layer from its real weight, bias and weight scale (float32 [C]).

        w_q = round(w / s_w)    b_q = round(b / (s_x·s_w))    m·2^-S = s_x·s_w / s_y

    A bias that would not fit 2^30 at its scale (a channel with tiny weights) enlarges the
    scale of its channel until it fits; the weights then shrink, as they should beside it.
    """
    s_x = x.scale.double()
    b = (torch.zeros_like(scale) if bias is None else bias).double()
    s_w = torch.maximum(scale.double(), b.abs() / (s_x * BIAS_LIMIT))
    s_w = s_w.clamp(SMALLEST_SCALE, torch.finfo(torch.float32).max).float()
    codes = round_half_up(weight.float() / channels.spread(s_w, weight))
    codes = codes.clamp(scheme.qmin, scheme.qmax)
    s_acc = s_x * s_w.double()
    b_codes = round_half_up(b / s_acc).clamp(-BIAS_LIMIT, BIAS_LIMIT)
    rescale = rescale_of(s_acc / target.qparams.scale.double())
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
    )


def finish_layer(total: Tensor, n: LayerNumbers, axis: int, dtype: torch.dtype) -> Tensor:
    """From the sums of products (in a carrier; channels along `axis`) to the codes."""
    bias, multiplier, shift = (
        per_channel(values, axis, total.dim()) for values in (n.bias, n.multiplier, n.shift)
    )
    acc = exact_integer(total) + bias
    return requantize(acc, Rescale(multiplier, shift), n.y_zero, n.low, n.high, dtype)


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


def carrier(bound: Tensor) -> torch.dtype:
    """The float type whose kernels sum this layer exactly, whatever their order.

    float32 below 2^24. float64 beyond it, and wherever float32 kernels may not be plain sums
    of products: Winograd and FFT (NNPACK without oneDNN, cuDNN) round on the way.
    """
    onednn = torch.backends.mkldnn
    plain = bound.device.type == "cpu" and onednn.enabled and onednn.is_available()  # type: ignore[no-untyped-call]
    return torch.float32 if plain and int(bound.max()) < FLOAT32_EXACT else torch.float64


def exact_integer(total: Tensor) -> Tensor:
    """A sum computed in a float carrier, as int64."""
    return total.round().to(torch.int64)


def centered(codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """`q - z` in a float carrier: exact, and 0 where the real number is 0, as padding is."""
    return codes.to(dtype) - zero_point.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: it would round carriers to half precision."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
